import contextlib
import io
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pad_jax.data.preparation import folders, prepare_imagenet2012, records
from pad_jax.data.preparation import imagenet2012 as module
from pad_jax.data.tfds_folders import find_readable_set
from pad_jax.errors import BadInput
from tests.data.preparation import small_imagenet as small


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """(tars, data_dir) of a set that tests read."""
    root = tmp_path_factory.mktemp('imagenet')
    tars = small.write_tars(root / 'tars')
    prepare_imagenet2012(tars, root / 'data', subset=True)
    return tars, root / 'data'


@pytest.fixture
def tars(tmp_path):
    """Tars that a test may spoil."""
    return small.write_tars(tmp_path / 'tars')


def read_raw(data_dir):
    """{split: {file name: (bytes of the image, label)}} as TFDS reads them, by the name of the set."""
    skip = {'image': tfds.decode.SkipDecoding()}
    sources = tfds.data_source('imagenet2012', data_dir=data_dir, download=False, decoders=skip)
    return {
        split: {row['file_name'].decode(): (row['image'], int(row['label'])) for row in source}
        for split, source in sources.items()
    }


def test_read_back_are_the_bytes_of_the_source_with_their_labels(prepared):
    assert read_raw(prepared[1]) == {'train': small.list_train(), 'validation': small.list_validation()}


def test_reads_decoded_from_the_folder_too(prepared):
    folder = find_readable_set(prepared[1], 'imagenet2012')
    assert folder == prepared[1] / 'imagenet2012' / '5.1.0'
    images = small.list_train()
    for row in tfds.builder_from_directory(folder).as_data_source('train'):
        content, label = images[row['file_name'].decode()]
        np.testing.assert_array_equal(row['image'], np.asarray(Image.open(io.BytesIO(content))))
        assert row['label'] == label


def test_every_file_is_the_one_that_tfds_writes_itself(prepared, tmp_path):
    """Its builder and its writer, which do without TensorFlow as long as the set is small."""
    images = {'train': small.list_train(), 'validation': small.list_validation()}

    def generate(split):
        # Backwards: the order on disk is TFDS's own.
        for name, (content, label) in reversed(images[split].items()):
            yield name, {'file_name': name, 'image': content, 'label': label}

    with tfds.core.registered.skip_registration(), contextlib.redirect_stderr(io.StringIO()):

        class Builder(tfds.builder_cls('imagenet2012')):
            name = 'imagenet2012'
            __module__ = 'tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder'

            def _split_generators(self, dl_manager):
                return {split: generate(split) for split in images}

        builder = Builder(data_dir=tmp_path, file_format='array_record')
        builder.download_and_prepare()
    expected, found = builder.data_path, prepared[1] / 'imagenet2012' / '5.1.0'
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in found.iterdir()) == names and len(names) == 5
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_split_of_several_files_reads_back_in_the_order_of_tfds(tmp_path):
    builder = tfds.builder('imagenet2012', data_dir=tmp_path / 'none', file_format='array_record')
    serialize = records.Serializer(builder.info.features)
    names = [f'n01440764_{number}.JPEG' for number in range(200)]  # more than are read at once

    def read(number):
        return serialize({'file_name': names[number], 'image': bytes([number]), 'label': number % 7})

    # 4 × 64 MiB: as many files.
    split = records.write_split(tmp_path, 'imagenet2012', 'train', names, read, 4 * 64 * 2**20)
    assert split.shard_lengths == [50] * 4
    records.write_info(tmp_path, builder, [split])
    source = tfds.builder_from_directory(tmp_path).as_data_source(
        'train', decoders={'image': tfds.decode.SkipDecoding()}
    )
    order = sorted(range(200), key=lambda number: tfds.core.hashing.Hasher('train').hash_key(names[number]))
    assert [(row['image'], row['label']) for row in source] == [(bytes([n]), n % 7) for n in order]


