"""The benchmark of whole training steps: that it runs, and that its rows are of comparable networks."""

import importlib
import re

import jax
import pytest

from pad_jax.models import MODELS
from tests.models.product_twin import count_products
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ONE_BLOCK, ROOT

SMALLEST = ('--models=resnet18', '--image-size=64', '--batch-size=2', '--repeats=1')


@pytest.fixture
def models(monkeypatch):
    # As when it is run as a script.
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    return importlib.import_module('benchmarks.models')


@pytest.mark.slow
def test_every_row_is_measured_and_printed(models, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, 'resnet18', ONE_BLOCK)
    with compiled_quickly():
        models.main([*SMALLEST, '--convs=dcd', '--rows=flax,pad,pad output compact'])
    out, err = capsys.readouterr()
    assert 'resnet18, 2 × 64², float32' in out
    cells = [re.findall(r'[^│┃\s][^│┃]*[^│┃\s]', line) for line in out.splitlines() if line.startswith('│')]
    assert [row for row, *_ in cells] == ['static', 'flax', 'dcd pad', 'dcd pad output compact']
    assert all(float(cell.removesuffix(' s')) > 0 for row in cells for cell in row[1:])
    assert cells[0][2] == cells[0][4] == '1.00'
    assert 'resnet18: 3 of 4 compiled, dcd pad, in ' in err


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_the_twin_in_plain_flax_has_as_many_parameters_and_products(models, name):
    config = models.load(name, models.STATIC, models.parse_options(['--image-size=112', '--dtype=bfloat16']))
    ours, (image,) = models.build(config)
    twin = models.make_twin(ours)
    assert twin.dtype == 'bfloat16'
    variables = jax.eval_shape(lambda key, image: twin.init(key, image, train=False), jax.random.key(0), image)
    theirs = sorted(leaf.shape for leaf in jax.tree.leaves(variables['params']))
    expected = models.abstract_variables(ours, (image,))['params']
    assert theirs == sorted(leaf.shape for leaf in jax.tree.leaves(expected))
    apply = lambda variables, image: twin.apply(variables, image, train=False)  # noqa: E731
    products = count_products(apply, variables, image)
    assert products == models.count_multiply_adds(ours, image)


def test_the_twin_that_is_no_twin_is_noticed(models, monkeypatch):
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)
    config = models.load('resnet10', models.STATIC, models.parse_options(['--image-size=64', '--batch-size=2']))
    monkeypatch.setattr(models, 'make_twin', lambda ours: models.FlaxResNet((1,), False, 999, 'float32'))
    with pytest.raises(AssertionError, match='parameters in plain Flax'):
        models.prepare_flax_step(config, 2)


@pytest.mark.parametrize('flag', ['--rows=fast', '--convs=static', '--models=vgg', '--image-size=32', '--repeats=0'])
def test_a_wrong_flag_says_what_is_allowed(models, capsys, flag):
    with pytest.raises(SystemExit):
        models.parse_options([flag])
    assert flag.split('=')[0] + ' must be' in capsys.readouterr().err
