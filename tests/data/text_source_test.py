import dataclasses

import numpy as np
import pytest

from pad_jax.data.text_examples import TextExamples
from pad_jax.data.text_source import choose_length, make_text_batches
from pad_jax.data.tokenization import open_vocabulary
from tests.data.glue_miniatures import VOCABULARY, write_vocabulary

CAT = VOCABULARY.index('cat')
# Words of the training texts: example i is told from the others by its number of cats.
NUM_WORDS = (1, 3, 14, 15, 29, 30, 31, 60)


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    return open_vocabulary(write_vocabulary(tmp_path_factory.mktemp('vocabulary')), 40)


def make_examples(num_words, labels=None, pairs=False):
    texts = (['cat ' * words for words in num_words],)
    if pairs:
        texts += (['it'] * len(num_words),)
    labels = np.arange(len(num_words), dtype=np.int32) % 3 if labels is None else labels
    return TextExamples(texts, labels, [str(i) for i in range(len(num_words))])


def make_tiny(pieces, batch_size=4, seed=0, class_names=('a', 'b', 'c'), **changes):
    examples = {'train': make_examples(NUM_WORDS), 'one': make_examples((2, 20, 1, 1, 33)), 'two': make_examples((5,))}
    examples |= changes
    return make_text_batches(
        examples.pop('train'),
        examples,
        pieces=pieces,
        class_names=class_names,
        metrics=('accuracy',),
        batch_size=batch_size,
        seed=seed,
    )


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype


def count_cats(batch):
    return (batch['tokens'] == CAT).sum(1)


def test_says_its_spec(pieces):
    spec = make_tiny(pieces).spec
    assert (spec.num_classes, spec.class_names, spec.regression) == (3, ('a', 'b', 'c'), False)
    assert (spec.max_length, spec.vocab_size) == (40, len(VOCABULARY))
    assert (spec.num_train, spec.num_eval, spec.eval_splits) == (8, 6, ('one', 'two'))
    assert spec.metrics == ('accuracy',)
    numbers = np.linspace(0, 1, 8, dtype=np.float32)
    regression = make_tiny(pieces, class_names=(), train=make_examples(NUM_WORDS, numbers))
    assert (regression.spec.num_classes, regression.spec.class_names, regression.spec.regression) == (1, (), True)
    assert regression.train_batch(0)['label'].dtype == np.float32


def test_batches_hold_whole_examples_with_their_labels(pieces):
    source = make_tiny(pieces)
    for batch in (source.train_batch(3), source.scoring_batch(3, 4)):
        assert batch.keys() == {'tokens', 'segments', 'valid', 'label'}
        dtypes = [batch[key].dtype for key in ('tokens', 'segments', 'valid', 'label')]
        assert dtypes == [np.int32, np.int32, np.bool_, np.int32]
        cats = count_cats(batch)
        kept = [min(words, 38) for words in NUM_WORDS]
        np.testing.assert_array_equal(batch['label'], [kept.index(number) % 3 for number in cats])
        np.testing.assert_array_equal(batch['valid'].sum(1), cats + 2)
        assert not batch['tokens'][~batch['valid']].any() and not batch['segments'].any()


def test_an_epoch_passes_through_all_examples_and_resumes_from_any_step(pieces):
    source = make_tiny(pieces, seed=3)
    straight = [source.train_batch(step) for step in range(6)]
    kept = sorted(min(words, 38) for words in NUM_WORDS)
    for epoch in range(3):
        assert sorted(np.concatenate([count_cats(batch) for batch in straight[2 * epoch : 2 * epoch + 2]])) == kept
    for step in (5, 0, 3):
        assert_same(make_tiny(pieces, seed=3).train_batch(step), straight[step])
    other = make_tiny(pieces, seed=4)
    assert any((count_cats(other.train_batch(step)) != count_cats(straight[step])).any() for step in range(6))
    assert any((count_cats(source.scoring_batch(step, 4)) != count_cats(straight[step])).any() for step in range(6))