def make_stereo_image():
    """A JPEG with another one in it."""
    one, other = (Image.open(io.BytesIO(small.make_image(seed))) for seed in (5, 6))
    buffer = io.BytesIO()
    one.save(buffer, 'MPO', save_all=True, append_images=[other])
    return buffer.getvalue()


def test_cmyk_and_png_become_rgb_and_everything_else_keeps_its_bytes(tars, tmp_path):
    images = {
        'n01440764_1.JPEG': (small.make_image(1, 'CMYK'), 0),
        'n01440764_2.JPEG': (small.make_image(2, format='PNG'), 0),
        'n01440764_3.JPEG': (small.make_image(3, 'L'), 0),
        'n01440764_4.JPEG': (small.make_image(4) + b'\0\0', 0),  # does not end as a JPEG, but is all there
        'n01440764_5.JPEG': (make_stereo_image(), 0),
    }
    small.write_train(tars, images)
    prepare_imagenet2012(tars, tmp_path / 'data', subset=True)
    found = read_raw(tmp_path / 'data')['train']
    for name in ('n01440764_3.JPEG', 'n01440764_4.JPEG', 'n01440764_5.JPEG'):
        assert found[name] == images[name]
    for seed, name in ((1, 'n01440764_1.JPEG'), (2, 'n01440764_2.JPEG')):
        image = Image.open(io.BytesIO(found[name][0]))
        assert (image.format, image.mode) == ('JPEG', 'RGB')
        plain = Image.open(io.BytesIO(small.make_image(seed)))
        difference = np.abs(np.asarray(image, np.int32).mean((0, 1)) - np.asarray(plain, np.int32).mean((0, 1)))
        assert difference.max() < 6  # an inverted colour would be a hundred away


def test_test_images_have_no_labels(tars, tmp_path):
    content = small.make_image(9)
    (tars / 'ILSVRC2012_img_test.tar').write_bytes(small.make_tar([('ILSVRC2012_test_00000001.JPEG', content)]))
    prepare_imagenet2012(tars, tmp_path / 'data', subset=True)
    assert read_raw(tmp_path / 'data')['test'] == {'ILSVRC2012_test_00000001.JPEG': (content, -1)}


def refuse(tars, tmp_path, message, subset=True, **changes):
    """Preparing raises with that message, and leaves nothing."""
    with pytest.raises(BadInput, match=message) as caught:
        prepare_imagenet2012(tars, tmp_path / 'deep' / 'data', subset=subset, **changes)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'deep').exists()


def test_missing_tars_are_named_with_where_to_get_and_to_put_them(tars, tmp_path):
    (tars / 'ILSVRC2012_img_val.tar').unlink()
    where = r'register at https://image-net.org/download-images, download it and put it there'
    refuse(tars, tmp_path, rf"{tars}' has no ILSVRC2012_img_val.tar: {where}")
    (tars / 'ILSVRC2012_img_train.tar').unlink()
    refuse(tars, tmp_path, r'has no ILSVRC2012_img_train.tar and no ILSVRC2012_img_val.tar: .* them there')
    refuse(tmp_path / 'none', tmp_path, r"--manual-dir '.*none' does not exist")


@pytest.mark.parametrize('size', [0, 100, 512, 3000, -512, -10240])
def test_a_tar_that_was_cut_short_is_refused_wherever_that_was(tars, tmp_path, size):
    path = tars / 'ILSVRC2012_img_train.tar'
    content = path.read_bytes()
    # Three tars of 10240 bytes behind their headers, and what fills the tar up to a multiple of that size.
    assert len(content) == 40960
    path.write_bytes(content[:size] if size >= 0 else content[: 3 * (512 + 10240) + 512 + size])
    refuse(tars, tmp_path, r"ILSVRC2012_img_train.tar' is (no tar, or )?(damaged or )?cut short")


