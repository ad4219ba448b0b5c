"""Dispatcher `dense`: every expert computes every token, and the weights choose; the twin of all others.

Legend: N tokens, k selected, C input features, F output features, E experts; a row is [E, N, ...] here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.layers.gating import Assignment, dense_gates


class DenseLayout(NamedTuple):
    """Attributes: experts int32[N, k] and weights float[N, k] as they were assigned; gates float[N, E]."""

    experts: jax.Array
    weights: jax.Array
    gates: jax.Array


def arrange_dense(assignment: Assignment, num_experts: int, capacity_factor: float) -> DenseLayout:
    """Nothing to arrange, and nothing is dropped."""
    return DenseLayout(*assignment, dense_gates(assignment, num_experts))


def spread_dense(x: jax.Array, layout: DenseLayout, weighted: bool = False) -> jax.Array:
    """Each token to every expert, times its gate if `weighted`: [N, C] -> [E, N, C]."""
    if weighted:
        return layout.gates.T.astype(x.dtype)[:, :, None] * x[None]
    return jnp.broadcast_to(x[None], (layout.gates.shape[1], *x.shape))


def multiply_dense(rows: jax.Array, weights: jax.Array, layout: DenseLayout, transposed: bool = False) -> jax.Array:
    """Each row times the matrix of its expert; see `pad_jax.layers.dispatch`."""
    return jnp.einsum('enc,efc->enf' if transposed else 'enc,ecf->enf', rows, weights)


def take_dense(vectors: jax.Array, layout: DenseLayout) -> jax.Array:
    """For each row the vector of its expert: [E, F] -> [E, N, F]."""
    return jnp.broadcast_to(vectors[:, None], (vectors.shape[0], layout.gates.shape[0], vectors.shape[1]))


def combine_dense(rows: jax.Array, layout: DenseLayout, weighted: bool = True) -> jax.Array:
    """Sum over the experts, each row times its gate if `weighted`: [E, N, F] -> [N, F]."""
    if weighted:
        rows = rows * layout.gates.T.astype(rows.dtype)[:, :, None]
    return jnp.sum(rows, axis=0)


def dropped_dense(layout: DenseLayout) -> jax.Array:
    """Nothing is dropped."""
    return jnp.zeros((), jnp.int32)
