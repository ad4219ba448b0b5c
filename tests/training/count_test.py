"""`python -m pad_jax count` against the numbers of the paper's networks."""

import json

import pytest

from pad_jax import __main__ as commands
from pad_jax.models import report_counts
from pad_jax.training.config import load_config
from pad_jax.training.setup import plan_layers
from tests.training.tiny import ROOT

pytestmark = pytest.mark.usefixtures('traced_once')
KINDS = ('static_parameters', 'dynamic_parameters', 'other_parameters')
KEYS = {'parameters', *KINDS, 'positions', 'dynamic_positions', 'dynamic_fraction', 'dynamic_share'}

# Millions of parameters with K = 4; the first column, κ = 0, is the static network.
GOLDEN = {
    'resnet10': {0: 5.42, 1: 20.12, 0.1: 6.92, 0.3: 9.85, 0.5: 12.79, 0.7: 15.72},
    'resnet18': {0: 11.69, 1: 45.24, 0.1: 15.11, 0.3: 21.81, 0.5: 28.50, 0.7: 35.20},
    'resnet50': {0: 25.56, 1: 97.14, 0.1: 33.84, 0.3: 47.90, 0.5: 61.97, 0.7: 76.04},
    'mobilenet_v2': {0: 3.50, 1: 10.65, 0.1: 4.74, 0.3: 6.06, 0.5: 7.37, 0.7: 8.68},
}


def plan(config='imagenet_resnet18_pad.py', **changes):
    overrides = [f'{name.replace("__", ".")}={value}' for name, value in changes.items()]
    return plan_layers(load_config(str(ROOT / 'configs' / config), overrides))


@pytest.mark.parametrize('name', GOLDEN)
def test_parameters_to_the_digit(name):
    for fraction, millions in GOLDEN[name].items():
        change = {'partition__dynamic_fraction': fraction} if fraction else {'model__conv': 'static'}
        report = report_counts(plan(f'imagenet_{name}_pad.py', **change))
        assert f'{report["parameters"] / 1e6:.2f}' == f'{millions:.2f}', fraction
        assert report['dynamic_fraction'] == pytest.approx(fraction, abs=1e-6)
        share = 4 * fraction / (1 - fraction + 4 * fraction)
        assert report['dynamic_share'] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(('scope', 'fraction'), [('global', 0.1), ('layer', 0.3)])
def test_layers_add_up_to_the_totals(scope, fraction):
    layers = plan(partition__scope=scope, partition__dynamic_fraction=fraction)
    total = report_counts(layers)
    parts = [report_counts([layer]) for layer in layers]
    for key in KEYS - {'dynamic_fraction', 'dynamic_share'}:
        assert sum(part[key] for part in parts) == total[key], key
    assert total['parameters'] == sum(total[kind] for kind in KINDS)
    assert len({layer.name for layer in layers}) == len(layers)
    if scope == 'global':
        assert total['dynamic_positions'] == round(fraction * total['positions'])
    for layer in layers:
        # Under either scope each layer is within one position of its share.
        assert abs(layer.dynamic_positions - fraction * layer.positions) <= 1, layer


def test_exclusions_take_no_part_in_the_fraction():
    layers = plan(partition__keep_dynamic='stage4', partition__keep_static='stage1')
    competing = [
        layer for layer in layers if layer.positions and 'stage1' not in layer.name and 'stage4' not in layer.name
    ]
    for layer in layers:
        if 'stage4' in layer.name:
            assert layer.dynamic_positions == layer.positions
        if 'stage1' in layer.name:
            assert layer.dynamic_positions == 0
    positions = sum(layer.positions for layer in competing)
    assert sum(layer.dynamic_positions for layer in competing) == round(0.3 * positions)


def test_the_scale_parameters_and_attentions_are_counted():
    with_scales, without = plan(), plan(partition__scales='none')
    dynamic = sum(layer.positions > 0 for layer in with_scales)
    difference = report_counts(with_scales)['parameters'] - report_counts(without)['parameters']
    assert difference == dynamic == 19
    conv = next(layer for layer in without if layer.name == 'stage1_block1/conv1')
    assert conv.other_parameters == 64 * 4 + 4 * 4 + 4


def test_the_command_prints_one_json_object_and_allocates_nothing(capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError('count must not initialise parameters')

    monkeypatch.setattr('pad_jax.training.state._init_state', refuse)
    commands.count([f'--config={ROOT}/configs/imagenet_resnet18_pad.py', '--config.partition.dynamic_fraction=0.1'])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ''
    assert found.keys() == KEYS | {'multiply_adds', 'layers'}
    assert round(found['parameters'] / 1e6, 2) == 15.11
    assert all(layer.keys() == KEYS | {'multiply_adds'} for layer in found['layers'].values())
    assert sum(layer['multiply_adds'] for layer in found['layers'].values()) == found['multiply_adds']
    # 1.81 of the static network and 4·κ of each kernel to be mixed
    assert round(found['multiply_adds'] / 1e9, 2) == 1.82
    assert found['layers']['stage2_block1/shortcut_conv']['positions'] == 64 * 128
    assert found['layers']['classifier']['other_parameters'] == 512 * 1000 + 1000


@pytest.mark.parametrize('fraction', [1.0, 0.5])
def test_whole_experts_by_hand(fraction):
    """A neuron of an expert is its input weights, its bias and its output weights, one column of one array."""
    report = report_counts(plan('glue_minilm_pad.py', model__ffn='ffn', partition__dynamic_fraction=fraction))
    positions = 6 * (2 * 384 + 1) * 1536  # layers · (2C + 1) · F
    assert report['positions'] == positions
    assert report['dynamic_parameters'] == 8 * positions * fraction
    assert report['static_parameters'] == positions * (1 - fraction)


def test_a_text_is_as_long_as_the_data_allows(capsys):
    found = []
    for length in (64, 128):
        commands.count([f'--config={ROOT}/configs/glue_minilm_pad.py', f'--config.data.max_length={length}'])
        found.append(json.loads(capsys.readouterr().out))
    layers, longer = (report['layers'] for report in found)
    assert found[0]['parameters'] == found[1]['parameters']
    assert longer['layer_0/ffn/up']['multiply_adds'] == 2 * layers['layer_0/ffn/up']['multiply_adds']
    assert longer['layer_0/attention']['multiply_adds'] == 4 * layers['layer_0/attention']['multiply_adds']
    assert longer['layer_0/attention']['parameters'] == 0
