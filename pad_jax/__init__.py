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
    compact,
    compact_params,
    expand,
    expand_params,
    find_records,
    index_masks,
    partition_flax,
)
from pad_jax.models import ENCODERS, FFNS, MODELS, build_encoder, build_model
from pad_jax.partition import (
    CRITERIA,
    Criterion,
    Partition,
    Problem,
    UninformativeScores,
    dynamic_fraction,
    dynamic_share,
    iterative_mode_partition,
    merge,
    partition_round,
    partition_step,
    split,
)
from pad_jax.pretrained import load_pretrained, upcycle, upcycle_convolutions
from pad_jax.version import __version__
