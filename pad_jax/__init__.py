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

import importlib as _importlib

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
from pad_jax.version import __version__

# Imported when they are used: they read files with libraries that layers and partition do not need.
_LATER = {
    'load_exported': 'pad_jax.deploy',
    'load_pretrained': 'pad_jax.pretrained',
    'upcycle': 'pad_jax.pretrained',
}


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        return getattr(_importlib.import_module(_LATER[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"pad_jax.{name} needs {error.name}: pip install 'pad-jax[train]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
