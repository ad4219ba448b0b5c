import itertools
import logging
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from pad_jax.data import images, make_source
from pad_jax.data.decoding import Middle, decode
from pad_jax.errors import BadInput
from tests.data.photos import claim_size, truncate

SIZE = 8


def write_image(path, mode='RGB', size=(10, 12), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three classes of four training images, two with two evaluation images, in several formats."""
    suffixes, seeds = itertools.cycle(['.png', '.jpg', '.JPEG', '.PNG']), itertools.count()
    for split, names, count in (('train', ('cat', 'ant', 'bee'), 4), ('val', ('bee', 'ant'), 2)):
        for name, number in itertools.product(names, range(count)):
            write_image(tmp_path / split / name / f'{number}{next(suffixes)}', seed=next(seeds))
    return tmp_path


def open_folder(path, **changes):
    return make_source('folder', **({'path': str(path), 'batch_size': 4, 'image_size': SIZE} | changes))


def refused(path, message, **changes):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        open_folder(path, **changes)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_digests_tell_data_apart_and_do_not_depend_on_the_folder(folder, monkeypatch):
    """Images swapped within their class keep names and sizes, so only their contents tell."""
    ant = folder / 'train' / 'ant'
    for path in ant.iterdir():
        path.write_bytes(path.read_bytes().ljust(2000, b'\0'))
    moved = folder / 'moved'
    for name in ('train', 'val'):
        shutil.copytree(folder / name, moved / name)
    whole = open_folder(folder).spec.digests
    assert [*whole] == ['contents of train', 'contents of val']
    assert open_folder(moved).spec.digests == whole
    one, other = sorted(ant.iterdir())[1:3]
    one.rename(ant / 'third'), other.rename(one), (ant / 'third').rename(other)
    swapped = open_folder(folder).spec.digests
    assert [name for name in whole if swapped[name] != whole[name]] == ['contents of train']
    monkeypatch.setattr(images, 'CACHE_BYTES', 0)
    files = open_folder(folder).spec.digests
    assert [*files] == ['files of train', 'files of val'] and open_folder(moved).spec.digests == files
    one.write_bytes(one.read_bytes() + b'\0')
    changed = open_folder(folder).spec.digests
    assert changed['files of train'] != files['files of train'] and changed['files of val'] == files['files of val']


def test_reads_classes_and_labels_in_sorted_order(folder):
    source = open_folder(folder)
    assert source.spec.class_names == ('ant', 'bee', 'cat')
    assert source.image_shape == (SIZE, SIZE, 3)
    assert (source.spec.num_classes, source.spec.num_train, source.spec.num_eval) == (3, 12, 4)
    np.testing.assert_array_equal(source.train.labels, np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(source.eval.labels, [0, 0, 1, 1])
    for number, name in enumerate(sorted(os.listdir(folder / 'train' / 'bee'))):
        expected = decode((folder / 'train' / 'bee' / name).read_bytes(), SIZE, Middle())
        np.testing.assert_array_equal(source.train.pixels[4 + number], expected)
    assert source.skipped == []
    assert (source.augmentation.crop_padding, source.augmentation.flip) == (1, True)


def test_other_files_and_hidden_ones_are_ignored(folder):
    for name in ('notes.txt', '._0.png', 'x.gif'):
        (folder / 'train' / 'ant' / name).write_text('no image')
    (folder / 'train' / '.cache').mkdir()
    (folder / 'train' / 'README').write_text('no class')
    (folder / 'val' / 'cat').mkdir()
    assert open_folder(folder).spec.num_train == 12


def remove(*names):
    return lambda folder: [shutil.rmtree(folder / name) for name in names]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (shutil.rmtree, "'{}' does not exist: expected PATH/train/CLASS"),
        (remove('train', 'val'), "the data folder '{}' has no folder train/: expected PATH/train/CLASS"),
        (remove('train'), "'{}' has no folder train/"),
        (remove('val'), "'{}' has no folder val/"),
        (remove('train/ant', 'train/bee'), "'{}/train' must hold at least two classes, got only the class cat"),
        (lambda folder: (folder / 'train' / 'dog').mkdir(), "'{}/train/dog' holds no .png, .jpg or .jpeg file"),
        (lambda folder: (folder / 'val' / 'bee').rename(folder / 'val' / 'yak'), 'classes that train lacks: yak'),
        (lambda folder: [path.unlink() for path in (folder / 'val').rglob('*.*')], 'must hold a readable example'),
    ],
)
def test_refuses_other_layouts(folder, change, message):
    change(folder)
    refused(folder, message.format(folder))


def test_refuses_no_path_and_a_file(folder):
    for path in (None, ''):
        with pytest.raises(BadInput, match='path must name a folder with PATH/train/CLASS'):
            make_source('folder', path=path, batch_size=4, image_size=SIZE)
    refused(write_image(folder / 'x.png'), "x.png' is not a folder")


NEITHER = 'not a PNG, JPEG, WEBP, GIF or BMP file'
BAD = {
    'truncated': (truncate, ''),
    'empty': (lambda path: path.write_bytes(b''), NEITHER),
    'text': (lambda path: path.write_text('no image'), NEITHER),
    'gone': (lambda path: (path.unlink(), path.symlink_to('nowhere')), 'No such file or directory'),
    'huge': (lambda path: path.write_bytes(claim_size(12_000, 12_000)), '144,000,000 pixels, at most 89,478,485 are'),
}


# pytest puts its own filters in place of the package's, which keep Pillow's warning quiet.
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('kind', BAD)
def test_stops_at_an_unreadable_image_and_names_it(folder, kind):
    spoil, reason = BAD[kind]
    path = write_image(folder / 'val' / 'ant' / 'a\nb.png', size=(40, 40))
    spoil(path)
    message = refused(folder, f'cannot read the image {str(path)!r}: {reason}')
    assert message.endswith('(data.on_bad=skip leaves such images out)')


def test_skips_bad_images_counts_and_names_them(folder, caplog):
    bad = [folder / 'train' / 'bee' / '1.jpg', folder / 'val' / 'ant' / '0.png']
    for path in bad:
        truncate(write_image(path, size=(40, 40)))
    with caplog.at_level(logging.WARNING, logger='pad_jax'):
        source = open_folder(folder, on_bad='skip')
    present = {split: sum(p.is_file() for p in (folder / split).rglob('*.*')) for split in ('train', 'val')}
    assert source.spec.num_train == present['train'] - 1 == len(source.train.labels)
    assert source.spec.num_eval == present['val'] - 1 == len(source.eval.labels)
    assert len(source.skipped) == 2 and source.num_eval_listed == present['val']
    assert all(str(path) in line for path, line in zip(bad, source.skipped))
    assert [record.getMessage() for record in caplog.records] == [f'{line}: left out' for line in source.skipped]
    # The rest is the data of a folder without the bad images.
    for path in bad:
        path.unlink()
    clean = open_folder(folder)
    assert clean.spec == source.spec
    assert clean.spec.digests['contents of train'] == source.spec.digests['contents of train']
    np.testing.assert_array_equal(source.train_batch(3)['image'], clean.train_batch(3)['image'])


def test_refuses_when_skipping_leaves_a_class_or_the_evaluation_empty(folder):
    for path in (folder / 'train' / 'cat').iterdir():
        path.write_text('no image')
    refused(folder, "no training image of the class 'cat' can be read", on_bad='skip')
    shutil.rmtree(folder / 'train' / 'cat')
    for path in (folder / 'val').rglob('*.*'):
        path.write_text('no image')
    refused(folder, 'must hold a readable example to evaluate on, got none of 4', on_bad='skip')


def warnings_of(folder, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger='pad_jax'):
        open_folder(folder)
    return [record.getMessage() for record in caplog.records]


def test_warns_of_ignored_files(folder, caplog):
    assert warnings_of(folder, caplog) == []
    write_image(folder / 'train' / 'bee' / 'deep' / 'down' / '0.png')
    write_image(folder / 'train' / 'bee' / '.hidden' / '0.png')
    write_image(folder / 'train' / 'cat' / '9.webp')
    write_image(folder / 'val' / 'ant' / '9.bmp')
    (folder / 'val' / 'ant' / '.DS_Store').write_text('')
    (line,) = warnings_of(folder, caplog)
    expected = 'ignored 3 files that are not .png, .jpg or .jpeg directly in a class folder, the first: '
    assert line == f"{expected}'{folder}/train/bee/deep/down/0.png'"


def test_other_names_of_the_evaluation_folder_and_a_held_out_share(folder, caplog):
    for name in ('validation', 'test'):
        (folder / ('val' if name == 'validation' else 'validation')).rename(folder / name)
        with caplog.at_level(logging.INFO):
            assert open_folder(folder).spec.num_eval == 4
        assert f"evaluation uses '{folder / name}'" in caplog.text
    refused(folder, f"holdout must be 0 for '{folder}', which has test/, got 0.25", holdout=0.25)
    shutil.rmtree(folder / 'test')
    refused(folder, 'the data must hold a readable example to evaluate on, got none of 0', holdout=0.01)
    source = open_folder(folder, holdout=0.25)
    assert (source.spec.num_train, source.spec.num_eval) == (9, 3)
    assert source.eval.labels.tolist() == [0, 1, 2]


def test_classes_whose_names_have_other_unicode_forms_are_the_same(folder):
    (folder / 'train' / 'bee').rename(folder / 'train' / 'be\u0301')
    (folder / 'val' / 'bee').rename(folder / 'val' / 'b\u00e9')
    source = open_folder(folder)
    assert source.spec.class_names == ('ant', 'b\u00e9', 'cat') and source.spec.num_eval == 4
    shutil.copytree(folder / 'train' / 'be\u0301', folder / 'train' / 'b\u00e9')
    refused(folder, "has two folders with the name 'bé' in different Unicode forms")
