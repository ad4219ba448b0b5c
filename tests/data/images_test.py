import dataclasses
import logging
import re

import numpy as np
import pytest

from pad_jax.data import images, make_source
from pad_jax.data.augment import Augmentation
from pad_jax.data.decoding import IMAGENET_MEAN, IMAGENET_STD, Middle, decode, normalize
from pad_jax.data.images import Arrays, ImageKind, ImageSplits, Preprocessing, Record, open_images
from pad_jax.data.ordering import SCORING, Order
from pad_jax.errors import BadInput
from tests.data.photos import make_photo

SIZE = 8
PHOTOS = [make_photo(seed, (12, 10)) for seed in range(12)]
EXACT = Middle(margin=256 / 224, is_reduced=False)
NOTHING = Augmentation()


def make_tiny(num_train=5, num_eval=5, batch_size=4, augmentation=NOTHING):
    """Images of one pixel whose value is the number of the example; evaluation examples count from 100."""

    def split(first, count):
        pixels = first + np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
        return Arrays(pixels, np.arange(count, dtype=np.int32) % 3)

    splits = ImageSplits(('a', 'b', 'c'), split(0, num_train), split(100, num_eval))
    kind = ImageKind(None, Preprocessing((0.0,), (1.0,)))
    return open_images(kind, splits, 1, augmentation, batch_size, seed=0, on_bad='stop')


def open_digits(batch_size, **changes):
    return make_source('digits', batch_size=batch_size, image_size=8, **changes)


class ListedRecords:
    """Photos in memory, labelled by their number modulo 3. `seen` collects the reads; some photos are damaged."""

    def __init__(self, numbers, damaged=()):
        self.numbers, self.damaged, self.seen = list(numbers), set(damaged), []

    def __len__(self):
        return len(self.numbers)

    def read(self, index):
        self.seen.append(index)
        number = self.numbers[index]
        data = PHOTOS[number][:200] if index in self.damaged else PHOTOS[number]
        return Record(data, number % 3, f"'photo {number}'")


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setattr(images, 'CACHE_BYTES', 0)


def open_photos(damaged=(), damaged_eval=(), augment='resized_crop', **changes):
    splits = ImageSplits(('a', 'b', 'c'), ListedRecords(range(7), damaged), ListedRecords(range(7, 12), damaged_eval))
    kind = ImageKind(None, Preprocessing(IMAGENET_MEAN, IMAGENET_STD), EXACT)
    options = {'batch_size': 4, 'seed': 3, 'on_bad': 'stop'}
    options['augmentation'] = Augmentation(augment, 0 if augment == 'resized_crop' else 1, flip=True)
    return open_images(kind, splits, SIZE, **(options | changes))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype


def join(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def in_numbers(pixels):
    return normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)


def test_golden_augmentation():
    blank = Preprocessing((0.0,), (1.0,))
    batch = dataclasses.replace(open_digits(3, seed=0, flip=True), preprocessing=blank).train_batch(1)
    np.testing.assert_array_equal(batch['label'], GOLDEN_LABELS)
    np.testing.assert_array_equal(batch['image'][0, :, :, 0], GOLDEN_IMAGE)


