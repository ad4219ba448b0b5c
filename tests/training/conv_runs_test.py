"""Runs of every dynamic convolution, from the command's config to its report."""

import json

import pytest

from pad_jax.layers import CONVS
from pad_jax.training.trainer import train
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import one_device, small_config

pytestmark = pytest.mark.usefixtures('one_block')
NEW = [name for name in CONVS if name not in ('static', 'dynamic')]
HEADS = {'condconv': {''}, 'odconv': {'', '/channel', '/filter', '/spatial'}, 'dcd': {'/scaling', '/fusion'}}


@pytest.mark.parametrize(
    ('conv', 'fraction'),
    [
        ('condconv', 0.3),
        *(pytest.param(conv, 0.3, marks=pytest.mark.slow) for conv in NEW if conv != 'condconv'),
        *(pytest.param(conv, 1.0, marks=pytest.mark.slow) for conv in NEW),
    ],
)
def test_a_run_starts_and_ends(conv, fraction, tmp_path):
    config = small_config(model__conv=conv, partition__dynamic_fraction=fraction, train__steps=2, model__plan='auto')
    with compiled_quickly():
        train(config, tmp_path / 'run', devices=one_device())
    report = json.loads((tmp_path / 'run' / 'partition.json').read_text())
    layers = {layer['name']: layer for layer in report['layers']}
    assert set(layers) == {f'stage1_block1/conv{index}{head}' for index in (1, 2) for head in HEADS[conv]}
    positions = sum(layer['positions'] for layer in layers.values())
    assert sum(layer['dynamic_positions'] for layer in layers.values()) == round(fraction * positions)
