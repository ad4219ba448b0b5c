"""The benchmarks run, and their rows are of comparable networks."""

import importlib
import math
import re

import jax
import pytest

from pad_jax.models import MODELS
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


# The smallest runs, and the first cells of the rows that they print.
SMALLEST = {
    'input': (['--batches=1', '--batch-size=4', '--image-size=32', '--repeats=1'], set()),
    'conv': (['--granularities=element,output', '--modes=forward', '--repeats=1', '--batch-size=2'], set()),
    'deployment': (['--model=resnet10', '--image-size=64', '--repeats=1', '--plans=shift,outputs'], set()),
    'models': (
        ['--models=resnet18', '--image-size=64', '--batch-size=2', '--repeats=1', '--convs=dcd', '--rows=flax,pad'],
        {'static', 'flax', 'dcd pad'},
    ),
}


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name == 'input' else pytest.mark.slow) for name in SMALLEST]
)
def test_a_benchmark_prints_every_row(load, monkeypatch, capsys, name):
    benchmark, (flags, expected) = load(name), SMALLEST[name]
    if name == 'conv':
        small = (benchmark.Shape(4, 8, 8, 3), benchmark.Shape(6, 4, 4, 3, 2, 4), benchmark.Shape(3, 8, 4, 1))
        monkeypatch.setattr(benchmark, 'SHAPES', {'resnet': small})
    if name == 'input':
        expected = {benchmark.DECODER, *benchmark.VARIANTS}
    if name == 'deployment':
        expected = set(benchmark.FORMS)
    benchmark.main(flags)
    rows = read_cells(capsys.readouterr().out)
    assert len(rows) >= 3 and expected <= {row[0] for row in rows}
    for row in rows:
        numbers = [float(cell) for cell in row[1:] if re.fullmatch(r'[\d.]+', cell)]
        assert numbers and all(0 < number < math.inf for number in numbers), row


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
