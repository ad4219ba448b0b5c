import json
import shutil

import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from pad_jax.data import glue_tfds
from pad_jax.data.glue import find_task
from pad_jax.data.preparation import convert, convert_tfrecord
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures
from tests.data.preparation import tfrecord_twin as twin


def read_payloads(folder):
    """{file name: payloads} of the array_record files in a folder."""
    found = {}
    for path in sorted(folder.glob('*.array_record-*')):
        reader = array_record_module.ArrayRecordReader(str(path))
        found[path.name] = [reader.read([index])[0] for index in range(reader.num_records())]
        reader.close()
    return found


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """(data_dir, payloads) of glue/rte as TFDS with TensorFlow prepares it: the same, but for the framing."""
    root = tmp_path_factory.mktemp('tfrecord')
    folder = root / 'glue/rte/2.0.0'
    miniatures.write_prepared(root, 'rte')
    payloads = read_payloads(folder)
    for name, records in payloads.items():
        twin.write_tfrecord(folder / name.replace('array_record', 'tfrecord'), records)
        (folder / name).unlink()
    info = json.loads((folder / 'dataset_info.json').read_text())
    (folder / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
    return root, payloads


@pytest.fixture
def data_dir(original, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(original[0], tmp_path / 'data')


def read_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_payloads_and_files_stay_and_the_set_can_be_read(data_dir, original):
    folder = data_dir / 'glue/rte/2.0.0'
    before = read_all(folder)
    with pytest.raises(BadInput, match='prepared as tfrecord'):
        glue_tfds.find_prepared(data_dir, 'rte')
    assert convert_tfrecord(data_dir, 'glue/rte') == folder
    payloads = original[1]
    assert read_payloads(folder) == payloads and len(payloads) == 3
    after = read_all(folder)
    assert after.keys() == before.keys() | payloads.keys()
    assert {name for name in before if after[name] != before[name]} == {'dataset_info.json'}
    old, new = (json.loads(files['dataset_info.json']) for files in (before, after))
    assert new == old | {'fileFormat': 'array_record', 'alternativeFileFormats': ['tfrecord']}
    assert [path.name for path in folder.parent.iterdir()] == ['2.0.0']

    examples = glue_tfds.read_split(glue_tfds.find_prepared(data_dir, 'rte'), find_task('rte'), 'train')
    assert list(zip(*examples.texts)) == [texts for texts, _ in miniatures.rows('rte', 'train')]
    assert examples.labels.tolist() == [label for _, label in miniatures.rows('rte', 'train')]
    by_name = tfds.data_source('glue/rte', data_dir=data_dir, download=False)
    assert {split: len(source) for split, source in by_name.items()} == {'train': 5, 'validation': 3, 'test': 2}


def test_another_data_dir_leaves_this_one_as_it_is(data_dir, original, tmp_path):
    before = read_all(data_dir / 'glue/rte/2.0.0')
    folder = convert_tfrecord(data_dir, 'glue/rte/2.0.0', output_dir=tmp_path / 'other')
    assert folder == tmp_path / 'other/glue/rte/2.0.0'
    assert read_all(data_dir / 'glue/rte/2.0.0') == before
    assert read_payloads(folder) == original[1]
    assert {path.name for path in folder.iterdir()} == {
        *original[1],
        'dataset_info.json',
        'features.json',
        'label.labels.txt',
    }
    assert len(tfds.data_source('glue/rte', data_dir=tmp_path / 'other', download=False)['train']) == 5
    with pytest.raises(BadInput, match=r"other/glue/rte/2.0.0' is there already: --overwrite"):
        convert_tfrecord(data_dir, 'glue/rte', output_dir=tmp_path / 'other')
    convert_tfrecord(data_dir, 'glue/rte', output_dir=tmp_path / 'other', overwrite=True)


def test_what_is_converted_is_converted_again_only_on_request(data_dir, original):
    folder = convert_tfrecord(data_dir, 'glue/rte')
    with pytest.raises(BadInput, match='holds array_record already: --overwrite writes it anew'):
        convert_tfrecord(data_dir, 'glue/rte')
    for name in original[1]:
        (folder / name).write_bytes(b'damaged')
    convert_tfrecord(data_dir, 'glue/rte', overwrite=True)
    assert read_payloads(folder) == original[1]
    for path in folder.glob('*tfrecord*'):
        path.unlink()
    with pytest.raises(BadInput, match=r'lacks 3 of its 3 files, the first glue-train.tfrecord-00000-of-00001'):
        convert_tfrecord(data_dir, 'glue/rte', overwrite=True)


def refuse(data_dir, name, message):
    """Converting raises with that message, and changes nothing."""
    before = {path: path.read_bytes() for path in data_dir.rglob('*') if path.is_file()}
    with pytest.raises(BadInput, match=message):
        convert_tfrecord(data_dir, name)
    assert {path: path.read_bytes() for path in data_dir.rglob('*') if path.is_file()} == before


def test_a_damaged_record_is_refused_with_its_file_and_index(data_dir):
    path = data_dir / 'glue/rte/2.0.0/glue-validation.tfrecord-00000-of-00001'
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last byte of the data of the last record
    path.write_bytes(content)
    refuse(data_dir, 'glue/rte', rf"record 2 of '{path}' is damaged: its data do not match their checksum")
    path.write_bytes(content[:-1])
    refuse(data_dir, 'glue/rte', rf"record 2 of '{path}' is cut short")


def test_a_file_that_is_missing_or_has_lost_records_is_refused(data_dir, original):
    path = data_dir / 'glue/rte/2.0.0/glue-train.tfrecord-00000-of-00001'
    twin.write_tfrecord(path, original[1]['glue-train.array_record-00000-of-00001'][:-1])
    refuse(data_dir, 'glue/rte', rf"{path}' has 4 records, '.*dataset_info.json' says 5")
    path.unlink()
    refuse(data_dir, 'glue/rte', f'lacks 1 of its 3 files, the first {path.name}')


def test_what_is_no_set_in_tfrecord_is_refused(data_dir, tmp_path):
    refuse(data_dir, 'glue/rtx', r"holds no set 'glue/rtx': expected glue/rtx/VERSION/dataset_info.json")
    refuse(data_dir, 'glue', "holds no set 'glue'")
    refuse(data_dir, 'glue/../glue/rte', r"holds no set 'glue/../glue/rte'")
    refuse(data_dir, str(data_dir / 'glue/rte'), r"holds no set '/.*glue/rte'")
    with pytest.raises(BadInput, match=r"--data-dir '.*none' does not exist"):
        convert_tfrecord(tmp_path / 'none', 'glue/rte')
    info = data_dir / 'glue/rte/2.0.0/dataset_info.json'
    content = json.loads(info.read_text())
    for spoilt in ('{', '[]', '{}'):
        info.write_text(spoilt)
        refuse(data_dir, 'glue/rte', 'is no description of a TFDS set')
    info.write_text(json.dumps(content | {'fileFormat': 'riegeli'}))
    refuse(data_dir, 'glue/rte', 'was prepared as riegeli, not as tfrecord: nothing to convert')
    info.write_text(json.dumps(content))
    (info.parent / 'features.json').unlink()
    refuse(data_dir, 'glue/rte', r"2.0.0/features.json' is missing: copy it from where")


def test_a_set_from_before_formats_were_written_down_is_converted(data_dir, original):
    info = data_dir / 'glue/rte/2.0.0/dataset_info.json'
    content = json.loads(info.read_text())
    del content['fileFormat']
    info.write_text(json.dumps(content))
    assert read_payloads(convert_tfrecord(data_dir, 'glue/rte')) == original[1]


def test_an_interrupted_conversion_has_changed_nothing_and_starts_again(data_dir, original, monkeypatch):
    write_file, calls = convert.write_file, []

    def interrupt(path, payloads):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write_file(path, payloads)

    before = read_all(data_dir / 'glue/rte/2.0.0')
    with monkeypatch.context() as patch:
        patch.setattr(convert, 'write_file', interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_tfrecord(data_dir, 'glue/rte')
    assert read_all(data_dir / 'glue/rte/2.0.0') == before
    assert [path.name for path in (data_dir / 'glue/rte').iterdir()] == ['2.0.0']
    # As after kill -9: nothing was cleaned up.
    (data_dir / 'glue/rte/2.0.0.incomplete').mkdir()
    (data_dir / 'glue/rte/2.0.0.incomplete' / calls[0].name).write_bytes(b'half')
    assert read_payloads(convert_tfrecord(data_dir, 'glue/rte')) == original[1]
    assert [path.name for path in (data_dir / 'glue/rte').iterdir()] == ['2.0.0']
