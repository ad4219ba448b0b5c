"""pad_jax: partially dynamic networks (PAD-Net, arXiv:2211.05528) as Flax modules and functions on pytrees."""

from pad_jax.layers import CONVS, DynamicConv, StaticConv
from pad_jax.models import MODELS, build_model
from pad_jax.partition import (
    CRITERIA,
    FLAX,
    PLAIN,
    Layout,
    Partition,
    Problem,
    UninformativeScores,
    dynamic_fraction,
    dynamic_share,
    hand_off_means,
    init_masks,
    iterative_mode_partition,
    merge,
    partition_round,
    partition_step,
    select_positions,
    split,
)

__all__ = [
    'CONVS',
    'CRITERIA',
    'FLAX',
    'MODELS',
    'PLAIN',
    'DynamicConv',
    'Layout',
    'Partition',
    'Problem',
    'StaticConv',
    'UninformativeScores',
    'build_model',
    'dynamic_fraction',
    'dynamic_share',
    'hand_off_means',
    'init_masks',
    'iterative_mode_partition',
    'merge',
    'partition_round',
    'partition_step',
    'select_positions',
    'split',
]
