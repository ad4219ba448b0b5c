"""Sources of texts: their batches, and labelled files of one's own."""

import re

import numpy as np
import pytest

from pad_jax.data.tables import TextExamples, write_table
from pad_jax.data.texts import TextSource, hold_out, open_text_files
from pad_jax.data.tokenization import choose_length, open_vocabulary
from pad_jax.errors import BadInput
from tests.data.glue_miniatures import VOCABULARY, write_vocabulary

CAT = VOCABULARY.index('cat')
# Words of the training texts: the number of its cats identifies an example.
NUM_WORDS = (1, 3, 14, 15, 29, 30, 31, 60)
KEPT = [min(words, 38) for words in NUM_WORDS]


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    return open_vocabulary(write_vocabulary(tmp_path_factory.mktemp('vocabulary')), 40)


def make_examples(num_words, labels=None, pairs=False):
    texts = (['cat ' * words for words in num_words],) + ((['it'] * len(num_words),) if pairs else ())
    return TextExamples(texts, np.arange(len(num_words), dtype=np.int32) % 3 if labels is None else labels)


def make_tiny(pieces, batch_size=4, seed=0, class_names=('a', 'b', 'c'), **changes):
    examples = {'train': make_examples(NUM_WORDS), 'one': make_examples((2, 20, 1, 1, 33)), 'two': make_examples((5,))}
    examples |= changes
    splits = {name: pieces.encode(*one) for name, one in examples.items()}
    settings = {'pieces': pieces, 'class_names': class_names, 'metrics': ('accuracy',)}
    return TextSource(train=splits.pop('train'), eval=splits, **settings, batch_size=batch_size, seed=seed)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype


def count_cats(batch):
    return (batch['tokens'] == CAT).sum(1)


def test_says_its_spec(pieces):
    source = make_tiny(pieces)
    spec = source.spec
    assert (spec.num_classes, spec.class_names, spec.metrics) == (3, ('a', 'b', 'c'), ('accuracy',))
    assert (spec.num_train, spec.num_eval, spec.eval_splits) == (8, 6, ('one', 'two'))
    assert (source.num_eval_listed, source.num_eval_batches, source.skipped) == (6, 3, [])
    assert source.with_threads(3) is source
    numbers = np.linspace(0, 1, 8, dtype=np.float32)
    regression = make_tiny(pieces, class_names=(), train=make_examples(NUM_WORDS, numbers))
    assert (regression.spec.num_classes, regression.spec.class_names) == (1, ())
    assert regression.train_batch(0)['label'].dtype == np.float32


def test_batches_hold_whole_examples_with_their_labels(pieces):
    source = make_tiny(pieces)
    for batch in (source.train_batch(3), source.scoring_batch(3, 4)):
        dtypes = {'tokens': np.int32, 'segments': np.int32, 'valid': np.bool_, 'label': np.int32}
        assert {key: values.dtype for key, values in batch.items()} == dtypes
        cats = count_cats(batch)
        np.testing.assert_array_equal(batch['label'], [KEPT.index(number) % 3 for number in cats])
        np.testing.assert_array_equal(batch['valid'].sum(1), cats + 2)
        assert not batch['tokens'][~batch['valid']].any() and not batch['segments'].any()


@pytest.mark.parametrize('longest, length', [(2, 16), (16, 16), (17, 32), (32, 32), (33, 40), (40, 40)])
def test_lengths_are_few(longest, length):
    assert choose_length(longest, 40) == length
    assert choose_length(5, 8) == 8


def test_the_bucket_is_that_of_the_longest_text_of_the_global_batch(pieces):
    source = make_tiny(pieces, batch_size=2)
    seen = set()
    for step in range(40):
        batch = source.train_batch(step)
        assert batch['tokens'].shape == (2, choose_length(batch['valid'].sum(1).max(), 40))
        seen.add(batch['tokens'].shape[1])
    assert seen == {16, 32, 40}


@pytest.mark.parametrize('num_shares', [2, 4])
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
    whole = source.train.take(indices)
    assert whole['tokens'].shape == (8, 40)
    for start in range(0, len(indices), 2):
        batch = source.train.take(indices[start : start + 2])
        length = batch['tokens'].shape[1]
        for key in ('tokens', 'segments', 'valid'):
            np.testing.assert_array_equal(batch[key], whole[key][start : start + 2, :length])
        assert not whole['valid'][start : start + 2, length:].any()


