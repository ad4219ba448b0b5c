import re

import numpy as np
import pytest

from pad_jax.data.text_examples import pack_labels, parse_class, parse_number, read_examples
from pad_jax.data.text_tables import open_table
from pad_jax.errors import BadInput

LINES = ['name\ttext\tindex\tlabel', 'n\ta b\t7\tyes', 'n\t\t8\tno', 'n\tc\t9\tyes']


def read(tmp_path, lines=LINES, **changes):
    path = tmp_path / 'some.tsv'
    path.write_text('\n'.join(lines))
    labelled = {'text_columns': ['text'], 'label_column': 'label', 'parse_label': parse_class(('no', 'yes'))}
    return read_examples(open_table(path), **(labelled | changes))


def test_reads_texts_and_labels(tmp_path):
    examples = read(tmp_path)
    assert examples.texts == (['a b', '', 'c'],)
    np.testing.assert_array_equal(examples.labels, [1, 0, 1])
    assert examples.labels.dtype == np.int32
    assert (examples.ids, examples.lines) == (['0', '1', '2'], [2, 3, 4])


def test_reads_pairs_in_the_order_asked_for(tmp_path):
    assert read(tmp_path, text_columns=('text', 'name')).texts == (['a b', '', 'c'], ['n', 'n', 'n'])


UNLABELLED = {'label_column': None, 'parse_label': None}


def read_json(tmp_path, lines, columns=('text',)):
    path = tmp_path / 'some.jsonl'
    path.write_text('\n'.join(lines))
    return read_examples(open_table(path), text_columns=columns)


@pytest.mark.parametrize('second', ['{"id": null, "text": "b"}', '{"text": "b"}', '{"id": "", "text": "b"}'])
def test_where_a_row_has_no_name_all_are_numbered(tmp_path, caplog, second):
    examples = read_json(tmp_path, ['{"id": 7, "text": "a"}', second])
    assert examples.ids == ['0', '1']
    assert f"{str(tmp_path / 'some.jsonl')!r} line 2 has no 'id': all rows are numbered from 0" in caplog.text


@pytest.mark.parametrize('second', ['{"text": "", "other": "b"}', '{"text": null, "other": "b"}', '{"other": "b"}'])
def test_rows_without_text_are_predicted_as_empty(tmp_path, caplog, second):
    lines = ['{"text": "a", "other": "a"}', second, '{"text": " ", "other": ""}']
    assert read_json(tmp_path, lines).texts == (['a', '', ' '],)
    assert "some.jsonl' has 2 rows without text, the first in line 2" in caplog.text
    assert read_json(tmp_path, lines, ('text', 'other')).texts == (['a', '', ' '], ['a', 'b', ''])
    # A column may lack all of its texts, as long as there is one in the other.
    assert read_json(tmp_path, lines[:0:-1], ('text', 'other')).texts == ([' ', ''], ['', 'b'])
    with pytest.raises(BadInput, match=r"all 2 texts in column 'text' of .*some.jsonl' are empty"):
        read_json(tmp_path, lines[:0:-1])
    with pytest.raises(BadInput, match=r"all 1 texts in column 'text' and 'other' of .*some.jsonl' are empty"):
        read_json(tmp_path, lines[2:], ('text', 'other'))


def test_what_is_to_be_predicted_has_no_row_to_leave_out(tmp_path):
    with pytest.raises(BadInput, match=r'line 6: it has 2 fields, but there are 4 columns$'):
        read(tmp_path, BAD, **UNLABELLED)


@pytest.mark.parametrize('name, ids', [('index', ['7', '8', '9']), ('id', ['7', '8', '9']), ('x', ['0', '1', '2'])])
def test_without_labels_rows_are_called_what_the_file_calls_them(tmp_path, name, ids):
    lines = [line.replace('index', name) for line in LINES]
    examples = read(tmp_path, lines, label_column=None, parse_label=None)
    assert examples.labels is None and examples.ids == ids


BAD = [*LINES, 'n\td\t10\tmaybe', 'n\te', 'n\tf\t12\tno']


