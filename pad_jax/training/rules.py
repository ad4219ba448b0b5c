"""What every config key may hold, and which keys a resumed run may change.

A config is one of images or one of texts; `model.ffn`, which only the latter has, tells which.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pad_jax.data import AUGMENTS, GLUE_TASKS, MOST_MAGNITUDE, ON_BAD, SOURCES, TEXT_SOURCES
from pad_jax.layers import CONVS, DISPATCHER_NAMES, MIXTURE_GRANULARITIES, PLAN_NAMES, ROUTINGS
from pad_jax.models import DTYPES, ENCODERS, FFNS, MODELS, STEMS
from pad_jax.partition import CRITERIA, GRANULARITIES, HANDOFFS, SCALES, SCHEDULES, SCOPES
from pad_jax.training.devices import PARALLEL
from pad_jax.training.finiteness import ON_NONFINITE
from pad_jax.training.optimizer import OPTIMIZERS, RATE_SCHEDULES

MOST_STEPS = 2**31 - 1
"""Steps are counted in int32."""
# What a number becomes on its way into a step: beyond these it would be infinite, or zero.
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


class Rule(NamedTuple):
    """What a key may hold: its type, a test, and the allowed values in words."""

    kind: type
    holds: Callable[[Any], bool]
    allowed: str


def _one_of(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule(str, lambda value: value in names, f'one of {", ".join(names)}')


def _integer(least: int, most: int = MOST_STEPS) -> Rule:
    return Rule(int, lambda value: least <= value <= most, f'an integer from {least} to {most}')


def _number(least: float, most: float = _LARGEST) -> Rule:
    return Rule(float, lambda value: least <= value <= most, f'a number from {least:g} to {most:.7g}')


def _pattern_holds(value: str) -> bool:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


_FLAG = Rule(bool, lambda value: True, 'True or False')
_TEXT = Rule(str, lambda value: True, 'text')
_PATTERN = Rule(str, _pattern_holds, 'a regular expression')
_FRACTION = Rule(float, lambda value: 0 < value <= 1, 'in (0, 1]')

_STRENGTH = Rule(float, lambda value: 0 <= value <= 1, 'in [0, 1]')
_SHARE = Rule(float, lambda value: 0 <= value < 1, 'in [0, 1)')
# Parameters are float32, and without a switch of its own jax turns float64 into that.
_DTYPE = _one_of(name for name in DTYPES if name != 'float64')

# The most of a size is far beyond what is of use, and small enough that what is made of it can be counted.
_COMMON = {
    'model.dtype': _DTYPE,
    'partition.dynamic_fraction': _FRACTION,
    'partition.criterion': _one_of(CRITERIA),
    'partition.scope': _one_of(SCOPES),
    'partition.rounds': _integer(1, 10_000),
    'partition.schedule': _one_of(SCHEDULES),
    'partition.start_step': _integer(0),
    'partition.every_steps': _integer(0),
    'partition.batches': _integer(1, 2**20),
    'partition.batch_size': _integer(1, 2**20),
    'partition.handoff': _one_of(HANDOFFS),
    'partition.scales': _one_of(SCALES),
    'partition.prune': _FLAG,
    'partition.compact': _FLAG,
    'partition.keep_dynamic': _PATTERN,
    'partition.keep_static': _PATTERN,
    'data.path': _TEXT,
    'data.batch_size': _integer(1, 2**20),
    'data.on_bad': _one_of(ON_BAD),
    'optim.name': _one_of(OPTIMIZERS),
    'optim.learning_rate': _number(_SMALLEST),
    'optim.schedule': _one_of(RATE_SCHEDULES),
    'optim.warmup_steps': _integer(0),
    'optim.weight_decay': _number(0),
    'optim.clip_norm': _number(0),
    'optim.accumulate_steps': _integer(1, 2**20),
    'optim.ema_decay': _SHARE,
    'train.steps': _integer(0),
    'train.epochs': _number(0),
    'train.seed': _integer(0, 2**32 - 1),
    'train.on_nonfinite': _one_of(ON_NONFINITE),
    'train.max_nonfinite': _integer(1),
    'train.eval_every_steps': _integer(1),
    'train.log_every_steps': _integer(1),
    'train.checkpoint_every_steps': _integer(1),
    'train.keep_checkpoints': _integer(1),
    'parallel': _one_of(PARALLEL),
    'debug': _FLAG,
}

IMAGE_RULES = _COMMON | {
    'model.name': _one_of(MODELS),
    'model.num_classes': _integer(2, 2**20),
    'model.conv': _one_of(CONVS),
    'model.num_kernels': _integer(1, 1024),
    'model.reduction': _integer(1, 2**16),
    'model.width_multiplier': _number(1 / 64, 128),
    'model.stem': _one_of(STEMS),
    'model.sync_batch_norm': _FLAG,
    'model.pretrained': _TEXT,
    'model.plan': _one_of(PLAN_NAMES),
    'partition.granularity': _one_of(GRANULARITIES),
    'data.name': _one_of(SOURCES),
    'data.image_size': _integer(1, 2**14),
    'data.augment': _one_of(AUGMENTS),
    'data.crop_padding': _integer(0, 2**14),
    'data.flip': _FLAG,
    'data.color_jitter': _STRENGTH,
    'data.randaugment_layers': _integer(0, 100),
    'data.randaugment_magnitude': _integer(0, MOST_MAGNITUDE),
    'train.temperature': _number(1),
    'train.temperature_epochs': _number(0),
    'train.label_smoothing': _SHARE,
    'train.mixup': _number(0, 1000),
}

TEXT_RULES = _COMMON | {
    'model.name': _one_of(ENCODERS),
    'model.num_classes': _integer(0, 2**20),
    'model.ffn': _one_of(FFNS),
    'model.num_experts': _integer(1, 4096),
    'model.num_selected': _integer(1, 4096),
    'model.routing': _one_of(ROUTINGS),
    'model.plan': _one_of(name for name in DISPATCHER_NAMES if name != 'capacity'),
    'model.balance_coefficient': _number(0),
    'model.z_coefficient': _number(0),
    'model.vocab_size': _integer(8, 2**24),
    'model.max_length': _integer(8, 2**20),
    'model.dropout': _SHARE,
    'model.remat': _FLAG,
    'model.pretrained': _TEXT,
    'partition.granularity': _one_of(name for name in MIXTURE_GRANULARITIES if name),
    'data.name': _one_of(TEXT_SOURCES),
    'data.task': _one_of(GLUE_TASKS),
    'data.text_columns': _TEXT,
    'data.label_column': _TEXT,
    'data.regression': _FLAG,
    'data.vocabulary': _TEXT,
    'data.max_length': _integer(8, 2**20),
}


def choose_rules(flat: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules of a flattened config: those for texts where its model has feed-forward parts to choose."""
    return TEXT_RULES if 'model.ffn' in flat else IMAGE_RULES


# Keys that change how a run is done and not what it computes: a resumed run may change them. A run that has stopped at
# a step that is not finite has computed nothing of it: it may skip it as well.
FREE_ON_RESUME = frozenset(
    {
        *('data.path', 'model.plan', 'model.remat', 'partition.compact', 'parallel', 'debug'),
        *('train.keep_checkpoints', 'train.on_nonfinite', 'train.max_nonfinite'),
    }
)
