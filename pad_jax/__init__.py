"""Partially dynamic networks (PAD-Net, arXiv:2211.05528) as Flax modules and functions on pytrees.

Axis letters, the same in all docstrings:

    B  batch                          K  kernels, or other stacked factors
    H, W  height and width            E  experts
    S  spatial axes, one or more      N  tokens, or other routed rows
    C  input channels or features     k  experts selected for a token
    F  output channels or features    T  sequence length
    P  output positions of a          G  feature groups of a convolution
       convolution                    n  positions of a parameter
    D  dynamic entries of an axis     *shape  one parameter without its stack axis
"""

from pad_jax.deploy import load_exported
from pad_jax.layers import (
    CONVS,
    CondConv,
    DCDConv,
    DynamicConv,
    MixtureFFN,
    MixtureLinear,
    ODConv,
    StaticConv,
    index_dynamic_columns,
)
from pad_jax.models import ENCODERS, FFNS, MODELS, build_encoder, build_model
from pad_jax.partition import (
    CRITERIA,
    FLAX,
    PLAIN,
    Criterion,
    Layout,
    Partition,
    Problem,
    UninformativeScores,
    compact,
    compact_params,
    dynamic_fraction,
    dynamic_share,
    expand,
    expand_params,
    hand_off_means,
    init_masks,
    iterative_mode_partition,
    merge,
    num_dynamic_positions,
    pack_masks,
    partition_round,
    partition_step,
    round_fractions,
    select_positions,
    sown_routing,
    split,
    unpack_masks,
)
from pad_jax.pretrained import load_pretrained, upcycle, upcycle_convolutions
from pad_jax.version import __version__

__all__ = [
    'CONVS',
    'CRITERIA',
    'ENCODERS',
    'FFNS',
    'FLAX',
    'MODELS',
    'PLAIN',
    'CondConv',
    'Criterion',
    'DCDConv',
    'DynamicConv',
    'Layout',
    'MixtureFFN',
    'MixtureLinear',
    'ODConv',
    'Partition',
    'Problem',
    'StaticConv',
    'UninformativeScores',
    'build_encoder',
    'build_model',
    'compact',
    'compact_params',
    'dynamic_fraction',
    'dynamic_share',
    'expand',
    'expand_params',
    'hand_off_means',
    'index_dynamic_columns',
    'init_masks',
    'iterative_mode_partition',
    'load_exported',
    'load_pretrained',
    'merge',
    'num_dynamic_positions',
    'pack_masks',
    'partition_round',
    'partition_step',
    'round_fractions',
    'select_positions',
    'sown_routing',
    'split',
    'unpack_masks',
    'upcycle',
    'upcycle_convolutions',
]
