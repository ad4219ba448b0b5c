import re

import numpy as np
import pytest

from pad_jax.data.text_folder import open_text_files, read_unlabelled
from pad_jax.data.text_tables import write_table
from pad_jax.data.tokenization import open_vocabulary
from pad_jax.errors import BadInput
from tests.data.glue_miniatures import VOCABULARY, write_vocabulary

CAT = VOCABULARY.index('cat')
LABELS = ['no', 'yes', 'maybe']


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    return open_vocabulary(write_vocabulary(tmp_path_factory.mktemp('vocabulary')), 64)


def make_rows(count, labels=LABELS):
    """Row i has i cats, so that a batch tells which rows it holds."""
    return [['cat ' * i, 'it ran', labels[i % len(labels)], i / 2] for i in range(count)]


def write(path, count=30, **changes):
    write_table(path, ['first', 'second', 'answer', 'mark'], make_rows(count, **changes))
    return path


def open_files(path, pieces, **changes):
    settings = {'text_columns': ('first',), 'label_column': 'answer', 'batch_size': 4}
    return open_text_files(path=path if path is None else str(path), pieces=pieces, **(settings | changes))


def read_split(encoded):
    return (encoded.tokens.take(np.arange(len(encoded)), 64, 0)['tokens'] == CAT).sum(1).tolist(), encoded.labels


def test_says_where_each_class_is_first_seen(tmp_path, pieces):
    (tmp_path / 'train.csv').write_text('first,answer\n"it\nran",yes\na,no\nb,yes\nc,Yes\n')
    (tmp_path / 'val.csv').write_text('first,answer\na,no\n')
    spec = open_files(tmp_path, pieces).spec
    assert spec.class_names == ('Yes', 'no', 'yes')
    place = f'{str(tmp_path / "train.csv")!r} line'
    assert spec.first_seen == (('yes', f'{place} 2'), ('no', f'{place} 4'), ('Yes', f'{place} 6'))
    (tmp_path / 'train.csv').write_text('first,answer\na,1\nb,2\n')
    (tmp_path / 'val.csv').write_text('first,answer\na,2\n')
    assert open_files(tmp_path, pieces, regression=True).spec.first_seen == ()


@pytest.mark.parametrize('suffix', ['tsv', 'csv', 'jsonl'])
def test_reads_a_folder(tmp_path, pieces, suffix):
    write(tmp_path / f'train.{suffix}', 9), write(tmp_path / f'val.{suffix}', 4)
    source = open_files(tmp_path, pieces)
    spec = source.spec
    assert (spec.class_names, spec.num_classes, spec.regression) == (('maybe', 'no', 'yes'), 3, False)
    assert (spec.num_train, spec.num_eval, spec.eval_splits, spec.metrics) == (9, 4, ('val',), ('accuracy',))
    for encoded, count in ((source.train, 9), (source.eval['val'], 4)):
        numbers, labels = read_split(encoded)
        assert numbers == list(range(count))
        np.testing.assert_array_equal(labels, [(i + 1) % 3 for i in range(count)])
        assert labels.dtype == np.int32


def test_reads_pairs_and_numbers(tmp_path, pieces):
    write(tmp_path / 'train.jsonl', 9), write(tmp_path / 'val.csv', 4)
    source = open_files(tmp_path, pieces, text_columns=['second', 'first'], label_column='mark', regression=True)
    spec = source.spec
    assert (spec.class_names, spec.num_classes, spec.regression) == ((), 1, True)
    assert spec.metrics == ('pearson', 'spearman')
    numbers, labels = read_split(source.train)
    np.testing.assert_array_equal(labels, np.array(numbers, np.float32) / 2)
    assert labels.dtype == np.float32
    assert source.train.tokens.first_lengths.tolist() == [4] * 9  # [CLS] it ran [SEP]


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


def refused(path, pieces, message, **changes):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        open_files(path, pieces, **changes)
    assert '\n' not in str(caught.value)


def test_refuses_a_label_that_training_does_not_know(tmp_path, pieces):
    write(tmp_path / 'train.tsv', 6, labels=['yes', 'no']), write(tmp_path / 'val.tsv', 6)
    refused(tmp_path, pieces, f"{str(tmp_path / 'val.tsv')!r} line 4: label 'maybe' is not one of no, yes")


def test_refuses_labels_that_are_no_numbers_or_no_classes(tmp_path, pieces):
    path = write(tmp_path / 'a.tsv')
    refused(path, pieces, "a.tsv' line 2: label 'no' is not a number", regression=True)
    refused(write(tmp_path / 'b.tsv', labels=['yes', '']), pieces, "b.tsv' line 3: its label is empty")
    message = "column 'answer' of '" + str(tmp_path / 'c.tsv') + "' has only the label 'yes'"
    refused(write(tmp_path / 'c.tsv', labels=['yes']), pieces, message)


def test_refuses_missing_columns_and_names(tmp_path, pieces):
    path, columns = write(tmp_path / 'a.tsv'), "its columns are 'first', 'second', 'answer', 'mark'"
    refused(path, pieces, f"a.tsv' has no column 'text': {columns}", text_columns=['text'])
    refused(path, pieces, f"a.tsv' has no column 'label': {columns}", label_column='label')
    for names in ('first', (), ('',), ('first', 'second', 'answer')):
        message = f'text_columns must be one or two names of columns, got {names!r}'
        refused(path, pieces, message, text_columns=names)
    refused(path, pieces, "label_column must name a column, got ''", label_column='')
    message = 'text_columns and label_column must differ, got '
    refused(path, pieces, f"{message}'first', 'first' and 'answer'", text_columns=('first', 'first'))
    refused(path, pieces, f"{message}'first', 'answer' and 'answer'", text_columns=('first', 'answer'))


def test_refuses_too_few_examples_to_hold_any_out(tmp_path, pieces):
    path = write(tmp_path / 'a.tsv', 12)
    refused(path, pieces, 'holds too few examples to set every 5th of a class aside')
    write(path, 13)
    assert open_files(path, pieces).spec.num_eval == 1


def test_refuses_other_layouts(tmp_path, pieces):
    layout = 'a file (.tsv, .csv, .jsonl), or a folder with train and val as such files'
    for path in (None, ''):
        refused(path, pieces, f'path must name {layout}, got {path!r}')
    refused(tmp_path / 'none', pieces, f"none' does not exist: expected {layout}")
    message = f'must hold one train file, got no train.tsv, train.csv, train.jsonl: expected {layout}'
    refused(tmp_path, pieces, message)
    write(tmp_path / 'train.tsv')
    refused(tmp_path, pieces, 'must hold one val file, got no val.tsv')
    write(tmp_path / 'val.csv'), write(tmp_path / 'val.jsonl')
    refused(tmp_path, pieces, 'must hold one val file, got val.csv, val.jsonl')


def test_bad_rows_are_left_out_where_asked(tmp_path, pieces):
    path = write(tmp_path / 'a.tsv')
    with path.open('a') as file:
        file.write('cat\n')
    refused(path, pieces, "a.tsv' line 32: it has 1 fields, but there are 4 columns (on_bad='skip' leaves")
    source = open_files(path, pieces, on_bad='skip')
    assert (source.spec.num_train, source.spec.num_eval) == (24, 6)


def test_reads_texts_to_predict(tmp_path):
    path = tmp_path / 'new.jsonl'
    write_table(path, ['id', 'first'], [['x7', 'it ran'], ['x8', 'a cat']])
    examples = read_unlabelled(path, ('first',))
    assert (examples.texts, examples.labels, examples.ids) == ((['it ran', 'a cat'],), None, ['x7', 'x8'])
