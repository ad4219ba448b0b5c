import contextlib
import logging
import re
import threading

import numpy as np
import pytest

from pad_jax.data import streaming
from pad_jax.data.ordering import SCORING, VIEW, Order, draw_bits
from pad_jax.data.records import Record
from pad_jax.data.source import ImageSpec
from pad_jax.data.streaming import StreamedSource
from pad_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from pad_jax.data.views import Augmentation, view_middle
from pad_jax.errors import BadInput
from tests.data.photos import make_photo

SIZE = 8
PHOTOS = [make_photo(seed, (12, 10)) for seed in range(12)]


class ListedRecords:
    """Photos in memory, labelled by their number modulo 3; notes which are read, and some of them are damaged."""

    def __init__(self, numbers, damaged=()):
        self.numbers, self.damaged, self.seen = list(numbers), set(damaged), []

    def __len__(self):
        return len(self.numbers)

    def read(self, index):
        self.seen.append(index)
        number = self.numbers[index]
        data = PHOTOS[number][:200] if index in self.damaged else PHOTOS[number]
        return Record(data, number % 3, f"'photo {number}'")


def make_source(damaged=(), damaged_eval=(), **changes):
    values = {
        'spec': ImageSpec(
            num_classes=3, class_names=('a', 'b', 'c'), image_shape=(SIZE, SIZE, 3), num_train=7, num_eval=5
        ),
        'train': ListedRecords(range(7), damaged),
        'eval': ListedRecords(range(7, 12), damaged_eval),
        'batch_size': 4,
        'seed': 3,
        'augmentation': Augmentation('resized_crop', crop_padding=0, flip=True, distortion=None),
        'on_bad': 'stop',
    }
    return StreamedSource(**(values | changes))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype


def in_numbers(pixels):
    return normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)


def test_a_batch_is_the_examples_of_the_order_under_words_of_their_positions():
    source, order = make_source(), Order(7, 3)
    for step in (0, 5):
        batch, indices = source.train_batch(step), order.indices(step, 4)
        np.testing.assert_array_equal(batch['label'], indices % 3)
        assert batch['image'].dtype == np.float32 and batch['label'].dtype == np.int32
        for row, index in enumerate(indices):
            bits = draw_bits(3, 4 * step + row, VIEW, source.augmentation.num_words)
            pixels = source.augmentation.view(PHOTOS[index], SIZE, bits)
            np.testing.assert_array_equal(batch['image'][row], in_numbers(pixels))


def test_scoring_batches_are_as_evaluation_sees_them():
    batch, indices = make_source().scoring_batch(2, 5), Order(7, 3, SCORING).indices(2, 5)
    np.testing.assert_array_equal(batch['label'], indices % 3)
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(batch['image'][row], in_numbers(view_middle(PHOTOS[index], SIZE)))


@pytest.mark.parametrize('num_processes', [1, 2, 4])
def test_processes_share_the_same_global_batches_and_read_only_their_rows(num_processes):
    whole, size = make_source(), 4 // num_processes
    shares = [slice(i * size, (i + 1) * size) for i in range(num_processes)]

    def run(source, rows):
        with source.train_batches(2, 5, rows) as batches:
            return [batch for _, batch in batches]

    def join(parts):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    sources = [make_source() for _ in shares]
    parts = [run(source, rows) for source, rows in zip(sources, shares)]
    for number, expected in enumerate(run(whole, None)):
        assert_same(join([part[number] for part in parts]), expected)
    assert sorted(index for source in sources for index in source.train.seen) == sorted(whole.train.seen)
    assert all(len(source.train.seen) == 3 * size for source in sources)
    assert_same(join([whole.scoring_batch(1, 4, rows) for rows in shares]), whole.scoring_batch(1, 4))
    for found, expected in zip(
        zip(*(whole.eval_batches(rows=rows) for rows in shares)), whole.eval_batches(), strict=True
    ):
        assert_same(join(found), expected)


@pytest.mark.parametrize('num_threads, chunk', [(1, 1), (5, 3), (2, 4)])
def test_any_start_and_any_threads_give_the_same_batches(monkeypatch, num_threads, chunk):
    with make_source().train_batches(0, 6) as batches:
        straight = dict(batches)
    monkeypatch.setattr(streaming, 'CHUNK', chunk)
    with make_source(num_threads=num_threads).train_batches(4, 6) as batches:
        resumed = dict(batches)
    assert list(straight) == [0, 1, 2, 3, 4, 5] and list(resumed) == [4, 5]
    for step in resumed:
        assert_same(resumed[step], straight[step])
    assert (make_source(seed=4).train_batch(4)['image'] != straight[4]['image']).any()


def test_evaluation_counts_each_example_once():
    first, second = make_source().eval_batches()
    np.testing.assert_array_equal(first['weight'], [1, 1, 1, 1])
    np.testing.assert_array_equal(second['weight'], [1, 0, 0, 0])
    np.testing.assert_array_equal(np.concatenate([first['label'], second['label'][:1]]), np.arange(7, 12) % 3)
    assert not second['image'][1:].any() and not second['label'][1:].any()
    np.testing.assert_array_equal(second['image'][0], in_numbers(view_middle(PHOTOS[11], SIZE)))


