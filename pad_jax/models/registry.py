"""Tables of networks of images and of texts, and functions that build them from plain values."""

import dataclasses
import math
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from pad_jax.errors import check_choice
from pad_jax.layers import CONVS, GATINGS
from pad_jax.models.bert import Bert
from pad_jax.models.decoder import Architecture, Decoder
from pad_jax.models.feed_forward import make_ffn_spec, make_spec
from pad_jax.models.mobilenet import MobileNetV2
from pad_jax.models.resnet import STEMS, BasicBlock, BottleneckBlock, ResNet

MODELS = {
    'resnet10': partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock),
    'resnet18': partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    'resnet34': partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    'resnet50': partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock),
    'resnet101': partial(ResNet, stage_sizes=(3, 4, 23, 3), block=BottleneckBlock),
    'mobilenet_v2': MobileNetV2,
}
# Tiny: Turc et al., "Well-Read Students Learn Better", arXiv:1908.08962. MiniLM: Wang et al., "MiniLM: Deep
# Self-Attention Distillation", NeurIPS 2020, arXiv:2002.10957, its student of six layers.
ENCODERS = {
    'bert_tiny': partial(Bert, num_layers=2, width=128, num_heads=2, ffn_width=512),
    'minilm': partial(Bert, num_layers=6, width=384, num_heads=12, ffn_width=1536),
    'bert_base': partial(Bert, num_layers=12, width=768, num_heads=12, ffn_width=3072),
    'bert_large': partial(Bert, num_layers=24, width=1024, num_heads=16, ffn_width=4096),
}
# Values of one published model of each family: OLMoE-1B-7B, Mixtral-8x7B, Qwen1.5-MoE-A2.7B, Qwen3-30B-A3B,
# granite-3.0-1b-a400m. Llama's are those of its first paper.
DECODERS = {
    'llama': Architecture(),
    'olmoe': Architecture(qk_norm='whole', gating=GATINGS['olmoe']),
    'mixtral': Architecture(rope_theta=1e6, gating=GATINGS['mixtral']),
    'qwen2_moe': Architecture(
        qkv_bias=True, rope_theta=1e6, norm_epsilon=1e-6, shared_gate=True, gating=GATINGS['qwen2_moe']
    ),
    'qwen3_moe': Architecture(qk_norm='head', rope_theta=1e6, norm_epsilon=1e-6, gating=GATINGS['qwen3_moe']),
    'granite_moe': Architecture(
        tied=True,
        norm_epsilon=1e-6,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.015625,
        logits_scaling=6.0,
        gating=GATINGS['granite_moe'],
    ),
}
make_conv_spec = partial(make_spec, 'conv', CONVS)
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')


def build_model(
    name: str,
    *,
    num_classes: int,
    conv: str = 'dynamic',
    width_multiplier: float = 1.0,
    stem: str = 'imagenet',
    dtype: str = 'float32',
    axis_name: str | None = None,
    **arguments,
) -> nn.Module:
    """Build a network of images by name; equal arguments build equal models with equal hashes.

    Args:
      name: a key of MODELS.
      num_classes: outputs, at least 1.
      conv: a key of `layers.CONVS`, for all convolutions except the stem.
      width_multiplier: > 0, factor of the channels of every layer; 1 is the network of the paper.
      stem: a key of STEMS.
      dtype: name of the dtype of the computation.
      axis_name: mapped axis over which batch statistics are averaged.
      **arguments: fields of dynamic convolutions: num_kernels, reduction, granularity, scales, prune, plan. A
        convolution without such a field ignores it.

    Returns:
      A module called with (images, temperature=1., train=False) that returns (logits, aux).

    Raises:
      TypeError: for an argument that no convolution has.
      ValueError: if a value is not allowed.

    >>> build_model('resnet18', num_classes=10) == build_model('resnet18', num_classes=10)
    True
    """
    _check(name, MODELS, num_classes, dtype)
    check_choice('stem', stem, STEMS)
    if not 0 < width_multiplier < math.inf:
        raise ValueError(f'width_multiplier must be above 0, got {width_multiplier}')
    return MODELS[name](
        num_classes=num_classes,
        conv=make_conv_spec(conv, **arguments),
        stem=stem,
        width_multiplier=float(width_multiplier),
        dtype=jnp.dtype(dtype).name,
        axis_name=axis_name,
    )


