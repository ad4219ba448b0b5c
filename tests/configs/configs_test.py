"""Every config file builds, and its diff from its base is what its docstring says."""

import ast

import jax
import jax.numpy as jnp
import pytest

from pad_jax.data import CHANNELS, SOURCES
from pad_jax.partition import report_counts
from pad_jax.training.configuration import RULES, flatten, is_partial, load_config
from pad_jax.training.setup import (
    abstract_variables,
    make_exclusions,
    make_model,
    make_run_optimizer,
    measure_lengths,
    open_source,
    plan_layers,
)
from pad_jax.training.state import abstract_state
from tests.training.tiny import DIGITS, ROOT, small_config

FILES = sorted(path for path in (ROOT / 'configs').rglob('*.py') if path.name != '__init__.py')
NAMES = [str(path.relative_to(ROOT / 'configs')) for path in FILES]
REQUIRED = {
    'digits_resnet10_pad.py',
    'cifar_resnet10_pad.py',
    *(f'imagenet_resnet{depth}_pad.py' for depth in (10, 18, 50)),
}

# file: (its base, the keys that differ).
ONE_KEY = {
    'digits_resnet10_static.py': ('digits_resnet10_pad.py', {'model.conv': 'static'}),
    'digits_resnet10_dynamic.py': ('digits_resnet10_pad.py', {'partition.dynamic_fraction': 1.0}),
    'digits_resnet10_random.py': ('digits_resnet10_pad.py', {'partition.criterion': 'random'}),
    'imagenet_resnet10_pad.py': ('imagenet_resnet50_pad.py', {'model.name': 'resnet10'}),
    'imagenet_resnet18_pad.py': ('imagenet_resnet50_pad.py', {'model.name': 'resnet18'}),
}


def load(name, *overrides):
    return load_config(str(ROOT / 'configs' / name), overrides)


def test_the_files_that_are_promised_exist():
    assert set(NAMES) >= REQUIRED | ONE_KEY.keys()


@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_and_runs_under_eval_shape(name):
    config = load(name)
    assert flatten(config).keys() == RULES.keys()
    model, size = make_model(config), config.data.image_size
    shape = (size, size, CHANNELS[config.data.name])
    optimizer = make_run_optimizer(config, measure_lengths(config, 1_281_167))
    state = abstract_state(model, optimizer, shape)
    images = jax.ShapeDtypeStruct((8, *shape), jnp.float32)
    logits, _ = jax.eval_shape(lambda state, images: model.apply(state.variables, images, 2.0), state, images)
    assert logits.shape == (8, config.model.num_classes) and logits.dtype == jnp.float32
    report = report_counts(plan_layers(config))
    fraction = config.partition.dynamic_fraction if config.model.conv != 'static' else 0
    assert report['dynamic_fraction'] == pytest.approx(fraction, abs=1e-4)
    partial = config.model.conv != 'static' and config.partition.dynamic_fraction < 1
    assert len(jax.tree.leaves(state.masks)) == (len(make_exclusions(config).roles(state.masks)) if partial else 0)


@pytest.mark.parametrize('name', ONE_KEY)
def test_an_ablation_is_the_diff_that_it_says(name):
    base, expected = ONE_KEY[name]
    old, new = flatten(load(base)), flatten(load(name))
    assert {key: new[key] for key in new if new[key] != old[key]} == expected


@pytest.mark.parametrize('name', NAMES)
def test_a_config_says_its_own_command(name):
    text = ast.get_docstring(ast.parse((ROOT / 'configs' / name).read_text()))
    assert f'python train.py --config=configs/{name} --workdir=' in text
    assert ('--config.data.path=' in text) == (load(name).data.name == 'folder')


@pytest.mark.parametrize('name', NAMES)
def test_get_config_gives_a_new_object_each_time(name):
    load(name).train.seed = 17
    assert load(name).train.seed == 0


def test_channels_are_known_of_every_source():
    assert CHANNELS.keys() == SOURCES.keys()
    assert open_source(small_config()).spec.image_shape[-1] == CHANNELS['digits']


@pytest.mark.parametrize('name', ['digits_resnet10_pad.py', *ONE_KEY])
def test_parameters_are_counted_as_they_are_trained(name):
    config = load(name)
    size = config.data.image_size
    params = abstract_variables(make_model(config), (size, size, CHANNELS[config.data.name]))['params']
    trained = sum(leaf.size for leaf in jax.tree.leaves(params))
    layers = plan_layers(config)
    if is_partial(config):
        # Training holds both modes of every position; what is counted is the one that is alive.
        dead = sum(
            layer.dynamic_positions + layer.num_factors * (layer.positions - layer.dynamic_positions)
            for layer in layers
        )
    else:
        dead = 0
    assert report_counts(layers)['parameters'] + dead == trained


def test_the_stem_of_the_digits_has_one_channel():
    stem = next(layer for layer in plan_layers(load(DIGITS.name)) if layer.name == 'stem_conv')
    assert stem.other_parameters == 3 * 3 * 1 * 16
