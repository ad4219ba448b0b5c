"""The demo from end to end, with a network of one block and a few steps; and its table."""

import json

import pytest

from pad_jax.models import MODELS
from pad_jax.reports.compare import compare_networks
from pad_jax.reports.demo import HALVES, run_demo
from pad_jax.reports.runs import read_network
from pad_jax.reports.tables import print_table
from tests.reports.miniature_runs import cells, write_run
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ONE_BLOCK, ROOT, SMALL
from tests.training.tiny_language import write_corpus

CONFIGS = ROOT / 'configs'
SHORT = {'train.steps': 4, 'train.eval_every_steps': 2, 'train.checkpoint_every_steps': 4, 'data.batch_size': 32}
OVERRIDES = [f'{name}={value}' for name, value in (SMALL | SHORT).items()]


@pytest.fixture
def quick_compilation():
    """Compile quickly, because there are few steps."""
    with compiled_quickly():
        yield


@pytest.mark.usefixtures('quick_compilation')
def test_from_nothing_to_table_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)
    # One of the four networks.
    monkeypatch.setitem(HALVES, 'digits', HALVES['digits']._replace(networks=('random',)))
    run_demo(tmp_path, CONFIGS, 2, 'digits', OVERRIDES)
    output = capsys.readouterr()
    folders = [tmp_path / 'digits' / 'random' / f'seed_{seed}' for seed in range(2)]
    totals = json.loads((folders[0] / 'partition.json').read_text())['totals']
    last = [json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1]) for folder in folders]
    assert [row['step'] for row in last] == [4, 4]
    found = cells(output.out, 'random')
    assert found[2] == '2'
    assert found[3].startswith(f'{100 * sum(row["accuracy"] for row in last) / 2:.2f} ± ')
    assert found[4] == f'{totals["parameters"]:,}'
    assert float(found[5]) == pytest.approx(totals['dynamic_fraction'], abs=1e-4)
    assert float(found[6]) == pytest.approx(totals['dynamic_share'], abs=1e-4)
    for name in ('training_curves.png', 'dynamic_fractions.png'):
        assert (tmp_path / 'digits' / name).read_bytes()[:4] == b'\x89PNG'
        assert str(tmp_path / 'digits' / name) in output.out
    assert '2 runs' in output.err
    assert 'run 1 of 2, digits random, seed 0: done: ' in output.err and '\n1 run left, ' in output.err
    assert 'run 2 of 2, digits random, seed 1: done: ' in output.err and '\nall runs are done, ' in output.err

    # A second call keeps finished runs unchanged.
    before = {path: path.read_bytes() for path in tmp_path.rglob('metrics.jsonl')}
    run_demo(tmp_path, CONFIGS, 2, 'digits', OVERRIDES)
    assert capsys.readouterr().out == output.out
    assert {path: path.read_bytes() for path in tmp_path.rglob('metrics.jsonl')} == before


@pytest.mark.usefixtures('quick_compilation')
def test_language_models_are_compared_by_loss_and_parameters(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(HALVES, 'lm', HALVES['lm']._replace(networks=('pad',)))
    small = ['data.name=corpus', f'data.path={write_corpus(tmp_path / "corpus")}', 'train.steps=3', 'model.width=16']
    run_demo(tmp_path, CONFIGS, 1, 'lm', [*small, 'optim.warmup_steps=1', 'partition.batches=1', 'model.num_layers=1'])
    output = capsys.readouterr().out
    rows = {name: cells(output, name) for name in HALVES['lm'].networks}
    for name, row in rows.items():
        metrics = (tmp_path / 'lm' / name / 'seed_0' / 'metrics.jsonl').read_text().splitlines()
        assert row[3] == f'{json.loads(metrics[-1])["loss"]:.4f}'
    for name in ('training_curves.png', 'dynamic_fractions.png', 'loss_against_parameters.png'):
        assert (tmp_path / 'lm' / name).read_bytes()[:4] == b'\x89PNG'


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
