import pytest
from rich.console import Console
from rich.text import Text

from pad_jax.reports.tables import make_table, print_line, print_table


def test_lines_are_not_wrapped(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    print_line('κ ' * 200 + '[bold] 1')
    assert capsys.readouterr().out == 'κ ' * 200 + '[bold] 1\n'


@pytest.fixture
def table():
    found = make_table('Networks', ['network', 'convolutions'], ['seeds', 'accuracy in %', 'parameters', 'κ'])
    found.add_row('pad', 'partially dynamic, sensitivity', '12', '93.00 ± 2.08', '1,234,567', '0.2667')
    return found


def print_on_terminal(table, monkeypatch, capsys, width):
    def console(width=width, **options):
        return Console(width=width, **options, force_terminal=True, no_color=True, legacy_windows=False)

    monkeypatch.setattr('rich.console.Console', console)
    print_table(table)
    return Text.from_ansi(capsys.readouterr().out).plain


def test_a_wide_terminal_shows_the_whole_table_and_a_narrow_one_cuts_no_number(table, monkeypatch, capsys):
    text = print_on_terminal(table, monkeypatch, capsys, 100)
    assert '│ partially dynamic, sensitivity │' in text and 'accuracy in %' in text
    text = print_on_terminal(table, monkeypatch, capsys, 60)
    assert '…' not in text and '│' not in text
    assert all(len(line) <= 60 for line in text.splitlines())
    (row,) = (line for line in text.splitlines() if line.startswith('pad '))
    assert row.split()[-6:] == ['12', '93.00', '±', '2.08', '1,234,567', '0.2667']
    for word in ('partially', 'dynamic,', 'sensitivity', 'accuracy', '%'):
        assert word in text
