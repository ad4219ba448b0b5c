from pad_jax.reports.tables import print_line


def test_lines_are_not_wrapped(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    print_line('κ ' * 200 + '[bold] 1')
    assert capsys.readouterr().out == 'κ ' * 200 + '[bold] 1\n'