@pytest.mark.parametrize('longest, length', [(2, 16), (16, 16), (17, 32), (32, 32), (33, 40), (40, 40)])
def test_lengths_are_few(longest, length):
    assert choose_length(longest, 40) == length
    assert choose_length(5, 8) == 8


def test_the_bucket_is_that_of_the_longest_text_of_the_global_batch(pieces):
    source = make_tiny(pieces, batch_size=2)
    seen = set()
    for step in range(40):
        batch = source.train_batch(step)
        longest = batch['valid'].sum(1).max()
        assert batch['tokens'].shape == (2, choose_length(longest, 40))
        seen.add(batch['tokens'].shape[1])
        # The shorter of the two is as long, though alone it may fit a smaller bucket.
        for row in range(2):
            share = source.train_batch(step, slice(row, row + 1))
            assert_same(share, {key: values[row : row + 1] for key, values in batch.items()})
    assert seen == {16, 32, 40}


@pytest.mark.parametrize('num_shares', [1, 2, 4])
def test_shares_concatenate_to_the_global_batch(pieces, num_shares):
    source, size = make_tiny(pieces), 4 // num_shares
    rows = [slice(i * size, (i + 1) * size) for i in range(num_shares)]

    def join(shares):
        return {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}

    assert_same(join([source.train_batch(5, r) for r in rows]), source.train_batch(5))
    assert_same(join([source.scoring_batch(5, 4, r) for r in rows]), source.scoring_batch(5, 4))
    shares = [list(source.eval_batches(rows=r)) for r in rows]
    for batch, *parts in zip(source.eval_batches(), *shares, strict=True):
        assert_same(join(parts), batch)


def test_bucketing_changes_nothing_but_the_padding(pieces):
    source = make_tiny(pieces, train=make_examples(NUM_WORDS, pairs=True))
    indices = np.arange(len(NUM_WORDS))
    whole = source.train.tokens.take(indices, 40, source.train.pad)
    for start in range(0, len(indices), 2):
        batch = source.train.take(indices[start : start + 2])
        length = batch['tokens'].shape[1]
        for key in ('tokens', 'segments', 'valid'):
            np.testing.assert_array_equal(batch[key], whole[key][start : start + 2, :length])
        assert not whole['valid'][start : start + 2, length:].any()


@pytest.mark.parametrize('num_eval, num_batches', [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_eval_batches_are_full_and_count_each_example_once(pieces, num_eval, num_batches):
    source = make_tiny(pieces, one=make_examples(range(1, num_eval + 1)))
    batches = list(source.eval_batches('one'))
    assert len(batches) == num_batches
    for batch in batches:
        assert {values.shape[0] for values in batch.values()} == {4} and batch['weight'].dtype == np.float32
        empty = batch['weight'] == 0
        assert not batch['valid'][empty].any() and not batch['tokens'][empty].any() and not batch['label'][empty].any()
    weight = np.concatenate([batch['weight'] for batch in batches])
    np.testing.assert_array_equal(weight, np.arange(4 * num_batches) < num_eval)
    cats = np.concatenate([count_cats(batch) for batch in batches])
    np.testing.assert_array_equal(cats[:num_eval], np.arange(1, num_eval + 1))
    labels = np.concatenate([batch['label'] for batch in batches])
    np.testing.assert_array_equal(labels[:num_eval], np.arange(num_eval) % 3)


def test_eval_batches_pass_through_one_split_or_all(pieces):
    source = make_tiny(pieces)
    one, two, both = (list(source.eval_batches(split)) for split in ('one', 'two', None))
    assert (len(one), len(two)) == (2, 1)
    for batch, expected in zip(both, [*one, *two], strict=True):
        assert_same(batch, expected)
    assert [batch['tokens'].shape for batch in both] == [(4, 32), (4, 40), (4, 16)]
    with pytest.raises(ValueError, match="split must be one of one, two, got 'three'"):
        next(source.eval_batches('three'))


def test_examples_without_labels_have_batches_without(pieces):
    source = make_tiny(pieces)
    unlabelled = dataclasses.replace(source.train, labels=None)
    batch = next(unlabelled.iterate(4))
    assert batch.keys() == {'tokens', 'segments', 'valid', 'weight'}
