import os
import re

import pytest

from pad_jax.data.text_tables import open_table, write_table
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


def test_tsv_without_a_header(tmp_path):
    path = write(tmp_path, 'a.tsv', '1\t2\n3\t4')
    assert read(path, 'b', columns=('a', 'b')) == [(1, ['2'], ''), (2, ['4'], '')]


def test_rows_with_missing_or_more_fields_say_so_and_the_rest_is_read(tmp_path):
    path = write(tmp_path, 'a.tsv', 'x\ty\n1\n\n1\t2\t3\n5\t6\n')
    problem = 'it has {} fields, but there are 2 columns'
    assert read(path) == [
        (2, None, problem.format(1)),
        (3, None, problem.format(1)),
        (4, None, problem.format(3)),
        (5, ['5', '6'], ''),
    ]


def test_csv_fields_span_lines_and_rows_know_where_they_begin(tmp_path):
    path = write(tmp_path, 'a.csv', 'x,y\n"a, ""b""\nc",1\nd,2\n')
    assert read(path) == [(2, ['a, "b"\nc', '1'], ''), (4, ['d', '2'], '')]


def test_csv_that_is_broken_says_where(tmp_path):
    refused(write(tmp_path, 'a.csv', 'x,y\n1,2\n"a"b,1\n'), 'line 3 is not CSV')
    refused(write(tmp_path, 'b.csv', 'x,y\n1,2\n3,"4\n5\n'), 'line 3 is not CSV')


def test_csv_takes_cells_of_any_length_and_empty_lines_as_tsv_does(tmp_path):
    long = 'a ' * 70_000
    for name in ('a.csv', 'a.tsv'):
        assert read(write(tmp_path, name, f'x\n{long}\n\nb\n')) == [(2, [long], ''), (3, [''], ''), (4, ['b'], '')]
    ((_, fields, problem),) = read(write(tmp_path, 'b.csv', 'x,y\n\n"a",b'))[:1]
    assert fields is None and problem == 'it has 1 fields, but there are 2 columns'


def test_what_may_be_missing_reads_as_empty(tmp_path):
    path = write(tmp_path, 'a.jsonl', '{"x": "a", "y": 1}\n{"x": null, "y": null}\n{"x": "b"}\n{"x": "c", "y": [2]}')
    rows = open_table(path).read_rows(['x', 'y'], optional=['y'])
    assert [row.problem or row.fields for row in rows] == [['a', '1'], "'x' is no text", ['b', ''], "'y' is no text"]


def test_json_lines_become_text(tmp_path):
    lines = ['{"x": "é", "y": 1, "z": [1]}', '{"y": true, "x": "\\u00e9\\n"}', '{"x": "b", "y": 2.5}']
    path = write(tmp_path, 'a.jsonl', '\n'.join(lines))
    assert open_table(path).columns == ('x', 'y', 'z')
    assert read(path, 'x', 'y') == [(1, ['é', '1'], ''), (2, ['é\n', 'true'], ''), (3, ['b', '2.5'], '')]


@pytest.mark.parametrize(
    'line, problem',
    [
        ('{"y": 1}', "it has no 'x'"),
        ('{"x": null}', "'x' is no text"),
        ('{"x": ["a"]}', "'x' is no text"),
        (r'{"x": "a \ud800"}', "'x' holds half a surrogate pair"),
        ('[1, 2]', 'it is not a JSON object'),
        ('', 'it is not JSON'),
        ('{"x": ', 'it is not JSON'),
        ('[' * 100_000, 'it is not JSON'),
    ],
)
def test_bad_json_lines_say_why(tmp_path, line, problem):
    path = write(tmp_path, 'a.jsonl', f'{{"x": "good"}}\n{line}\n{{"x": "too"}}\n')
    (_, *first), (number, fields, found), (_, *last) = read(path, 'x')
    assert (number, fields) == (2, None) and found.startswith(problem)
    assert (first, last) == ([['good'], ''], [['too'], ''])
    refused(write(tmp_path, 'b.jsonl', 'no\n{"x": "good"}'), 'line 1: it is not JSON', 'x')


@pytest.mark.parametrize('name', ['a.tsv', 'a.csv', 'a.jsonl'])
def test_a_missing_column_lists_those_there_are(tmp_path, name):
    path = tmp_path / name
    write_table(path, ['text', 'mark'], [['a', 'b']])
    refused(path, "has no column 'label': its columns are 'text', 'mark'", 'text', 'label')


def test_long_names_of_columns_are_cut(tmp_path):
    path = write(tmp_path, 'a.tsv', 'it ran ' * 1000 + '\tlabel\n')
    refused(path, f"its columns are '{('it ran ' * 6)[:39]}…', 'label'", 'text')


def test_an_ambiguous_column_is_refused_only_where_it_is_asked_for(tmp_path):
    path = write(tmp_path, 'a.tsv', 'x\ty\tx\n1\t2\t3\n')
    refused(path, "has more than one column 'x'", 'x')
    assert read(path, 'y') == [(2, ['2'], '')]


@pytest.mark.parametrize('name', ['a.tsv', 'a.csv', 'a.jsonl'])
@pytest.mark.parametrize('content', ['', '\n\n', ' \t\n', b'\xef\xbb\xbf'])
def test_an_empty_file_is_refused(tmp_path, name, content):
    refused(write(tmp_path, name, content), 'is empty')


@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
def test_what_is_not_utf8_is_refused_with_its_line(tmp_path, mark):
    path = write(tmp_path, 'a.tsv', mark + b'x\ty\n\xc3\xa9\t1\ncaf\xe9\t2\n')
    refused(path, 'line 3 is not UTF-8: byte 0xe9')


def test_what_cannot_be_read_is_refused(tmp_path):
    refused(tmp_path / 'none.tsv', 'No such file or directory')
    folder = tmp_path / 'folder.tsv'
    folder.mkdir()
    refused(folder, 'Is a directory')
    refused(tmp_path / 'a.xlsx', 'must end in one of .tsv, .csv, .jsonl')


@pytest.mark.parametrize('name', ['a.tsv', 'a.csv', 'a.jsonl'])
def test_what_is_written_reads_back(tmp_path, name):
    rows = [['"a', 'é'], ['', ' b,c ']] + ([] if name == 'a.tsv' else [['a\tb\nc', 'd"']])
    write_table(tmp_path / name, ['x', 'y z'], rows)
    assert [fields for _, fields, _ in read(tmp_path / name)] == rows
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize('field', ['a\tb', 'a\nb', 'a\rb'])
def test_tsv_refuses_to_write_what_it_cannot_hold(tmp_path, field):
    with pytest.raises(BadInput, match=re.escape(f'a TSV cannot hold {field!r}: name a .csv or .jsonl file')):
        write_table(tmp_path / 'a.tsv', ['x'], [[field]])
    assert not os.listdir(tmp_path)


def test_refuses_to_write_where_nothing_can_be_written(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"cannot write '.*a.tsv': '.*none' is not a folder"):
        write_table(tmp_path / 'none' / 'a.tsv', ['x'], [['a']])
    (tmp_path / 'folder.tsv').mkdir()
    with pytest.raises(BadInput, match=r"cannot write '.*folder.tsv': it is a folder"):
        write_table(tmp_path / 'folder.tsv', ['x'], [['a']])
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path)
    with pytest.raises(BadInput, match=r"cannot write '.*a.tsv': no permission to write into "):
        write_table(tmp_path / 'a.tsv', ['x'], [['a']])
