"""An explicit table of models, and one function that builds any of them from plain values."""

import math
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from pad_jax.layers.conv_spec import make_conv_spec
from pad_jax.models.mobilenet import MobileNetV2
from pad_jax.models.resnet import BasicBlock, BottleneckBlock, ResNet
from pad_jax.models.stems import STEMS

MODELS = {
    'resnet10': partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock),
    'resnet18': partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    'resnet34': partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    'resnet50': partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock),
    'resnet101': partial(ResNet, stage_sizes=(3, 4, 23, 3), block=BottleneckBlock),
    'mobilenet_v2': MobileNetV2,
}
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')


def build_model(
    name: str,
    *,
    num_classes: int,
    conv: str = 'dynamic',
    num_kernels: int = 4,
    reduction: int = 16,
    granularity: str | None = None,
    scales: str = 'both',
    rest: str = 'static',
    plan: str = 'auto',
    width_multiplier: float = 1.0,
    stem: str = 'imagenet',
    dtype: str = 'float32',
    axis_name: str | None = None,
) -> nn.Module:
    """A model by name; equal arguments build equal models with equal hashes.

    Args:
      name: a key of MODELS.
      num_classes: outputs, at least 1.
      conv: a key of `layers.CONVS`: which convolution all but the stem is.
      num_kernels, reduction, granularity, scales, rest, plan: of dynamic convolutions
        (`layers.DynamicConv`, `CondConv`, `ODConv`, `DCDConv`); without effect where the convolution has no such
        argument.
      width_multiplier: > 0, of the channels of every layer; 1 is the network of the paper.
      stem: a key of `stems.STEMS`.
      dtype: name of the dtype to compute in.
      axis_name: mapped axis over which batch statistics are averaged.

    Returns:
      A module called with (images, temperature=1., train=False) that returns (logits, aux).

    Raises:
      ValueError: where a value is not allowed, with those that are.

    >>> build_model('resnet18', num_classes=10) == build_model('resnet18', num_classes=10)
    True
    """
    if name not in MODELS:
        raise ValueError(f'model must be one of {", ".join(MODELS)}, got {name!r}')
    if stem not in STEMS:
        raise ValueError(f'stem must be one of {", ".join(STEMS)}, got {stem!r}')
    if num_classes < 1:
        raise ValueError(f'num_classes must be at least 1, got {num_classes}')
    if not 0 < width_multiplier < math.inf:
        raise ValueError(f'width_multiplier must be above 0, got {width_multiplier}')
    if dtype not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype!r}')
    spec = make_conv_spec(
        conv,
        num_kernels=num_kernels,
        reduction=reduction,
        granularity=granularity,
        scales=scales,
        rest=rest,
        plan=plan,
    )
    return MODELS[name](
        num_classes=num_classes,
        conv=spec,
        stem=stem,
        width_multiplier=float(width_multiplier),
        dtype=jnp.dtype(dtype).name,
        axis_name=axis_name,
    )
