"""The smallest things that training can be tried on: a config, a network of one block, and one without norms."""

from functools import partial
from pathlib import Path

import jax
from flax import linen as nn

from pad_jax.layers import DynamicConv
from pad_jax.models import BasicBlock, ResNet
from pad_jax.training.config import load_config

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / 'configs' / 'digits_resnet10_pad.py'
GLUE = ROOT / 'configs' / 'glue_minilm_pad.py'

ONE_BLOCK = partial(ResNet, stage_sizes=(1,), block=BasicBlock)
"""Stands in for ResNet-10, which compiles ten times longer."""

# The same in as many tests as possible: equal steps compile once in a process.
SMALL = {
    'model.width_multiplier': 1 / 16,
    'data.batch_size': 16,
    'partition.batches': 1,
    'partition.batch_size': 32,
    'optim.warmup_steps': 1,
    'train.steps': 6,
    'train.temperature_share': 0.8,
    'train.log_every_steps': 1,
    'train.eval_every_steps': 3,
    'train.checkpoint_every_steps': 2,
}


def small_config(**changes):
    """The digits' config made small; `section__key=value` changes it further."""
    changes = SMALL | {name.replace('__', '.'): value for name, value in changes.items()}
    return load_config(str(DIGITS), [f'{name}={value}' for name, value in changes.items()])


class NormFree(nn.Module):
    """A partially dynamic network whose output for an example does not depend on the batch, unless `norm` is True."""

    dtype: str = 'float32'
    norm: bool = False

    @nn.compact
    def __call__(self, images, temperature=1.0, train=False):
        conv = DynamicConv(4, (3, 3), granularity='element', reduction=1, plan='outputs', dtype=self.dtype, name='conv')
        x = conv(images, temperature)
        x = nn.relu(nn.BatchNorm(not train, name='norm')(x) if self.norm else x)
        return nn.Dense(10, name='classifier')(x.mean(axis=(1, 2))).astype('float32'), {}


def one_device():
    return jax.local_devices()[:1]