@pytest.mark.parametrize('num_eval, num_batches', [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_eval_batches_are_full_and_count_each_example_once(pieces, num_eval, num_batches):
    batches = list(make_tiny(pieces, one=make_examples(range(1, num_eval + 1))).eval_batches('one'))
    assert len(batches) == num_batches
    for batch in batches:
        assert {values.shape[0] for values in batch.values()} == {4} and batch['weight'].dtype == np.float32
        empty = batch['weight'] == 0
        assert not any(batch[key][empty].any() for key in ('valid', 'tokens', 'label'))
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in ('weight', 'label')}
    np.testing.assert_array_equal(joined['weight'], np.arange(4 * num_batches) < num_eval)
    cats = np.concatenate([count_cats(batch) for batch in batches])
    np.testing.assert_array_equal(cats[:num_eval], np.arange(1, num_eval + 1))
    np.testing.assert_array_equal(joined['label'][:num_eval], np.arange(num_eval) % 3)


def test_eval_batches_pass_through_one_split_or_all(pieces):
    source = make_tiny(pieces)
    one, two, both = (list(source.eval_batches(split)) for split in ('one', 'two', None))
    for batch, expected in zip(both, [*one, *two], strict=True):
        assert_same(batch, expected)
    assert [batch['tokens'].shape for batch in both] == [(4, 32), (4, 40), (4, 16)]
    np.testing.assert_array_equal(source.eval_labels('one'), [0, 1, 2, 0, 1])
    unlabelled = next(pieces.encode((['cat'],)).iterate(4))
    assert unlabelled.keys() == {'tokens', 'segments', 'valid', 'weight'}


LABELS = ['no', 'yes', 'maybe']


def write(path, count=30, labels=LABELS):
    """Row i has i cats, so that a batch tells which rows it holds."""
    rows = [['cat ' * i, 'it ran', labels[i % len(labels)], i / 2] for i in range(count)]
    write_table(path, ['first', 'second', 'answer', 'mark'], rows)
    return path


def open_files(path, pieces, **changes):
    settings = {'text_columns': ('first',), 'label_column': 'answer', 'batch_size': 4}
    return open_text_files(path=path and str(path), pieces=pieces, **(settings | changes))


def read_split(encoded):
    """(cats of each example, labels)."""
    return count_cats(encoded.take(np.arange(len(encoded)))).tolist(), encoded.labels


@pytest.mark.parametrize('suffix', ['tsv', 'csv', 'jsonl'])
def test_reads_a_folder(tmp_path, pieces, suffix):
    write(tmp_path / f'train.{suffix}', 9), write(tmp_path / f'val.{suffix}', 4)
    source = open_files(tmp_path, pieces)
    spec = source.spec
    assert (spec.class_names, spec.num_classes) == (('maybe', 'no', 'yes'), 3)
    assert (spec.num_train, spec.num_eval, spec.eval_splits, spec.metrics) == (9, 4, ('val',), ('accuracy',))
    for encoded, count in ((source.train, 9), (source.eval['val'], 4)):
        numbers, labels = read_split(encoded)
        assert numbers == list(range(count)) and labels.dtype == np.int32
        np.testing.assert_array_equal(labels, [(i + 1) % 3 for i in range(count)])


def test_reads_pairs_and_numbers(tmp_path, pieces):
    write(tmp_path / 'train.jsonl', 9), write(tmp_path / 'val.csv', 4)
    source = open_files(tmp_path, pieces, text_columns=['second', 'first'], label_column='mark', regression=True)
    spec = source.spec
    assert (spec.class_names, spec.num_classes, spec.metrics) == ((), 1, ('pearson', 'spearman'))
    numbers, labels = read_split(source.train)
    np.testing.assert_array_equal(labels, np.array(numbers, np.float32) / 2)
    assert labels.dtype == np.float32
    assert source.train.first_lengths.tolist() == [4] * 9  # [CLS] it ran [SEP]


def test_digests_are_those_of_the_texts_and_labels(tmp_path, pieces):
    digests = open_files(write(tmp_path / 'a.tsv'), pieces).spec.digests
    assert [*digests] == ['contents of train', 'contents of val']
    assert open_files(write(tmp_path / 'b.tsv'), pieces, seed=8).spec.digests == digests
    path = write(tmp_path / 'c.tsv', labels=['yes', 'no', 'no'])
    assert not set(open_files(path, pieces).spec.digests.items()) & set(digests.items())


def test_of_one_file_every_fifth_of_a_class_is_held_out(tmp_path, pieces):
    path = write(tmp_path / 'all.tsv')
    source = open_files(path, pieces)
    # Each class has ten of the 30 rows; row i is the (i // 3)th of its class, and those at 4 and 9 are held out.
    held = [12, 13, 14, 27, 28, 29]
    assert read_split(source.eval['val'])[0] == held
    assert read_split(source.train)[0] == [i for i in range(30) if i not in held]
    for encoded in (source.train, source.eval['val']):
        numbers, labels = read_split(encoded)
        np.testing.assert_array_equal(labels, [(i + 1) % 3 for i in numbers])
    regression = open_files(path, pieces, label_column='mark', regression=True, seed=7)
    assert read_split(regression.eval['val'])[0] == [4, 9, 14, 19, 24, 29]
    tenth = open_files(path, pieces, holdout=0.1)
    assert read_split(tenth.eval['val'])[0] == [27, 28, 29]
    with pytest.raises(BadInput, match=r'a list holds too few examples to set a share of 0\.2 of each class aside'):
        hold_out(make_examples(range(12)), 'a list', 0.2)
    assert len(hold_out(make_examples(range(13)), 'a list', 0.2)[1].labels) == 1


@pytest.mark.parametrize('name', ['dev.tsv', 'validation.jsonl'])
def test_other_names_of_the_evaluation_file(tmp_path, pieces, caplog, name):
    write(tmp_path / 'train.tsv'), write(tmp_path / name, 6)
    with caplog.at_level('INFO'):
        assert len(open_files(tmp_path, pieces).eval['val']) == 6
    assert f"evaluation uses '{tmp_path / name}'" in caplog.text
    refused(tmp_path, pieces, f'which has a {name.split(".")[0]} file, got 0.5', holdout=0.5)
    (tmp_path / name).unlink()
    assert len(open_files(tmp_path, pieces, holdout=0.5).eval['val']) == 15


def refused(path, pieces, message, **changes):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        open_files(path, pieces, **changes)
    assert '\n' not in str(caught.value)


def test_refuses_labels_and_names_of_columns(tmp_path, pieces):
    write(tmp_path / 'train.tsv', 6, labels=['yes', 'no']), write(tmp_path / 'val.tsv', 6)
    refused(tmp_path, pieces, f"{str(tmp_path / 'val.tsv')!r} line 4: label 'maybe' is not one of 'no', 'yes'")
    path = write(tmp_path / 'a.tsv')
    refused(path, pieces, "a.tsv' line 2: label 'no' is not a finite number (on_bad", regression=True)
    refused(write(path, labels=['yes', '']), pieces, "a.tsv' line 3: its label is empty")
    refused(write(path, labels=['yes']), pieces, f"column 'answer' of {str(path)!r} has only the label 'yes'")
    path = write(tmp_path / 'a.tsv')
    for names in ('first', (), ('',), ('first', 'second', 'answer'), ('first', 'first')):
        message = f'text_columns must be one or two different names of columns, got {names!r}'
        refused(path, pieces, message, text_columns=names)
    for name in ('', 'first'):
        message = f"label_column must name another column than text_columns ('first'), got {name!r}"
        refused(path, pieces, message, label_column=name)


def test_refuses_other_layouts(tmp_path, pieces):
    layout = 'a file (.tsv, .csv, .jsonl), or a folder with train and val, validation or dev as such files'
    for path in (None, ''):
        refused(path, pieces, f'path must name {layout}, got {path!r}')
    refused(tmp_path / 'none', pieces, f"none' does not exist: expected {layout}")
    refused(tmp_path, pieces, f'must hold one train file, got none of train.tsv, train.csv, train.jsonl: {layout}')
    write(tmp_path / 'train.tsv')
    refused(tmp_path, pieces, 'must hold one val file, got none of val.tsv')
    write(tmp_path / 'val.csv'), write(tmp_path / 'val.jsonl')
    refused(tmp_path, pieces, 'must hold one val file, got val.csv, val.jsonl')
