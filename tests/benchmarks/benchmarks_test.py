"""The benchmarks run, and their rows are of comparable networks."""

import importlib
import json
import math
import re

import jax
import pytest

from pad_jax.models import MODELS
from pad_jax.training.setup import abstract_variables, make_inputs, make_model
from tests.models.product_twin import count_products
from tests.training.tiny import ONE_BLOCK, ROOT


@pytest.fixture
def load(monkeypatch):
    """`load(name)`: the module of a benchmark, as when it is run as a script."""
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    for name in ('resnet10', 'resnet18'):
        monkeypatch.setitem(MODELS, name, ONE_BLOCK)
    yield lambda name: importlib.import_module(f'benchmarks.{name}')


def read_cells(text):
    """Cells of the rows of all tables."""
    rows = [line for line in text.splitlines() if line.startswith('│')]
    return [[cell.strip() for cell in re.split('[│┃]', row)[1:-1] if cell.strip()] for row in rows]


def test_input_has_a_speed_and_a_ratio_of_every_row(load, capsys):
    benchmark = load('input')
    benchmark.main(['--batches=1', '--batch-size=4', '--image-size=32', '--repeats=1'])
    rows = read_cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == [benchmark.DECODER, *benchmark.VARIANTS]
    assert rows[0][2] == '1.00' and all(int(row[1]) > 0 for row in rows)
    for _, speed, ratio in rows:
        assert float(ratio) == pytest.approx(int(speed) / int(rows[0][1]), rel=0.05, abs=0.02)


@pytest.mark.slow
def test_conv_measures_every_plan_and_granularity(load, monkeypatch, tmp_path, capsys):
    conv = load('conv')
    small = (conv.Shape(4, 8, 8, 3), conv.Shape(6, 4, 4, 3, 2, 4), conv.Shape(3, 8, 4, 1))
    monkeypatch.setattr(conv, 'SHAPES', {'resnet': small})
    flags = ['--granularities=element,output', '--modes=forward', '--repeats=1', '--batch-size=2']
    conv.main([*flags, f'--json={tmp_path / "conv.json"}'])
    out = capsys.readouterr().out
    for row in json.loads((tmp_path / 'conv.json').read_text())['shapes']:
        ratios = row['ratios']['forward']
        assert ratios.keys() == {'static', *conv.PLANS, 'element', 'output'} and row['shape'] in out
        assert all(0 < ratio < math.inf for ratio in ratios.values()) and row['auto'] in conv.PLANS
    assert 'best' in out and 'geometric mean' in out


@pytest.mark.slow
def test_deployment_prints_every_table(load, capsys):
    deployment = load('deployment')
    deployment.main(['--model=resnet10', '--image-size=64', '--repeats=1', '--plans=shift,outputs'])
    rows = read_cells(capsys.readouterr().out)
    memory, files, latency = rows[:4], rows[4:8], rows[8:]
    assert [row[0] for row in memory] == [row[0] for row in files] == list(deployment.FORMS)
    assert all(float(row[-1].removesuffix('%')) < 2 for row in memory)
    # Names and shapes weigh more in the file of a small network than in that of ResNet-18.
    assert all(0.98 < float(row[3]) < 1.05 for row in files)
    assert [row[0] for row in latency if row[0] in deployment.FORMS] == list(deployment.FORMS)
    # The static network has no plan, each other one two, of which the best stands beside its name.
    assert len(latency) == 1 + 3 * 2 and latency[0][1] == '-'


@pytest.mark.slow
def test_models_measures_and_prints_every_row(load, capsys):
    smallest = ('--models=resnet18', '--image-size=64', '--batch-size=2', '--repeats=1')
    load('models').main([*smallest, '--convs=dcd', '--rows=flax,pad,pad output compact'])
    out, err = capsys.readouterr()
    assert 'resnet18, 2 × 64², float32' in out and 'resnet18: 3 of 4 compiled, dcd pad, in ' in err
    cells = read_cells(out)
    assert [row for row, *_ in cells] == ['static', 'flax', 'dcd pad', 'dcd pad output compact']
    assert all(float(cell.removesuffix(' s')) > 0 for row in cells for cell in row[1:])
    assert cells[0][2] == cells[0][4] == '1.00'


