"""Tables of text: rows with their lines, labelled examples, texts to predict, and files that are written."""

import functools
import os
import re

import numpy as np
import pytest

from pad_jax.data.tables import (
    SUFFIXES,
    check_fields,
    open_table,
    parse_class,
    parse_number,
    read_examples,
    read_unlabelled,
    split_names,
    write_table,
)
from pad_jax.errors import BadInput


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, *names, columns=None):
    table = open_table(path, columns)
    return [tuple(row) for row in table.read_rows(names or table.columns)]


def refused(path, message, *names):
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        read(path, *names)
    assert '\n' not in str(caught.value) and str(path) in str(caught.value)


def test_tsv_takes_quotation_marks_and_odd_line_ends_as_text(tmp_path):
    path = write(tmp_path, 'a.tsv', 'x\ty\n"\t a "b\nc\u2028d\x85e\t\n')
    assert read(path) == [(2, ['"', ' a "b'], ''), (3, ['c\u2028d\x85e', ''], '')]


@pytest.mark.parametrize('end', ['', '\n', '\r\n', '\n\n\n'])
@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
def test_tsv_with_any_end_and_mark(tmp_path, end, mark):
    path = write(tmp_path, 'a.tsv', mark + f'x\ty\r\n1\t2{end}'.encode())
    assert read(path, 'y', 'x') == [(2, ['2', '1'], '')]
    assert read(path, 'b', columns=('a', 'b')) == [(1, ['y'], ''), (2, ['2'], '')]


def test_rows_with_missing_or_more_fields_say_so_and_the_others_are_read(tmp_path):
    path = write(tmp_path, 'a.tsv', 'x\ty\n1\n\n1\t2\t3\n5\t6\n')
    problems = [f'it has {count} fields, but there are 2 columns' for count in (1, 1, 3)]
    bad = [(line, None, problem) for line, problem in enumerate(problems, 2)]
    assert read(path) == [*bad, (5, ['5', '6'], '')]


def test_csv_fields_of_any_length_span_lines(tmp_path):
    path = write(tmp_path, 'a.csv', 'x,y\n"a, ""b""\nc",1\nd,2\n')
    assert read(path) == [(2, ['a, "b"\nc', '1'], ''), (4, ['d', '2'], '')]
    refused(write(tmp_path, 'a.csv', 'x,y\n1,2\n"a"b,1\n'), 'line 3 is not CSV')
    refused(write(tmp_path, 'b.csv', 'x,y\n1,2\n3,"4\n5\n'), 'line 3 is not CSV')
    long = 'a ' * 70_000
    for name in ('a.csv', 'a.tsv'):
        assert read(write(tmp_path, name, f'x\n{long}\n\nb\n')) == [(2, [long], ''), (3, [''], ''), (4, ['b'], '')]


def test_json_lines_become_text_and_all_their_keys_are_columns(tmp_path):
    lines = ['{"x": "é", "y": 1, "z": [1]}', '{"y": true, "x": "\\u00e9\\n"}', '{"x": "b", "y": 2.5}', '{"x": null}']
    path = write(tmp_path, 'a.jsonl', '\n'.join(lines))
    assert open_table(path).columns == ('x', 'y', 'z')
    rows = [(1, ['é', '1'], ''), (2, ['é\n', 'true'], ''), (3, ['b', '2.5'], '')]
    assert read(path, 'x', 'y') == [*rows, (4, None, "'x' is not text")]
    optional = list(open_table(path).read_rows(['x', 'y'], optional=['x', 'y']))
    assert optional == [*rows, (4, ['', ''], '')]
    path = write(tmp_path, 'b.jsonl', 'no\n{"y": 1}\n{"x": "good"}')
    assert open_table(path).columns == ('y', 'x')
    (_, _, problem), *others = read(path, 'x')
    assert problem.startswith('it is not JSON') and others == [(2, None, "it has no 'x'"), (3, ['good'], '')]
    assert [row[1] for row in read(write(tmp_path, 'c.jsonl', 'no\n[]'), 'x')] == [None, None]


