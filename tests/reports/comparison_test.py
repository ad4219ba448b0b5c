from pad_jax.reports.comparison import compare_networks
from pad_jax.reports.runs import read_network
from pad_jax.reports.tables import print_table
from tests.reports.miniature_runs import write_run


def cells(text, name):
    """Cells of the row that begins with a name."""
    line = next(line for line in text.splitlines() if line.startswith(f'│ {name} '))
    return [cell.strip() for cell in line.strip('│').split('│')]


def test_numbers_are_those_of_the_files(tmp_path, capsys):
    pad = [
        write_run(tmp_path / 'pad' / f'{seed}', seed=seed, accuracies=(0.1, last), seconds=seconds)
        for seed, (last, seconds) in enumerate([(0.90, 0.1), (0.92, 0.2), (0.97, 0.3)])
    ]
    static = [write_run(tmp_path / 'static', 'static', dynamic=None, accuracies=(0.1, 0.8), seconds=None)]
    table = compare_networks([read_network('static', static), read_network('pad', pad)])
    print_table(table)
    text = capsys.readouterr().out
    # mean 2.79 / 3 = 0.93, deviations −3, −1, 4 %: √(26 / 2) / √3 = 2.08 %
    # 30 positions, 8 dynamic: 22 + 4 · 8 + 7 others = 61 parameters, κ = 8 / 30, share 32 / 54
    expected = ['pad', 'partially dynamic, sensitivity', '3', '93.00 ± 2.08', '61', '0.2667', '0.5926', '0.2000']
    assert cells(text, 'pad') == expected
    assert cells(text, 'static') == ['static', 'static', '1', '80.00', '37', '0', '0', '–']


def test_nothing_is_cut_where_stdout_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    name = 'a_network_with_a_very_long_name_' * 3
    print_table(compare_networks([read_network(name, [write_run(tmp_path / 'a')])]))
    text = capsys.readouterr().out
    assert cells(text, name)[1] == 'partially dynamic, sensitivity'
    assert '…' not in text
    for word in ('accuracy in %', 'parameters', 'κ', 'dynamic share', 'seconds a step'):
        assert word in text
