import contextlib
import json
import re
import shutil

import numpy as np
import pytest

from pad_jax.data import images, make_source
from pad_jax.errors import BadInput
from tests.data.photos import CLASSES, write_folders, write_prepared

SIZE = 16


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """Folders and, of the same files, a data_dir of TFDS."""
    root = tmp_path_factory.mktemp('originals')
    write_prepared(root / 'tfds', write_folders(root / 'folders'))
    return root


@pytest.fixture
def folders(originals, tmp_path):
    shutil.copytree(originals / 'folders', tmp_path / 'folders')
    return tmp_path / 'folders'


@pytest.fixture
def prepared(originals, tmp_path):
    shutil.copytree(originals / 'tfds', tmp_path / 'tfds')
    return tmp_path / 'tfds' / 'imagenet2012' / '5.1.0'


def open_data(path, **changes):
    values = {'path': str(path), 'batch_size': 6, 'image_size': SIZE, 'augment': 'resized_crop'}
    return make_source('imagenet', **(values | changes))


def refused(path, message, **changes):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        open_data(path, **changes)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def pass_over(source, split):
    """Return every example once as evaluation sees it, in an order that does not depend on the storage."""
    if split == 'eval':
        batches = [batch for batch in source.eval_batches() if batch.pop('weight').all()]
    else:
        batches = [source.scoring_batch(0, source.spec.num_train)]
    return sorted((image.tobytes(), int(label)) for batch in batches for image, label in zip(*batch.values()))


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_folders_and_tfds_give_the_same_pixels_and_labels(originals, split):
    one, other = open_data(originals / 'folders'), open_data(originals / 'tfds')
    assert one.spec == other.spec
    assert one.spec.class_names == CLASSES and (one.spec.num_train, one.spec.num_eval) == (12, 6)
    found = pass_over(one, split)
    assert found == pass_over(other, split) and len(set(found)) == {'train': 12, 'eval': 6}[split]


def test_labels_are_those_of_the_folders(originals):
    source = open_data(originals / 'folders')
    labels = np.concatenate([batch['label'] for batch in source.eval_batches()])
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2, 2])
    record = source.train.records.read(4)
    path = originals / 'folders' / 'train' / CLASSES[1] / f'{CLASSES[1]}_0.JPEG'
    assert record == (path.read_bytes(), 1, repr(str(path)))


@pytest.mark.parametrize('inner', ['.', 'imagenet2012', 'imagenet2012/5.1.0'])
def test_finds_a_prepared_set_from_each_of_its_folders(originals, inner):
    assert open_data(originals / 'tfds' / inner).spec.num_train == 12


def test_augmentation_defaults(originals):
    for changes, expected in (
        ({'augment': 'crop'}, (2, True, 0)),
        ({'flip': False, 'color_jitter': 0.4}, (0, False, 4)),
    ):
        augmentation = open_data(originals / 'folders', **changes).augmentation
        assert (augmentation.crop_padding, augmentation.flip, augmentation.num_distortion_words) == expected


HOW = 'tfds build imagenet2012 --file_format=array_record --manual_dir=DIR_OF_THE_ARCHIVES --data_dir='


def test_missing_data_says_how_to_prepare_it(tmp_path):
    assert HOW + 'DIR ' in refused('', 'data.path must name a data_dir of TFDS')
    assert f'{HOW}{tmp_path}/nowhere' in refused(tmp_path / 'nowhere', f"'{tmp_path}/nowhere' does not exist")
    assert f'{HOW}{tmp_path}' in refused(tmp_path, f"'{tmp_path}' holds no photos")
    (tmp_path / 'file').write_text('')
    refused(tmp_path / 'file', f"'{tmp_path}/file' is not a folder")
    (tmp_path / 'train').mkdir()
    refused(tmp_path, 'has no folder val/')