@pytest.mark.parametrize(
    'line, problem',
    [
        ('{"y": 1}', "it has no 'x'"),
        ('{"x": ["a"]}', "'x' is not text"),
        (r'{"x": "a \ud800"}', "'x' holds half a surrogate pair"),
        ('[1, 2]', 'it is not a JSON object'),
        ('', 'it is not JSON'),
        ('[' * 100_000, 'it is not JSON'),
    ],
)
def test_bad_json_lines_say_why(tmp_path, line, problem):
    path = write(tmp_path, 'a.jsonl', f'{{"x": "good"}}\n{line}\n{{"x": "too"}}\n')
    (_, *first), (number, fields, found), (_, *last) = read(path, 'x')
    assert (number, fields) == (2, None) and found.startswith(problem)
    assert (first, last) == ([['good'], ''], [['too'], ''])


def test_blanks_and_accents_of_names_do_not_matter(tmp_path):
    """The header is "label, texte é", with the accent as a character of its own."""
    for name, content in (('a.csv', 'label, texte e\u0301\nyes,no\n'), ('a.tsv', 'label \ttexte e\u0301\nyes\tno')):
        assert read(write(tmp_path, name, content), 'texte \u00e9', ' label') == [(2, ['no', 'yes'], '')]
    path = write(tmp_path, 'b.csv', 'label, "texte, cru"\nyes, "no, never"\n')
    assert read(path, 'texte, cru', 'label') == [(2, ['no, never', 'yes'], '')]
    path = write(tmp_path, 'a.jsonl', '{" x": "one"}\n{"x": "a", "x ": "b"}')
    twice = 'two of its keys differ in blanks or accents only'
    assert read(path, 'x ') == [(1, ['one'], ''), (2, None, twice)]
    assert parse_class('e\u0301', ['\u00e9']) == 0


def test_names_are_split_as_a_line_of_csv():
    assert split_names(' first, "second, raw" ,third') == ('first', 'second, raw', 'third')
    assert split_names('') == ()
    with pytest.raises(BadInput, match='must be names with commas between them'):
        split_names('a\nb')


def test_missing_and_ambiguous_columns_are_refused_only_if_they_are_needed(tmp_path):
    path = write(tmp_path, 'a.tsv', 'it ran ' * 1000 + '\ty\ty\n1\t2\t3\n')
    refused(path, f"has no column 'text': its columns are '{('it ran ' * 6)[:39]}…', 'y', 'y'", 'text')
    refused(path, "has more than one column 'y'", 'y')
    assert read(path, 'it ran ' * 1000) == [(2, ['1'], '')]


@pytest.mark.parametrize('name', ['a.tsv', 'a.csv', 'a.jsonl'])
def test_what_is_written_reads_back(tmp_path, name):
    rows = [['"a', 'é'], ['', ' b,c ']] + ([] if name == 'a.tsv' else [['a\tb\nc', 'd"']])
    write_table(tmp_path / name, ['x', 'y z'], rows)
    assert [fields for _, fields, _ in read(tmp_path / name)] == rows
    assert os.listdir(tmp_path) == [name]
    for content in ('', '\n\n', ' \t\n', b'\xef\xbb\xbf'):
        refused(write(tmp_path, name, content), 'is empty')


def test_what_cannot_be_read_is_refused(tmp_path):
    for mark in (b'', b'\xef\xbb\xbf'):
        path = write(tmp_path, 'a.tsv', mark + b'x\ty\n\xc3\xa9\t1\ncaf\xe9\t2\n')
        refused(path, 'line 3 is not UTF-8: byte 0xe9')
    refused(tmp_path / 'none.tsv', 'No such file or directory')
    refused(tmp_path / 'a.xlsx', 'must end in one of .tsv, .csv, .jsonl')
    (tmp_path / 'folder.tsv').mkdir()
    refused(tmp_path / 'folder.tsv', 'Is a directory')


