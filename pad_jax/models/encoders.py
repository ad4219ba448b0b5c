"""An explicit table of text encoders, and one function that builds any of them from plain values."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from pad_jax.models.bert import Bert
from pad_jax.models.feed_forward import make_ffn_spec
from pad_jax.models.registry import DTYPES

# Tiny: Turc et al., "Well-Read Students Learn Better", arXiv:1908.08962. MiniLM: Wang et al., "MiniLM: Deep
# Self-Attention Distillation", NeurIPS 2020, arXiv:2002.10957, its student of six layers.
ENCODERS = {
    'bert_tiny': partial(Bert, num_layers=2, width=128, num_heads=2, ffn_width=512),
    'minilm': partial(Bert, num_layers=6, width=384, num_heads=12, ffn_width=1536),
    'bert_base': partial(Bert, num_layers=12, width=768, num_heads=12, ffn_width=3072),
    'bert_large': partial(Bert, num_layers=24, width=1024, num_heads=16, ffn_width=4096),
}


def build_encoder(
    name: str,
    *,
    num_classes: int,
    ffn: str = 'linear',
    num_experts: int = 8,
    num_selected: int = 2,
    granularity: str | None = None,
    scales: str = 'both',
    rest: str = 'static',
    routing: str = 'token',
    dispatcher: str = 'auto',
    capacity_factor: float = 1.25,
    balance_coefficient: float = 1e-2,
    z_coefficient: float = 0.0,
    axis_name: str | None = None,
    vocab_size: int = 30522,
    max_length: int = 512,
    dropout: float = 0.1,
    dtype: str = 'float32',
    remat: bool = False,
) -> nn.Module:
    """A text encoder by name; equal arguments build equal models with equal hashes.

    Args:
      name: a key of ENCODERS.
      num_classes: outputs, at least 1; 1 for regression.
      ffn: a key of `models.FFNS`: what the feed-forward part of every layer is.
      num_experts, num_selected, granularity, scales, rest, routing, dispatcher, capacity_factor,
        balance_coefficient, z_coefficient, axis_name: of mixtures of experts (`layers.MixtureLinear`,
        `layers.MixtureFFN`); without effect where there is none.
      vocab_size: token ids are below it.
      max_length: positions there are, the longest text in tokens.
      dropout: fraction in [0, 1) that is dropped in training.
      dtype: name of the dtype to compute in.
      remat: compute activations anew for the gradient instead of storing them.

    Returns:
      A module called with (tokens, segments, valid, train=False) that returns (logits, aux).

    Raises:
      ValueError: where a value is not allowed, with those that are.

    >>> build_encoder('minilm', num_classes=2, ffn='dense') == build_encoder('minilm', num_classes=2, ffn='dense')
    True
    """
    if name not in ENCODERS:
        raise ValueError(f'model must be one of {", ".join(ENCODERS)}, got {name!r}')
    if num_classes < 1:
        raise ValueError(f'num_classes must be at least 1, got {num_classes}')
    if dtype not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype!r}')
    spec = make_ffn_spec(
        ffn,
        num_experts=num_experts,
        num_selected=num_selected,
        granularity=granularity,
        scales=scales,
        rest=rest,
        routing=routing,
        dispatcher=dispatcher,
        capacity_factor=capacity_factor,
        balance_coefficient=balance_coefficient,
        z_coefficient=z_coefficient,
        axis_name=axis_name,
    )
    return ENCODERS[name](
        num_outputs=num_classes,
        ffn=spec,
        vocab_size=vocab_size,
        max_length=max_length,
        dropout=dropout,
        dtype=jnp.dtype(dtype).name,
        remat=remat,
    )
