import itertools
import logging
import os
import re

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
    suffixes = itertools.cycle(['.png', '.jpg', '.JPEG', '.PNG'])
    seeds = itertools.count()
    for split, names, count in (('train', ('cat', 'ant', 'bee'), 4), ('val', ('bee', 'ant'), 2)):
        for name in names:
            for i in range(count):
                write_image(tmp_path / split / name / f'{i}{next(suffixes)}', seed=next(seeds))
    return tmp_path


def open_folder(path, **changes):
    return make_source('folder', **({'path': str(path), 'batch_size': 4, 'image_size': SIZE} | changes))


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setattr(images, 'CACHE_BYTES', 0)


def refused(path, message, **changes):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        open_folder(path, **changes)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_reads_classes_and_labels_in_sorted_order(folder):
    source = open_folder(folder)
    assert source.spec.class_names == ('ant', 'bee', 'cat')
    assert source.image_shape == (SIZE, SIZE, 3)
    assert (source.spec.num_classes, source.spec.num_train, source.spec.num_eval) == (3, 12, 4)
    np.testing.assert_array_equal(source.train.labels, np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(source.eval.labels, [0, 0, 1, 1])
    names = sorted(os.listdir(folder / 'train' / 'bee'))
    for i, name in enumerate(names):
        expected = decode((folder / 'train' / 'bee' / name).read_bytes(), SIZE, Middle())
        np.testing.assert_array_equal(source.train.pixels[4 + i], expected)
    batch = source.train_batch(0)
    assert batch['image'].shape == (4, SIZE, SIZE, 3) and batch['image'].dtype == np.float32
    assert source.skipped == []


def test_augmentation_defaults(folder):
    augmentation = open_folder(folder).augmentation
    assert (augmentation.crop_padding, augmentation.flip) == (1, True)
    augmentation = open_folder(folder, crop_padding=0, flip=False).augmentation
    assert (augmentation.crop_padding, augmentation.flip) == (0, False)


def test_other_files_and_hidden_ones_are_ignored(folder):
    for name in ('notes.txt', '._0.png', 'x.gif'):
        (folder / 'train' / 'ant' / name).write_text('no image')
    (folder / 'train' / '.cache').mkdir()
    (folder / 'train' / 'README').write_text('no class')
    (folder / 'val' / 'cat').mkdir()
    assert open_folder(folder).spec.num_train == 12


@pytest.mark.parametrize('path', [None, ''])
def test_refuses_no_path(path):
    with pytest.raises(BadInput, match='path must name a folder with PATH/train/CLASS'):
        make_source('folder', path=path, batch_size=4, image_size=SIZE)


def test_refuses_what_is_not_there_or_no_folder(tmp_path):
    refused(tmp_path / 'nowhere', f"the data folder '{tmp_path}/nowhere' does not exist")
    refused(write_image(tmp_path / 'x.png'), "x.png' is not a folder")


def test_refuses_an_empty_folder(tmp_path):
    refused(tmp_path, f"the data folder '{tmp_path}' is empty: expected PATH/train/CLASS")


@pytest.mark.parametrize('missing', ['train', 'val'])
def test_refuses_a_missing_split(folder, missing):
    (folder / missing).rename(folder / 'other')
    refused(folder, f'has no folder {missing}/')


def test_refuses_fewer_than_two_classes(tmp_path):
    (tmp_path / 'val').mkdir()
    (tmp_path / 'train').mkdir()
    refused(tmp_path, "train' must hold at least two classes, got no class folder")
    write_image(tmp_path / 'train' / 'ant' / '0.png')
    refused(tmp_path, "train' must hold at least two classes, got only the class ant")


def test_refuses_a_class_without_images(folder):
    (folder / 'train' / 'dog').mkdir()
    (folder / 'train' / 'dog' / 'x.webp').write_text('')
    refused(folder, "train/dog' holds no .png, .jpg or .jpeg file")


def test_refuses_classes_that_only_val_has(folder):
    for name in ('yak', 'dog'):
        write_image(folder / 'val' / name / '0.png')
    refused(folder, "val' has classes that train lacks: dog, yak")


def test_refuses_nothing_to_evaluate_on(folder):
    for path in (folder / 'val').rglob('*.*'):
        path.unlink()
    refused(folder, "val' holds no .png, .jpg or .jpeg file")


BAD = {
    'truncated': (truncate, ''),
    'empty': (lambda path: path.write_bytes(b''), 'not a PNG, JPEG, WEBP, GIF or BMP file'),
    'text': (lambda path: path.write_text('no image'), 'not a PNG, JPEG, WEBP, GIF or BMP file'),
    'gone': (lambda path: (path.unlink(), path.symlink_to('nowhere')), 'No such file or directory'),
}


@pytest.mark.parametrize('kind', BAD)
def test_stops_at_an_unreadable_image_and_names_it(folder, kind):
    spoil, reason = BAD[kind]
    path = folder / 'val' / 'ant' / '0.png'
    write_image(path, size=(40, 40))
    spoil(path)
    message = refused(folder, f"cannot read the image '{path}': {reason}")
    assert 'data.on_bad=skip leaves such images out' in message


def test_stops_later_at_a_truncated_image_beyond_the_cache(folder, no_cache):
    path = write_image(folder / 'val' / 'ant' / '0.png', size=(40, 40))
    truncate(path)
    source = open_folder(folder)
    with pytest.raises(BadInput, match=re.escape(str(path))):
        list(source.eval_batches())


def test_skips_bad_images_counts_and_says_so(folder, caplog):
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
    unseen, *records = caplog.records
    assert 'has no image of 1 of the 3 classes' in unseen.getMessage()
    assert [record.getMessage() for record in records] == [f'{line}: left out' for line in source.skipped]
    # The rest is the data of a folder without the bad images.
    for path in bad:
        path.unlink()
    clean = open_folder(folder)
    assert clean.spec == source.spec
    np.testing.assert_array_equal(source.train_batch(3)['image'], clean.train_batch(3)['image'])


def test_refuses_when_skipping_leaves_a_class_or_the_evaluation_empty(folder):
    for path in (folder / 'val').rglob('*.*'):
        path.write_text('no image')
    refused(folder, 'no readable example to evaluate on', on_bad='skip')
    for path in (folder / 'train' / 'cat').iterdir():
        path.write_text('no image')
    refused(folder, "no training image of the class 'cat' can be read", on_bad='skip')


# pytest puts its own filters in place of the package's, which keep Pillow's warning quiet.
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('sides', [(12_000, 12_000), (20_000, 20_000)])
def test_a_huge_image_is_refused_with_its_size_the_limit_and_what_to_do(folder, sides):
    path = folder / 'train' / 'ant' / 'huge.png'
    path.write_bytes(claim_size(*sides))
    message = refused(folder, f"'{path}': {sides[0] * sides[1]:,} pixels")
    assert 'at most 89,478,485 are read. Shrink it (data.on_bad=skip leaves such images out)' in message
    assert open_folder(folder, on_bad='skip').spec.num_train == 12


def warnings_of(folder, caplog, **changes):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger='pad_jax'):
        open_folder(folder, **changes)
    return [record.getMessage() for record in caplog.records]


def test_says_how_many_files_are_ignored(folder, caplog):
    write_image(folder / 'val' / 'cat' / '0.png')
    assert warnings_of(folder, caplog) == []
    write_image(folder / 'train' / 'bee' / 'deep' / 'down' / '0.png')
    write_image(folder / 'train' / 'bee' / '.hidden' / '0.png')
    write_image(folder / 'train' / 'cat' / '9.webp')
    write_image(folder / 'val' / 'ant' / '9.bmp')
    (folder / 'val' / 'ant' / '.DS_Store').write_text('')
    (line,) = warnings_of(folder, caplog)
    first = folder / 'train' / 'bee' / 'deep' / 'down' / '0.png'
    expected = 'ignored 3 files that are not .png, .jpg or .jpeg directly in a class folder, the first: '
    assert line == f"{expected}'{first}'"


def test_says_which_classes_are_not_evaluated(folder, caplog):
    (line,) = warnings_of(folder, caplog)
    assert line == f"'{folder}/val' has no image of 1 of the 3 classes ('cat'), so they do not count in the accuracy"


def test_one_line_even_for_a_name_of_two(folder):
    path = folder / 'train' / 'ant' / 'a\nb.png'
    path.write_text('no image')
    refused(folder, r'a\nb.png')
