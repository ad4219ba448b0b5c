"""Every ablation is the diff from its base that it says, and changes something that can be seen."""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.partition import iterative_mode_partition, scale_factors
from pad_jax.reports.sweep import BASE, load_variants, read_ablation
from pad_jax.training.config import flatten, is_partial, keys_of
from pad_jax.training.optimizer import make_temperature_schedule
from pad_jax.training.rounds import plan_rounds
from pad_jax.training.setup import abstract_variables, make_exclusions, make_inputs, make_model
from tests.partition import problems
from tests.training.tiny import ROOT

FILES = sorted(path for path in (ROOT / 'configs' / 'ablations').glob('*.py') if path.name != '__init__.py')
NAMES = [path.stem for path in FILES]
# file: the key whose every value it compares.
WHOLE = {
    'criterion': 'partition.criterion',
    'scope': 'partition.scope',
    'granularity': 'partition.granularity',
    'scales': 'partition.scales',
    'handoff': 'partition.handoff',
}


def load(path):
    return load_variants(read_ablation(path))


def test_the_files_that_are_promised_exist():
    others = {'dynamic_fraction', 'rounds', 'schedule', 'timing', 'num_kernels', 'num_experts', 'exclusion', 'networks'}
    assert set(NAMES) >= {*WHOLE, *others, 'networks_glue', 'pruning', 'attention'}
    fractions = [config.partition.dynamic_fraction for config in load(FILES[NAMES.index('dynamic_fraction')]).values()]
    assert (min(fractions), max(fractions)) == (0.05, 1.0)


@functools.cache
def abstract(model, inputs):
    return abstract_variables(model, inputs)


@functools.cache
def choose(**options):
    """Masks and parameters of a small problem of 40 positions, partitioned."""
    found = iterative_mode_partition(
        problems.loss_fn,
        problems.make_params(),
        [problems.make_batch(seed) for seed in (1, 2)],
        layout=problems.SCALED,
        output_fn=problems.output_fn,
        routing_fn=problems.routing_fn,
        **options,
    )
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves((found.masks, found.params))]


def observe(config):
    """What can be told of a config without training it: its network, when its rounds come, and what they choose."""
    tree = abstract(make_model(config), make_inputs(config))
    network = {name: tree.get(name, {}) for name in ('params', 'partition')}
    leaves = [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(network)]
    heat = None
    if 'temperature' in config.train:  # of mixtures there is none
        schedule = make_temperature_schedule(config.train.temperature, 10 * config.train.temperature_epochs)
        heat = [float(schedule(step)) for step in (0, 20)]
    if not is_partial(config):
        return leaves, heat, None, None, None, None
    partition = config.partition
    roles = make_exclusions(config).roles(tree['partition'])
    chosen = choose(**{key: partition[key] for key in ('dynamic_fraction', 'criterion', 'scope', 'handoff')})
    scales = [float(factor) for factor in scale_factors(jnp.float32(0.5), partition.scales)]
    return leaves, heat, plan_rounds(config), roles, chosen, scales


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_a_variant_is_the_diff_that_it_says_and_has_an_effect(path):
    ablation, (base, *variants) = read_ablation(path), load(path).values()
    old, seen = flatten(base), [observe(base)]
    for change, config in zip(ablation.variants.values(), variants, strict=True):
        new = flatten(config)
        differing = {key: new[key] for key in new if new[key] != old[key]}
        assert differing == change and 1 <= len(change) <= 3
        seen.append(observe(config))
    # Not from the base alone, from one another as well.
    assert not any(one == other for number, one in enumerate(seen) for other in seen[:number])


@pytest.mark.parametrize('name', WHOLE)
def test_all_that_the_rules_know_is_compared(name):
    configs = load(ROOT / 'configs' / 'ablations' / f'{name}.py')
    flat, key = [flatten(config) for config in configs.values()], WHOLE[name]
    allowed = keys_of(flat[0])[key].rule.words.removeprefix('one of ').split(', ')
    assert {one[key] for one in flat} == set(allowed)


def test_networks_are_those_of_the_demo_and_other_fractions():
    networks = load(ROOT / 'configs' / 'ablations' / 'networks.py')
    assert list(networks) == [BASE, 'static', 'dynamic', 'kappa_0.1', 'kappa_0.5', 'random']
    glue = load(ROOT / 'configs' / 'ablations' / 'networks_glue.py')
    assert list(glue) == [BASE, 'dense', 'dynamic', 'random']


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_an_ablation_says_its_own_command(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f'python -m pad_jax sweep configs/ablations/{path.name} --workdir=runs/{path.stem} ' in text
    assert '--config.data.path=FOLDER' in text and '?' in text.split('\n\n')[0]