def test_refuses_to_write_where_nothing_can_be_written(tmp_path, monkeypatch):
    for field in ('a\tb', 'a\nb', 'a\rb'):
        with pytest.raises(BadInput, match=re.escape(f'a TSV cannot hold {field!r}. Name a .csv or .jsonl file')):
            write_table(tmp_path / 'a.tsv', ['x'], [[field]])
    for suffix in SUFFIXES:  # the name of a photo
        with pytest.raises(BadInput, match=r"'\\udcff\.png' is not UTF-8\. Rename it"):
            check_fields(tmp_path / f'a{suffix}', ['a.png', os.fsdecode(b'\xff.png')])
    with pytest.raises(BadInput, match=r"cannot write '.*a.tsv': '.*none' is not a folder that you may write into"):
        write_table(tmp_path / 'none' / 'a.tsv', ['x'], [['a']])
    (tmp_path / 'folder.tsv').mkdir()
    with pytest.raises(BadInput, match=r"cannot write '.*folder.tsv': it is a folder"):
        write_table(tmp_path / 'folder.tsv', ['x'], [['a']])
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path)
    with pytest.raises(BadInput, match=r"cannot write '.*a.tsv': .* is not a folder that you may write into"):
        write_table(tmp_path / 'a.tsv', ['x'], [['a']])
    assert os.listdir(tmp_path) == ['folder.tsv']


LINES = ['name\ttext\tindex\tlabel', 'n\ta b\t7\tyes', 'n\t\t8\tno', 'n\tc\t9\tyes']
BAD = [*LINES, 'n\td\t10\tmaybe', 'n\te', 'n\tf\t12\tno']


def examples_of(tmp_path, lines=LINES, **changes):
    table = open_table(write(tmp_path, 'some.tsv', '\n'.join(lines)))
    settings = {
        'text_columns': ['text'],
        'label_column': 'label',
        'parse_label': functools.partial(parse_class, names=('no', 'yes')),
    }
    return read_examples(table, **(settings | changes))


def test_reads_texts_and_labels(tmp_path):
    examples = examples_of(tmp_path)
    assert examples.texts == (['a b', '', 'c'],)
    np.testing.assert_array_equal(examples.labels, [1, 0, 1])
    assert examples.labels.dtype == np.int32
    assert examples_of(tmp_path, text_columns=('text', 'name')).texts == (['a b', '', 'c'], ['n', 'n', 'n'])


