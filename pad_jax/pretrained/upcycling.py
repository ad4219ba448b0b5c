"""Upcycling: a trained dense feed-forward part becomes a mixture of experts that computes the same.

Komatsuzaki et al., "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", ICLR 2023,
arXiv:2212.05055: every expert starts as a copy of the dense weights; and so do the static parameters.

The copies carry no signal for a partition: the gradient through every gate is zero until training has moved them apart.
Weight decay knows no masks: static parameters shrink for as long as their positions are dynamic, so late rounds should
take handoff `mean`.

Legend: E experts, C width of the encoder, F hidden width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
LINEARS = ('up', 'down')


def upcycle(dense: Mapping[str, PyTree], params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Params of the structure of `params` that compute what `dense` computes.

    Args:
      dense: params of an encoder whose feed-forward parts are dense.
      params: params of the encoder to fill, whatever its feed-forward parts are; routers and scale parameters are
        kept, and all else is replaced.

    Returns:
      New params; every expert and the static parameters of a mixture are copies of the dense parameters.
    """

    def fill(name, module):
        return {**dense[name], 'ffn': _upcycle_ffn(dense[name]['ffn'], module['ffn'])}

    return {name: fill(name, module) if 'ffn' in module else dense[name] for name, module in params.items()}


def dense_shapes(params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Params of the dense encoder that `params` can be upcycled from, as jax.ShapeDtypeStructs."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(params))
    return {
        name: {**module, 'ffn': _dense_ffn_shapes(module['ffn'])} if 'ffn' in module else module
        for name, module in shapes.items()
    }


def _upcycle_ffn(dense, ffn):
    if 'experts' in ffn:
        # The column of a neuron: its C incoming weights, its bias, its C outgoing weights.
        up, down = (dense[name] for name in LINEARS)
        neurons = jnp.concatenate([up['kernel'], up['bias'][None], jnp.transpose(down['kernel'])])
        return {'experts': _fill(ffn['experts'], neurons=neurons, bias=down['bias'])}
    return {name: _fill(ffn[name], **dense[name]) for name in LINEARS}


def _fill(module, **dense):
    """The module's params, with every stack of factors and every static copy filled from one dense array."""
    filled = dict(module)
    for name, value in dense.items():
        for copy in (name, f'static_{name}'):
            if copy in module:
                filled[copy] = jnp.broadcast_to(jnp.asarray(value, module[copy].dtype), module[copy].shape)
    return filled


def _dense_ffn_shapes(ffn):
    if 'experts' in ffn:
        neurons = ffn['experts']['neurons']
        _, rows, hidden = neurons.shape
        width = rows // 2
        shapes = {'up': (width, hidden), 'down': (hidden, width)}
        return {
            name: {
                'kernel': jax.ShapeDtypeStruct(shape, neurons.dtype),
                'bias': jax.ShapeDtypeStruct(shape[1:], neurons.dtype),
            }
            for name, shape in shapes.items()
        }
    # A mixture's parameters have the stack axis in front of the dense ones.
    return {
        name: {
            key: jax.ShapeDtypeStruct(ffn[name][key].shape[-num_axes:], ffn[name][key].dtype)
            for key, num_axes in (('kernel', 2), ('bias', 1))
        }
        for name in LINEARS
    }