def test_leaving_early_ends_the_threads():
    before = set(threading.enumerate())
    with make_source().train_batches(0, 10**6) as batches:
        next(batches)
    evaluation = make_source().eval_batches()
    next(evaluation)
    evaluation.close()
    ours = set(threading.enumerate()) - before
    for thread in ours:
        thread.join(10)
    assert not any(thread.is_alive() for thread in ours)


MESSAGE = "cannot read the image 'photo 2': "


def test_stops_at_a_damaged_photo_when_its_batch_comes():
    steps = [step for step in range(2) if 2 in Order(7, 3).indices(step, 4)]
    for step in range(2):
        source = make_source(damaged=[2])
        if step in steps:
            with pytest.raises(BadInput, match=re.escape(MESSAGE)) as caught:
                source.train_batch(step)
            assert str(caught.value).endswith('(data.on_bad=skip goes on without such images)')
        else:
            source.train_batch(step)
    assert steps
    with pytest.raises(BadInput, match=re.escape(MESSAGE)):
        make_source(damaged=[2]).scoring_batch(0, 7)
    with make_source(damaged=[2]).train_batches(0, 100) as batches, pytest.raises(BadInput, match=re.escape(MESSAGE)):
        for _ in batches:
            pass


def test_the_next_good_example_stands_in(caplog):
    clean, source = make_source(), make_source(damaged=[2, 3, 6], on_bad='skip')
    stands_in = {2: 4, 3: 4, 6: 0}
    with caplog.at_level(logging.WARNING, logger='pad_jax'):
        batches = [source.train_batch(step) for step in range(4)]
    for step, batch in enumerate(batches):
        for row, index in enumerate(Order(7, 3).indices(step, 4)):
            used = stands_in.get(int(index), int(index))
            bits = draw_bits(3, 4 * step + row, VIEW, source.augmentation.num_words)
            expected = clean.augmentation.view(PHOTOS[used], SIZE, bits)
            np.testing.assert_array_equal(batch['image'][row], in_numbers(expected))
            assert batch['label'][row] == used % 3
    # Sixteen visits of seven examples; each damaged one is counted and named once.
    assert sorted(line.split(':')[0] for line in source.skipped) == [
        f"cannot read the image 'photo {number}'" for number in (2, 3, 6)
    ]
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        f'{line}: the next example stands in for it' for line in source.skipped
    )
    share = source.train_batch(1, slice(2, 4))
    np.testing.assert_array_equal(share['image'], batches[1]['image'][2:])


def test_a_damaged_photo_has_no_weight_in_evaluation():
    source = make_source(damaged_eval=[1], on_bad='skip')
    first, _ = source.eval_batches()
    np.testing.assert_array_equal(first['weight'], [1, 0, 1, 1])
    assert not first['image'][1].any() and len(source.skipped) == 1
    with pytest.raises(BadInput, match=re.escape("cannot read the image 'photo 8'")):
        list(make_source(damaged_eval=[1]).eval_batches())


@pytest.mark.parametrize('batch_size', [3, 4, 8])
def test_evaluation_gives_up_where_nothing_can_be_read(batch_size):
    source = make_source(damaged_eval=range(5), batch_size=batch_size, on_bad='skip')
    with pytest.raises(BadInput, match=r"^5 examples of the evaluation data in a row .*, the last: .*'photo 11': "):
        list(source.eval_batches())


def test_evaluation_gives_up_after_as_many_bad_examples_in_a_row_as_training(monkeypatch):
    monkeypatch.setattr(streaming, 'MOST_IN_A_ROW', 2)
    source = make_source(damaged_eval=[0, 2, 4], on_bad='skip')
    assert sum(batch['weight'].sum() for batch in source.eval_batches()) == 2
    for rows, gives_up in ((None, True), (slice(0, 2), False), (slice(2, 4), True)):
        source = make_source(damaged_eval=[2, 3], on_bad='skip')
        with pytest.raises(BadInput, match=r'^2 examples of the') if gives_up else contextlib.nullcontext():
            list(source.eval_batches(rows=rows))


def test_gives_up_where_nothing_can_be_read():
    source = make_source(damaged=range(7), on_bad='skip')
    with pytest.raises(BadInput, match=r'7 examples of the training data in a row cannot be read, the last: .*photo'):
        source.train_batch(0)


def test_a_long_list_of_bad_examples_is_only_counted(caplog):
    bad = streaming.BadExamples()
    with caplog.at_level(logging.WARNING, logger='pad_jax'):
        for index in range(30):
            bad.note('train', index % 15, f'line {index % 15}', 'left out')
    assert len(bad.lines) == 15 and len(caplog.records) == streaming.MOST_SAID
    assert caplog.records[-1].getMessage() == 'line 9: left out (further ones are only counted)'