@pytest.mark.parametrize(
    'lines, message',
    [
        (BAD, "line 5: label 'maybe' is not one of 'no', 'yes' (on_bad='skip' leaves such rows out)"),
        ([*LINES, 'n\te'], 'line 5: it has 2 fields, but there are 4 columns'),
        ([*LINES, 'n\td\t10\t'], "line 5: label '' is not one of 'no', 'yes'"),
        (LINES[:1], 'holds no row below its header'),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, lines, message):
    with pytest.raises(BadInput, match=re.escape(f'{str(tmp_path / "some.tsv")!r} {message}')):
        examples_of(tmp_path, lines)


def test_bad_rows_are_left_out_where_asked_and_said(tmp_path, caplog):
    with pytest.raises(BadInput, match=r"none of the 2 rows of .*some.tsv' is good, the first: .* line 2: it has"):
        examples_of(tmp_path, [LINES[0], 'a', 'b'], on_bad='skip')
    assert not caplog.text  # The error says it.
    examples = examples_of(tmp_path, BAD, on_bad='skip')
    assert examples.texts == (['a b', '', 'c', 'f'],)
    np.testing.assert_array_equal(examples.labels, [1, 0, 1, 0])
    assert re.search("left out 2 of 6 rows, the first: .* line 5: label 'maybe' is not one of", caplog.text)
    with pytest.raises(BadInput, match="on_bad must be one of stop, skip, got 'ignore'"):
        examples_of(tmp_path, on_bad='ignore')
    lines = [*LINES, 'n\te']
    assert len(examples_of(tmp_path, lines, skip_broken=True).labels) == 3
    with pytest.raises(BadInput, match="line 6: label 'maybe'"):
        examples_of(tmp_path, [*lines, 'n\td\t10\tmaybe'], skip_broken=True)


def test_refuses_texts_that_are_all_empty(tmp_path):
    lines = [line.replace('n\t', ' \t') for line in LINES]
    with pytest.raises(BadInput, match=r"all 3 texts in column 'name' of .*some.tsv' are empty"):
        examples_of(tmp_path, lines, text_columns=['text', 'name'])


def unlabelled(tmp_path, lines, *columns, name='some.jsonl'):
    return read_unlabelled(open_table(write(tmp_path, name, '\n'.join(lines))), columns or ('text',))


@pytest.mark.parametrize('name, ids', [('index', ['7', '8', '9']), ('id', ['7', '8', '9']), ('x', ['0', '1', '2'])])
def test_rows_to_predict_are_called_what_the_file_calls_them(tmp_path, name, ids):
    lines = [line.replace('index', name) for line in LINES]
    assert unlabelled(tmp_path, lines, name='some.tsv') == ((['a b', '', 'c'],), ids)
    with pytest.raises(BadInput, match=r'line 6: it has 2 fields, but there are 4 columns$'):
        unlabelled(tmp_path, BAD, name='some.tsv')


@pytest.mark.parametrize('second', ['{"id": null, "text": "b"}', '{"text": "b"}', '{"id": "", "text": "b"}'])
def test_where_a_row_has_no_name_all_are_numbered(tmp_path, caplog, second):
    assert unlabelled(tmp_path, ['{"id": 7, "text": "a"}', second])[1] == ['0', '1']
    assert f"{str(tmp_path / 'some.jsonl')!r} has rows without 'id': all rows are numbered from 0" in caplog.text


@pytest.mark.parametrize('second', ['{"text": "", "other": "b"}', '{"text": null, "other": "b"}', '{"other": "b"}'])
def test_rows_without_text_are_predicted_as_empty(tmp_path, second):
    lines = ['{"text": "a", "other": "a"}', second, '{"text": " ", "other": ""}']
    assert unlabelled(tmp_path, lines)[0] == (['a', '', ' '],)
    # A column may lack all of its texts if the other has one.
    assert unlabelled(tmp_path, lines[:0:-1], 'text', 'other')[0] == ([' ', ''], ['', 'b'])
    with pytest.raises(BadInput, match=r"all 2 texts in column 'text' of .*some.jsonl' are empty"):
        unlabelled(tmp_path, lines[:0:-1])
    with pytest.raises(BadInput, match=r"all 1 texts in column 'text' and 'other' of .*some.jsonl' are empty"):
        unlabelled(tmp_path, lines[2:], 'text', 'other')


def test_labels_are_finite_numbers_or_classes_and_cut_in_messages():
    assert [parse_number(text) for text in ('1', '-2.5', '1e3')] == [1, -2.5, 1000]
    for text in ('nan', 'inf', '-inf', '1e300', 'good', '', '0x1'):
        with pytest.raises(ValueError, match=f'label {text!r} is not a finite number$'):
            parse_number(text)
    for text in ('-0.001', '5.001', 'nan'):
        with pytest.raises(ValueError, match=rf"label '{text}' is not a finite number in \[0, 5\]"):
            parse_number(text, 0, 5)
    assert parse_number('5.000', 0, 5) == 5 and parse_number('0', 0, 5) == 0
    with pytest.raises(ValueError, match=r"label 'x' is not one of '0', '1', .*, '19' and 280 more$"):
        parse_class('x', [str(i) for i in range(300)])
    long = 'it ran ' * 1000
    for parse in (functools.partial(parse_class, names=('no', long)), parse_number):
        for text in (long[1:], '9' * 5000):
            with pytest.raises(ValueError, match='…') as caught:
                parse(text)
            assert len(str(caught.value)) < 150