def test_a_set_in_another_format_says_how_to_convert_it(prepared):
    info = prepared / 'dataset_info.json'
    info.write_text(json.dumps(json.loads(info.read_text()) | {'fileFormat': 'tfrecord'}))
    data_dir = prepared.parent.parent
    message = refused(data_dir, f"'{prepared}' was prepared as tfrecord, which cannot be read in any order. ")
    assert f'Run tfds convert_format --root_data_dir={data_dir} --out_file_format=array_record (in an' in message
    assert message == refused(prepared, 'as tfrecord') == refused(prepared.parent, 'as tfrecord')
    info.write_text('{')
    refused(data_dir, f"cannot read '{prepared}'")


def test_a_set_in_two_formats_is_read_in_the_right_one(prepared):
    info = prepared / 'dataset_info.json'
    formats = {'fileFormat': 'tfrecord', 'alternativeFileFormats': ['array_record']}
    info.write_text(json.dumps(json.loads(info.read_text()) | formats))
    assert len(open_data(prepared).scoring_batch(0, 12)['label']) == 12


def test_a_set_without_labels_or_splits_is_refused(originals, tmp_path):
    paths = {'train': [next((originals / 'folders').rglob('*.JPEG'))]}
    with contextlib.suppress(KeyError):
        write_prepared(tmp_path, paths | {'val': paths['train']}, 1, features=('image', 'file_name'))
    refused(tmp_path, 'has no feature label')


def shard_of(prepared, number=1, split='train'):
    return prepared / f'imagenet2012-{split}.array_record-{number:05}-of-00002'


def test_missing_cut_and_foreign_shards_are_found_when_the_set_is_opened(prepared):
    shard, whole = shard_of(prepared), shard_of(prepared).read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused(prepared, f"cannot read '{shard}'")
    shard.write_bytes(shard_of(prepared, split='validation').read_bytes())
    refused(prepared, f"'{shard}' holds 3 records, expected 6. Prepare the data set again")
    shard.unlink()
    refused(prepared, f"cannot read '{shard}'")


def damage(shard, payload):
    """Flips one byte in the middle of where `payload` lies."""
    data = bytearray(shard.read_bytes())
    data[data.index(payload) + len(payload) // 2] ^= 255
    shard.write_bytes(data)


def test_a_corrupt_record_is_named_by_shard_and_index(prepared):
    data = open_data(prepared).train.records.read(7).data
    damage(shard_of(prepared), data[-64:])
    source = open_data(prepared)
    with pytest.raises(BadInput, match=re.escape(f"cannot read record 7 of split train of '{prepared}': ")) as caught:
        source.scoring_batch(0, 12)
    assert 'orrupt' in str(caught.value) and '\n' not in str(caught.value)
    skipping = open_data(prepared, on_bad='skip')
    skipping.scoring_batch(0, 12)
    assert len(skipping.skipped) == 1 and 'record 7 of' in skipping.skipped[0]


def claim_classes(prepared, names, number):
    (prepared / 'label.labels.txt').write_text('\n'.join(names))
    content = json.loads((prepared / 'features.json').read_text())
    content['featuresDict']['features']['label']['classLabel']['numClasses'] = str(number)
    (prepared / 'features.json').write_text(json.dumps(content))


def test_labels_and_names_have_to_fit_the_number_of_classes(prepared):
    claim_classes(prepared, CLASSES[:2], 2)
    with pytest.raises(BadInput, match=r"^record \d of split \w+ of '.*' has the label 2, expected 0 to 1. Prepare "):
        open_data(prepared).scoring_batch(0, 12)
    claim_classes(prepared, CLASSES[:2], 3)
    refused(prepared, 'has the label 2, expected 0 to 1. Prepare the data set again')
    (prepared / 'label.labels.txt').unlink()
    claim_classes(prepared, (), 0)
    refused(prepared, f"the feature label of '{prepared}' has no classes")


def test_only_images_that_fit_into_memory_are_decoded_at_the_start(folders, monkeypatch):
    for path in (folders / 'train').rglob('*.JPEG'):
        path.write_text('no image')
    assert open_data(folders).spec.num_train == 12  # parts are cut from the files
    for path in (folders / 'val').rglob('*.JPEG'):
        path.write_text('no image')
    refused(folders, 'cannot read the image')
    monkeypatch.setattr(images, 'CACHE_BYTES', 0)
    assert open_data(folders).spec.num_eval == 6
