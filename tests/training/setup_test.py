"""The check of groups before a run and the partition itself agree for every convolution."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.errors import BadInput
from pad_jax.layers import CONVS
from pad_jax.layers.factors import read_records
from pad_jax.models import LayerSpec, make_conv_spec
from pad_jax.partition import Layout, PartitionError, Problem, Recipe, count_dynamic, partition_round, positions_of
from pad_jax.training import setup
from pad_jax.training.config import load_config
from tests.training.tiny import DIGITS

DYNAMIC = [name for name in CONVS if name != 'static']


class Separable(nn.Module):
    conv: LayerSpec

    @nn.compact
    def __call__(self, x):
        x = self.conv(8, (1, 1), name='pointwise')(jnp.concatenate([x] * 8, axis=-1))
        return self.conv(8, (3, 3), feature_group_count=8, name='depthwise')(x)


def is_quick(conv, granularity, scope):
    return conv != 'condconv' and scope == 'layer' and granularity in ('output', 'input')


@pytest.mark.parametrize(
    ('conv', 'granularity', 'scope'),
    [
        pytest.param(*case, marks=[] if is_quick(*case) else pytest.mark.slow)
        for case in itertools.product(DYNAMIC, ['element', 'output', 'input', 'spatial'], ['global', 'layer'])
    ],
)
def test_config_and_partition_agree(monkeypatch, conv, granularity, scope):
    network = Separable(make_conv_spec(conv, num_kernels=2, granularity=granularity, plan='shift'))
    monkeypatch.setattr(setup, 'make_model', lambda config: network)
    config = load_config(str(DIGITS), [f'partition.granularity={granularity}', f'partition.scope={scope}'])
    shapes = setup.abstract_variables(network, setup.make_inputs(config))
    layout = Layout.of(read_records(shapes['intermediates']))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes['params'])
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), shapes['partition'])
    try:
        setup.plan_layers(config)
        refused = None
    except BadInput as error:
        refused = str(error)

    def partition():
        problem = Problem(lambda *_: 0.0, layout)
        return partition_round(problem, params, masks, None, 0.3, Recipe('magnitude', scope)).masks

    positions = positions_of(layout, params, masks)
    if scope == 'global':
        # In the whole network some group always fits, and the largest come last here.
        assert refused is None or granularity == 'spatial'
        if granularity in ('element', 'output'):
            assert count_dynamic(partition(), positions) > 0
    elif refused is None:
        assert granularity in ('element', 'output')
        new = partition()
        assert all(count_dynamic(new[name], positions[name]) > 0 for name in new)
    else:
        # As soon as the group that is named has the best score, nothing can be selected.
        assert refused.endswith('with partition.keep_dynamic or partition.keep_static')
        size, name = re.search(r'selects (\d+) positions of (\S+) at once', refused).groups()
        *modules, leaf = name.split('/')
        inside = params
        for module in modules:
            inside = inside[module]
        inside[leaf] = inside[leaf] + 9
        with pytest.raises(PartitionError, match=f'in {name}, has {size} of them'):
            partition()
