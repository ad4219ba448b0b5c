"""Dispatcher `capacity`: a fixed number of rows for each expert; what does not fit is dropped.

Lepikhin et al., "GShard", ICLR 2021, arXiv:2006.16668, section 2.2; rows are indexed here instead of being
multiplied with one-hot matrices.

Legend: N tokens, k selected, C input features, F output features, E experts, M = E·capacity rows.
"""

import math

import jax
import jax.numpy as jnp

from pad_jax.layers.dispatchers.rows import RowLayout, lay_out, rank_slots
from pad_jax.layers.gating import Assignment


def count_capacity(num_slots: int, num_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """Rows of an expert: capacity_factor times its equal share of the slots, rounded up, at most one for each token.

    >>> count_capacity(num_slots=20, num_tokens=10, num_experts=8, capacity_factor=1.25)
    4
    """
    return max(1, min(num_tokens, math.ceil(capacity_factor * num_slots / num_experts)))


def arrange_capacity(assignment: Assignment, num_experts: int, capacity_factor: float) -> RowLayout:
    """The first tokens of each expert, up to its capacity; later ones are dropped."""
    num_tokens = assignment.experts.shape[0]
    capacity = count_capacity(assignment.experts.size, num_tokens, num_experts, capacity_factor)
    ranks, counts = rank_slots(assignment.experts, num_experts)
    starts = jnp.arange(num_experts, dtype=jnp.int32) * capacity
    kept = (assignment.experts < num_experts) & (ranks < capacity)
    return lay_out(assignment, ranks, jnp.minimum(counts, capacity), starts, num_experts * capacity, kept)


def multiply_capacity(rows: jax.Array, weights: jax.Array, layout: RowLayout, transposed: bool = False) -> jax.Array:
    """Each row times the matrix of its expert; see `pad_jax.layers.dispatch`."""
    stacked = rows.reshape(weights.shape[0], -1, rows.shape[1])
    product = jnp.einsum('emc,efc->emf' if transposed else 'emc,ecf->emf', stacked, weights)
    return product.reshape(rows.shape[0], -1)
