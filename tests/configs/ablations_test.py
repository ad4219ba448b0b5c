"""Every ablation is the diff from its base that it says, and changes a typed part of the run."""

import ast

import pytest

from pad_jax.models import report_counts, sum_multiply_adds
from pad_jax.reports.sweep import load_variants, read_ablation
from pad_jax.training.config import flatten, keys_of
from pad_jax.training.setup import account_network, plan_layers
from tests.training.key_effects_test import typed
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
    language = {f'{name}_lm' for name in ('networks', 'dynamic_fraction', 'partition', 'num_experts')}
    assert set(NAMES) >= {*WHOLE, *others, *language, 'networks_glue', 'pruning', 'attention'}
    fractions = [config.partition.dynamic_fraction for config in load(FILES[NAMES.index('dynamic_fraction')]).values()]
    assert (min(fractions), max(fractions)) == (0.05, 1.0)


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_an_ablation_says_its_command_and_its_variants_are_the_diffs_that_they_say_and_have_an_effect(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f'python -m pad_jax sweep configs/ablations/{path.name} --workdir=runs/{path.stem} ' in text
    assert '--config.data.path=FOLDER' in text and '?' in text.split('\n\n')[0]
    ablation, (base, *variants) = read_ablation(path), load(path).values()
    old, seen = flatten(base), [typed(base)]
    for change, config in zip(ablation.variants.values(), variants, strict=True):
        new = flatten(config)
        differing = {key: new[key] for key in new if new[key] != old[key]}
        assert differing == change and 1 <= len(change) <= 3
        seen.append(typed(config))
    # All variants differ from one another, not only from the base.
    assert not any(one == other for number, one in enumerate(seen) for other in seen[:number])


@pytest.mark.parametrize('name', WHOLE)
def test_all_that_the_rules_know_is_compared(name):
    configs = load(ROOT / 'configs' / 'ablations' / f'{name}.py')
    flat, key = [flatten(config) for config in configs.values()], WHOLE[name]
    allowed = keys_of(flat[0])[key].rule.words.removeprefix('one of ').split(', ')
    assert {one[key] for one in flat} == set(allowed)


def test_alternatives_to_a_partial_language_model_are_of_its_size():
    configs = load(ROOT / 'configs' / 'ablations' / 'networks_lm.py')
    layers = {name: plan_layers(config) for name, config in configs.items()}
    parameters = {name: report_counts(found)['parameters'] for name, found in layers.items()}
    products = {name: sum_multiply_adds(account_network(configs[name], found)) for name, found in layers.items()}
    # Scale factors and, of the whole network, nothing else differs: two layers have a φ each.
    assert parameters['base'] == parameters['random'] == parameters['shared'] + 2 == parameters['narrow'] + 2
    # Without the 64 static neurons of two layers, each of gate, up and down to 64 features.
    assert parameters['pruned'] == parameters['base'] - 2 * 64 * 3 * 64
    assert products['base'].compact == products['shared'].compact < products['dynamic'].compact
    # k = 2 experts of 128 neurons; a router scores 8 experts by 64 features in each of 2 layers, for 64 tokens.
    assert products['dynamic'].masked - products['dense'].masked == 2 * 64 * 8 * 64