def test_the_twin_in_plain_flax_has_as_many_parameters_and_products(load):
    models = load('models')
    config = models.load('resnet50', models.STATIC, models.parse_options(['--image-size=112', '--dtype=bfloat16']))
    ours, (image,) = models.build(config)
    twin = models.make_twin(ours)
    assert twin.dtype == 'bfloat16'
    variables = jax.eval_shape(lambda key, image: twin.init(key, image, train=False), jax.random.key(0), image)
    theirs = sorted(leaf.shape for leaf in jax.tree.leaves(variables['params']))
    expected = models.abstract_variables(ours, (image,))['params']
    assert theirs == sorted(leaf.shape for leaf in jax.tree.leaves(expected))
    apply = lambda variables, image: twin.apply(variables, image, train=False)  # noqa: E731
    assert count_products(apply, variables, image) == models.count_multiply_adds(ours, image)


@pytest.mark.slow
def test_lm_measures_every_row_and_its_twin_has_as_many_parameters(load, monkeypatch, capsys):
    lm = load('lm')
    tiny = ('num_layers=1', 'width=8', 'num_heads=2', 'ffn_width=4', 'max_length=8')
    monkeypatch.setitem(lm.SIZES, 'small', [*(f'model.{change}' for change in tiny), 'data.batch_size=4'])
    flags = ['--sizes=small', '--experts=4', '--repeats=1', '--set=data.max_length=8']
    lm.main(flags)
    out, err = capsys.readouterr()
    assert 'small: 8→4, 4 × 8 tokens' in out and 'small: compiling decoding, fully dynamic, E = 4' in err
    rows = read_cells(out)
    assert [row[:2] for row in rows[2:]] == [[row, '4'] for row in lm.MIXTURES]
    assert [row[0] for row in rows[:2]] == ['flax', 'dense'] and rows[1][2] == '1.00'
    assert [len(row) for row in rows] == [3, 5, 7, 4, 7]
    config = lm.load('small', ['model.ffn=dense'], lm.parse_options(flags))
    tokens = lm.make_batch(config)['tokens']
    shapes = jax.eval_shape(lm.make_twin(config).init, jax.random.key(0), tokens)['params']
    expected = abstract_variables(make_model(config), make_inputs(config))['params']
    theirs, ours = (sorted(leaf.shape for leaf in jax.tree.leaves(tree)) for tree in (shapes, expected))
    assert theirs == ours


@pytest.mark.slow
def test_growth_measures_every_row_of_every_panel(load, tmp_path, capsys):
    growth = load('growth')
    growth.main(['--repeats=1', '--values=1', f'--out={tmp_path / "growth.png"}'])
    rows = read_cells(capsys.readouterr().out)
    assert len(rows) == 3 * (len(growth.CONV_ROWS) + len(growth.MIXTURE_ROWS))
    assert all(float(row[3]) > 0 and float(row[4]) >= 1 for row in rows)
    assert (tmp_path / 'growth.png').stat().st_size > 10_000


@pytest.mark.slow
def test_peers_compute_the_same_and_are_measured(monkeypatch, capsys):
    pytest.importorskip('timm')
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    peers = importlib.import_module('benchmarks.peers')
    monkeypatch.setitem(peers.conv.SHAPES, 'resnet', (peers.conv.Shape(8, 64, 32, 3), peers.conv.Shape(6, 64, 48, 1)))
    peers.main(['--batch-size=2', '--images=2', '--image-size=64', '--repeats=1'])
    rows = read_cells(capsys.readouterr().out)
    convolutions, means, steps = rows[:4], rows[4:6], rows[6:]
    assert [row[1] for row in convolutions] == 2 * list(peers.conv.MODES) and len(convolutions[0]) >= 5
    for mean, mode in zip(means, peers.conv.MODES):
        ratios = [float(row[3].split()[0]) for row in convolutions if row[1] == mode]
        assert mean[1] == mode and min(ratios) - 0.01 <= float(mean[2]) <= max(ratios) + 0.01
    assert [row[0] for row in steps] == [*peers.STEP_ROWS, 'PyTorch', 'PyTorch, channels last']
    assert steps[3][2].startswith('1.00') and all(float(row[1]) > 0 for row in steps)
    with pytest.raises(AssertionError, match='outputs: pad_jax and its peer differ by'):
        peers.check_close('outputs', [1.0, 0.9], [1.0, 1.0])