def test_a_tar_in_the_tar_that_is_cut_short_is_refused_with_its_name(tars, tmp_path):
    whole = small.make_tar([(name, content) for name, (content, _) in small.list_train().items()][:2])
    for cut in (600, 1536, 2048):
        (tars / 'ILSVRC2012_img_train.tar').write_bytes(small.make_tar([('n01440764.tar', whole[:cut])]))
        refuse(tars, tmp_path, r"'n01440764.tar' in '.*ILSVRC2012_img_train.tar' is (damaged or )?cut short")


def test_damaged_headers_are_not_taken_for_the_end(tars, tmp_path):
    path = tars / 'ILSVRC2012_img_val.tar'
    content = bytearray(path.read_bytes())
    second = content.index(b'ILSVRC2012_val_00000002.JPEG')
    content[second] ^= 1
    path.write_bytes(content)
    refuse(tars, tmp_path, r"ILSVRC2012_img_val.tar' is damaged or cut short: it ends without the mark of an end")


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda content: content[:-100], r'image file is truncated'),
        (lambda content: content[:20], r'truncated|neither JPEG nor PNG|Truncated'),
        (lambda content: b'<html>not found</html>', 'neither JPEG nor PNG'),
        (lambda content: b'', 'neither JPEG nor PNG'),
    ],
)
def test_a_damaged_image_is_refused_with_its_name(tars, tmp_path, spoil, message):
    images = small.list_train()
    images['n01443537_1.JPEG'] = (spoil(images['n01443537_1.JPEG'][0]), 1)
    small.write_train(tars, images)
    refuse(tars, tmp_path, rf"'n01443537_1.JPEG' in '.*img_train.tar' cannot be read as an image: .*({message})")


def test_an_unknown_class_or_name_is_refused(tars, tmp_path):
    small.write_train(tars, {'n00000001_1.JPEG': (small.make_image(1), 0)})
    refuse(tars, tmp_path, r"holds 'n00000001.tar': expected a tar for each class, as n01440764.tar")
    small.write_train(tars, small.list_train())
    for name in ('ILSVRC2012_val_00050001.JPEG', 'ILSVRC2012_val_00000000.JPEG', 'photo.JPEG'):
        small.write_validation(tars, {name: (small.make_image(1), 0)})
        refuse(tars, tmp_path, rf"'{name}': expected ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG")


def test_fewer_classes_or_images_than_imagenet_has_are_refused_unless_asked_for(tars, tmp_path, monkeypatch):
    how = '--subset prepares what is there'
    refuse(tars, tmp_path, rf"img_train.tar' has 3 classes with images, not 1000: {how}", subset=False)
    monkeypatch.setattr(module, 'NUM_CLASSES', 3)
    refuse(tars, tmp_path, rf"img_train.tar' has 6 images, not 1281167: {how}", subset=False)
    monkeypatch.setattr(module, 'NUM_IMAGES', {'train': 6, 'validation': 50_000})
    refuse(tars, tmp_path, rf"img_val.tar' has 3 images, not 50000: {how}", subset=False)
    monkeypatch.setattr(module, 'NUM_IMAGES', {'train': 6, 'validation': 3})
    prepare_imagenet2012(tars, tmp_path / 'data')


def test_a_name_that_comes_twice_is_refused(tars, tmp_path):
    content = small.make_image(1)
    inner = small.make_tar([('n01440764_1.JPEG', content)] * 2)
    (tars / 'ILSVRC2012_img_train.tar').write_bytes(small.make_tar([('n01440764.tar', inner)]))
    refuse(tars, tmp_path, "split train of imagenet2012 has 'n01440764_1.JPEG' more than once")


@pytest.mark.parametrize('name', ['../n01440764_1.JPEG', '/etc/n01440764_1.JPEG', 'a/../../b.JPEG', '..\\b.JPEG'])
def test_names_that_lead_out_of_their_folder_are_refused(tars, tmp_path, name):
    inner = small.make_tar([(name, small.make_image(1))])
    (tars / 'ILSVRC2012_img_train.tar').write_bytes(small.make_tar([('n01440764.tar', inner)]))
    refuse(tars, tmp_path, r"'n01440764.tar' in .* holds '.*', which leads out of its folder")