def build_encoder(
    name: str,
    *,
    num_classes: int,
    ffn: str = 'linear',
    vocab_size: int = 30522,
    max_length: int = 512,
    dropout: float = 0.1,
    dtype: str = 'float32',
    remat: bool = False,
    head: str = 'classes',
    **arguments,
) -> nn.Module:
    """Build a text encoder by name; equal arguments build equal models with equal hashes.

    Args:
      name: a key of ENCODERS.
      num_classes: outputs, at least 1; 1 for regression; without effect on the head 'words'.
      ffn: a key of `models.FFNS`, the feed-forward part of every layer.
      vocab_size: token ids are below it.
      max_length: number of positions, the longest text in tokens.
      dropout: fraction in [0, 1) that is dropped in training.
      dtype: name of the dtype of the computation.
      remat: recompute activations for the gradient instead of storing them.
      head: 'classes', or 'words' to train on masked words; see `Bert`.
      **arguments: fields of mixtures of experts: num_experts, num_selected, granularity, scales, prune, routing, plan,
        gating, balance_coefficient, z_coefficient, switch_coefficient, axis_name. A dense part ignores them.

    Returns:
      A module called with (tokens, segments, valid, train=False) that returns (logits, aux).

    Raises:
      TypeError: for an argument that no feed-forward part has.
      ValueError: if a value is not allowed.

    >>> build_encoder('minilm', num_classes=2, ffn='dense') == build_encoder('minilm', num_classes=2, ffn='dense')
    True
    """
    _check(name, ENCODERS, num_classes, dtype)
    return ENCODERS[name](
        num_outputs=num_classes,
        ffn=make_ffn_spec(ffn, **arguments),
        vocab_size=vocab_size,
        max_length=max_length,
        dropout=dropout,
        dtype=jnp.dtype(dtype).name,
        remat=remat,
        head=head,
    )


def build_decoder(
    name: str,
    *,
    vocab_size: int,
    max_length: int,
    num_layers: int,
    width: int,
    num_heads: int,
    ffn_width: int,
    num_kv_heads: int = 0,
    head_size: int = 0,
    shared_width: int = 0,
    ffn: str = 'ffn',
    dtype: str = 'float32',
    remat: bool = False,
    **arguments,
) -> nn.Module:
    """Build a causal decoder of a family; equal arguments build equal models with equal hashes.

    Args:
      name: a key of DECODERS.
      vocab_size, max_length, num_layers, width, num_heads, ffn_width, shared_width, dtype, remat: see `Decoder`.
      num_kv_heads, head_size: see `Architecture`.
      ffn: a key of `models.FFNS`, the feed-forward part of every layer.
      **arguments: fields of mixtures of experts, as of `build_encoder`; the family's gating is the default.

    Returns:
      A module called with (tokens, valid, train=False) that returns (logits, aux).

    Raises:
      TypeError: for an argument that no feed-forward part has.
      ValueError: if a value is not allowed.

    >>> sizes = {'vocab_size': 9, 'max_length': 8, 'num_layers': 1, 'width': 4, 'num_heads': 2, 'ffn_width': 6}
    >>> build_decoder('olmoe', **sizes, num_experts=4) == build_decoder('olmoe', **sizes, num_experts=4)
    True
    """
    _check(name, DECODERS, vocab_size, dtype)
    family = dataclasses.replace(DECODERS[name], num_kv_heads=num_kv_heads, head_size=head_size)
    sizes = vocab_size, num_layers, width, num_heads, ffn_width, max_length
    spec = make_ffn_spec(ffn, **{'gating': family.gating, **arguments})
    return Decoder(*sizes, family, spec, shared_width, jnp.dtype(dtype).name, remat)


def _check(name, table, num_outputs, dtype):
    check_choice('model', name, table)
    check_choice('dtype', dtype, DTYPES)
    if num_outputs < 1:
        raise ValueError(
            f'{"vocab_size" if table is DECODERS else "num_classes"} must be at least 1, got {num_outputs}'
        )