# Fixed for good, as the order is: a resumed run must see what it would have seen.
GOLDEN_LABELS = [1, 2, 8]
# Scan 670 of the training split; its bits give top 2 and left 2 of 0..2, side 1: up and left by one, mirrored.
GOLDEN_IMAGE = [
    [0, 0, 0, 0, 0, 13, 15, 0],
    [0, 0, 0, 0, 2, 16, 16, 11],
    [0, 0, 0, 0, 5, 16, 10, 3],
    [0, 0, 0, 0, 10, 14, 0, 0],
    [0, 0, 0, 0, 14, 10, 0, 0],
    [0, 0, 6, 11, 16, 14, 9, 0],
    [0, 9, 16, 16, 16, 16, 12, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
]


@pytest.mark.parametrize('num_eval, num_batches', [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_eval_batches_are_full_and_count_each_example_once(num_eval, num_batches):
    source = make_tiny(num_eval=num_eval)
    batches = list(source.eval_batches())
    assert len(batches) == num_batches == source.num_eval_batches
    for batch in batches:
        assert batch['image'].shape == (4, 1, 1, 1) and batch['label'].shape == batch['weight'].shape == (4,)
        assert [batch[key].dtype for key in ('image', 'label', 'weight')] == [np.float32, np.int32, np.float32]
    image, label, weight = (np.concatenate([b[key] for b in batches]) for key in ('image', 'label', 'weight'))
    np.testing.assert_array_equal(weight, np.arange(4 * num_batches) < num_eval)
    np.testing.assert_array_equal(image.ravel()[:num_eval], 100 + np.arange(num_eval))
    np.testing.assert_array_equal(label[:num_eval], np.arange(num_eval) % 3)
    assert not image[num_eval:].any() and not label[num_eval:].any()


def test_refuses_nothing_to_evaluate_on():
    with pytest.raises(BadInput, match='must hold a readable example to evaluate on, got none of'):
        make_tiny(num_eval=0)


# Photos that are decoded when a batch needs them.
def check_train_batch(source, step, batch, replaced):
    """Each row is the drawn part of the photo that the order names, or of the one that replaces it."""
    words = source.augmentation.draw(3, step, 4)
    used = [replaced.get(int(index), int(index)) for index in Order(7, 3).indices(step, 4)]
    pixels = np.stack([decode(PHOTOS[index], SIZE, EXACT, words.part[row]) for row, index in enumerate(used)])
    np.testing.assert_array_equal(batch['image'], in_numbers(source.augmentation.apply(pixels, words)))
    np.testing.assert_array_equal(batch['label'], np.array(used) % 3)
    assert batch['image'].dtype == np.float32 and batch['label'].dtype == np.int32


def test_a_batch_holds_the_parts_of_the_examples_of_its_order():
    source = open_photos()
    for step in (0, 5):
        check_train_batch(source, step, source.train_batch(step), {})


@pytest.mark.parametrize('augment', ['crop', 'resized_crop'])
def test_scoring_batches_are_as_evaluation_sees_them(augment):
    batch, indices = open_photos(augment=augment).scoring_batch(2, 5), Order(7, 3, SCORING).indices(2, 5)
    np.testing.assert_array_equal(batch['label'], indices % 3)
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(batch['image'][row], in_numbers(decode(PHOTOS[index], SIZE, EXACT)))


def test_images_in_memory_give_the_batches_of_images_on_disk(monkeypatch):
    kept = open_photos(augment='crop')
    assert isinstance(kept.train, Arrays) and isinstance(kept.eval, Arrays)
    monkeypatch.setattr(images, 'CACHE_BYTES', 12 * SIZE * SIZE * 3 - 1)
    read = open_photos(augment='crop')
    assert not isinstance(read.train, Arrays) and not isinstance(read.eval, Arrays) and kept.spec == read.spec
    for step in range(3):
        assert_same(kept.train_batch(step), read.train_batch(step))
        assert_same(kept.scoring_batch(step, 5), read.scoring_batch(step, 5))
    for one, other in zip(kept.eval_batches(), read.eval_batches(), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize('num_processes', [1, 2, 4])
def test_processes_share_the_same_global_batches_and_read_only_their_rows(no_cache, num_processes):
    whole, size = open_photos(), 4 // num_processes
    shares = [slice(i * size, (i + 1) * size) for i in range(num_processes)]

    def run(source, rows):
        with source.train_batches(2, 5, rows) as batches:
            return [batch for _, batch in batches]

    sources = [open_photos() for _ in shares]
    parts = [run(source, rows) for source, rows in zip(sources, shares)]
    for number, expected in enumerate(run(whole, None)):
        assert_same(join([part[number] for part in parts]), expected)
    assert sorted(index for source in sources for index in source.train.records.seen) == sorted(
        whole.train.records.seen
    )
    assert all(len(source.train.records.seen) == 3 * size for source in sources)
    assert_same(join([whole.scoring_batch(1, 4, rows) for rows in shares]), whole.scoring_batch(1, 4))
    evaluated = zip(*(whole.eval_batches(rows=rows) for rows in shares))
    for found, expected in zip(evaluated, whole.eval_batches(), strict=True):
        assert_same(join(found), expected)


@pytest.mark.parametrize('num_threads, chunk', [(1, 1), (5, 3), (2, 4)])
def test_any_start_and_any_threads_give_the_same_batches(monkeypatch, num_threads, chunk):
    with open_photos().train_batches(0, 6) as batches:
        straight = dict(batches)
    monkeypatch.setattr(images, 'CHUNK', chunk)
    with open_photos().with_threads(num_threads).train_batches(4, 6) as batches:
        resumed = dict(batches)
    assert list(straight) == [0, 1, 2, 3, 4, 5] and list(resumed) == [4, 5]
    for step in resumed:
        assert_same(resumed[step], straight[step])
    assert (open_photos(seed=4).train_batch(4)['image'] != straight[4]['image']).any()


MESSAGE = "cannot read the image 'photo 2': "


def test_stops_at_a_damaged_photo_when_its_batch_comes():
    (step,) = (step for step in range(2) if 2 in Order(7, 3).indices(step, 4))
    source = open_photos(damaged=[2])
    source.train_batch(1 - step)
    with pytest.raises(BadInput, match=re.escape(MESSAGE)) as caught:
        source.train_batch(step)
    assert str(caught.value).endswith('(data.on_bad=skip leaves such images out)')
    with pytest.raises(BadInput, match=re.escape(MESSAGE)):
        open_photos(damaged=[2]).scoring_batch(0, 7)
    with open_photos(damaged=[2]).train_batches(0, 100) as batches, pytest.raises(BadInput, match=re.escape(MESSAGE)):
        for _ in batches:
            pass


def test_the_next_good_example_replaces_a_damaged_one(caplog):
    source = open_photos(damaged=[2, 3, 6], on_bad='skip')
    with caplog.at_level(logging.WARNING, logger='pad_jax'):
        batches = [source.train_batch(step) for step in range(4)]
    for step, batch in enumerate(batches):
        check_train_batch(source, step, batch, {2: 4, 3: 4, 6: 0})
    # Sixteen visits of seven examples; each damaged one is counted and named once.
    assert sorted(line.split(':')[0] for line in source.skipped) == [
        f"cannot read the image 'photo {number}'" for number in (2, 3, 6)
    ]
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        f'{line}: left out' for line in source.skipped
    )
    share = source.train_batch(1, slice(2, 4))
    np.testing.assert_array_equal(share['image'], batches[1]['image'][2:])


def test_a_damaged_photo_has_no_weight_in_evaluation(no_cache):
    source = open_photos(damaged_eval=[1], on_bad='skip')
    first, _ = source.eval_batches()
    np.testing.assert_array_equal(first['weight'], [1, 0, 1, 1])
    assert not first['image'][1].any() and len(source.skipped) == 1 and source.num_eval_listed == 5
    with pytest.raises(BadInput, match=re.escape("cannot read the image 'photo 8'")):
        list(open_photos(damaged_eval=[1]).eval_batches())


def test_gives_up_if_no_image_can_be_read():
    source = open_photos(damaged=range(7), on_bad='skip')
    with pytest.raises(BadInput, match=r'7 images of the training data in a row cannot be read, the last: .*photo'):
        source.train_batch(0)