def test_links_are_refused(tars, tmp_path):
    link = tarfile.TarInfo('ILSVRC2012_val_00000001.JPEG')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    with tarfile.open(tars / 'ILSVRC2012_img_val.tar', 'w') as archive:
        archive.addfile(link)
    refuse(tars, tmp_path, r"img_val.tar' holds 'ILSVRC2012_val_00000001.JPEG', which is no file")


def test_a_split_without_images_is_refused(tars, tmp_path):
    small.write_validation(tars, {})
    refuse(tars, tmp_path, 'split validation of imagenet2012 has no examples')


def test_a_set_that_is_there_is_replaced_only_on_request_and_only_by_a_whole_one(prepared, tars, tmp_path):
    data_dir = tmp_path / 'data'
    shutil.copytree(prepared[1], data_dir)
    before = read_raw(data_dir)
    with pytest.raises(BadInput, match=r"2012/5.1.0' is there already: --overwrite puts a new one in its place"):
        prepare_imagenet2012(tars, data_dir, subset=True)
    images = {'n01440764_1.JPEG': (small.make_image(77), 0), 'n01440764_2.JPEG': (b'no image', 0)}
    small.write_train(tars, images)
    with pytest.raises(BadInput, match=r"'n01440764_2.JPEG' in"):
        prepare_imagenet2012(tars, data_dir, subset=True, overwrite=True)
    assert read_raw(data_dir) == before
    del images['n01440764_2.JPEG']
    small.write_train(tars, images)
    prepare_imagenet2012(tars, data_dir, subset=True, overwrite=True)
    assert read_raw(data_dir) == before | {'train': images}
    assert [path.name for path in (data_dir / 'imagenet2012').iterdir()] == ['5.1.0']


def test_an_interrupted_preparation_leaves_no_set_and_does_not_stand_in_the_way(tars, tmp_path, monkeypatch):
    # As after kill -9: nothing was cleaned up.
    left = tmp_path / 'data' / 'imagenet2012' / '5.1.0.incomplete'
    left.mkdir(parents=True)
    (left / 'dataset_info.json').write_text('{"fileFormat": "array_record"}')
    (left / 'imagenet2012-train.array_record-00000-of-00009').write_bytes(b'half')
    assert find_readable_set(tmp_path / 'data', 'imagenet2012') is None

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, 'write_info', interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet2012(tars, tmp_path / 'data', subset=True)
    assert list((tmp_path / 'data' / 'imagenet2012').iterdir()) == []
    folder = prepare_imagenet2012(tars, tmp_path / 'data', subset=True)
    assert len(list(folder.iterdir())) == 5
    assert [path.name for path in folder.parent.iterdir()] == ['5.1.0']


def test_two_processes_do_not_write_the_same(tars, tmp_path):
    folder = tmp_path / 'data' / 'imagenet2012' / '5.1.0'
    with folders.fill_folder(folder) as incomplete:
        (incomplete / 'file').write_text('kept')
        with pytest.raises(BadInput, match=r"another process is writing '.*5.1.0.incomplete'"):
            prepare_imagenet2012(tars, tmp_path / 'data', subset=True)
    assert (folder / 'file').read_text() == 'kept'


def test_no_space_and_no_folder_to_write_into_are_told(tars, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(BadInput, match=r"file/imagenet2012/5.1.0.incomplete' cannot be made: Not a directory"):
        prepare_imagenet2012(tars, tmp_path / 'file', subset=True)
    with monkeypatch.context() as patch:  # a disk that fills up while others write to it too
        patch.setattr(module, 'write_split', lambda *_: records.write_file(pathlib.Path('/dev/full'), [b'record']))
        refuse(tars, tmp_path, r"'/dev/full' cannot be written: .*No space left on device")
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9, 999))
    refuse(tars, tmp_path, r"' has 999 B of free space, [0-9.]+ kB are needed")