@pytest.mark.parametrize(
    'lines, message',
    [
        (BAD, "line 5: label 'maybe' is not one of no, yes (on_bad='skip' leaves such rows out)"),
        ([*LINES, 'n\te'], 'line 5: it has 2 fields, but there are 4 columns'),
        ([*LINES, 'n\td\t10\t'], "line 5: label '' is not one of no, yes"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, lines, message):
    with pytest.raises(BadInput, match=re.escape(f'{str(tmp_path / "some.tsv")!r} {message}')):
        read(tmp_path, lines)


def test_bad_rows_are_left_out_where_asked_and_said(tmp_path, caplog):
    examples = read(tmp_path, BAD, on_bad='skip')
    assert examples.texts == (['a b', '', 'c', 'f'],)
    np.testing.assert_array_equal(examples.labels, [1, 0, 1, 0])
    assert (examples.ids, examples.lines) == (['0', '1', '2', '5'], [2, 3, 4, 7])
    assert re.search("left out 2 of 6 rows, the first: .* line 5: label 'maybe' is not one of", caplog.text)


def test_broken_rows_can_be_left_out_while_wrong_labels_stop(tmp_path):
    lines = [*LINES, 'n\te']
    assert len(read(tmp_path, lines, on_broken='skip').ids) == 3
    with pytest.raises(BadInput, match="line 6: label 'maybe'"):
        read(tmp_path, [*lines, 'n\td\t10\tmaybe'], on_broken='skip')


def test_refuses_a_table_without_rows_or_without_good_ones(tmp_path, caplog):
    with pytest.raises(BadInput, match=r"some.tsv' holds no row below its header"):
        read(tmp_path, LINES[:1])
    with pytest.raises(BadInput, match=r"not one of the 2 rows of .*some.tsv' is good, the first: .* line 2: it has"):
        read(tmp_path, [LINES[0], 'a', 'b'], on_bad='skip')
    assert not caplog.text  # It is all in the error.


def test_refuses_texts_that_are_all_empty(tmp_path):
    lines = [line.replace('n\t', ' \t') for line in LINES]
    with pytest.raises(BadInput, match=r"all 3 texts in column 'name' of .*some.tsv' are empty"):
        read(tmp_path, lines, text_columns=['text', 'name'])


def test_refuses_a_missing_label_column(tmp_path):
    message = "has no column 'mark': its columns are 'name', 'text', 'index', 'label'"
    with pytest.raises(BadInput, match=message):
        read(tmp_path, label_column='mark')


def test_numbers_are_float32_and_finite():
    labels = pack_labels([parse_number()(text) for text in ('1', '-2.5', '1e3')])
    np.testing.assert_array_equal(labels, np.array([1, -2.5, 1000], np.float32))
    assert labels.dtype == np.float32
    for text in ('nan', 'inf', '-inf', '1e300'):
        with pytest.raises(ValueError, match=f'label {text!r} is not a finite number in '):
            parse_number()(text)
    for text in ('good', '', '1_0', '١٢', '３', '0x1'):
        with pytest.raises(ValueError, match=f'label {text!r} is not a number'):
            parse_number()(text)


@pytest.mark.parametrize('text', ['-0.001', '5.001', 'nan'])
def test_numbers_outside_the_range_are_refused(text):
    with pytest.raises(ValueError, match=rf"label '{text}' is not a finite number in \[0, 5\]"):
        parse_number(0, 5)(text)
    assert parse_number(0, 5)('5.000') == 5 and parse_number(0, 5)('0') == 0


def test_a_long_list_of_labels_is_cut():
    with pytest.raises(ValueError, match=r"label 'x' is not one of 0, 1, .*, 19, \.\.\. \(300 labels\)$"):
        parse_class([str(i) for i in range(300)])('x')


def test_long_labels_are_cut():
    long = 'it ran ' * 1000
    for parse in (parse_class(('no', long)), parse_number(), parse_number(0, 5)):
        for text in (long[1:], '9' * 5000):
            with pytest.raises(ValueError, match='…') as caught:
                parse(text)
            assert len(str(caught.value)) < 150
