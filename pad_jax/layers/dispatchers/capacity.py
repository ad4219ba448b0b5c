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


def count_capacity(num_slots: int, num_experts: int, capacity_factor: float) -> int:
    """Rows of an expert: capacity_factor times its equal share of the slots, rounded up, in [1, num_slots].

    >>> count_capacity(num_slots=20, num_experts=8, capacity_factor=1.25)
    4
    """
    return max(1, math.ceil(min(num_slots, capacity_factor * num_slots / num_experts)))


def arrange_capacity(assignment: Assignment, num_experts: int, capacity_factor: float) -> RowLayout:
    """The first tokens of each expert, up to its capacity; later ones are dropped.

    There are rows for the capacity of all slots, of which that of the valid ones is used: what is dropped does not
    depend on padding.
    """
    capacities = [count_capacity(slots, num_experts, capacity_factor) for slots in range(assignment.experts.size + 1)]
    size = min(assignment.experts.shape[0], capacities[-1])
    ranks, counts = rank_slots(assignment.experts, num_experts)
    # Looked up, not computed: a product in float32 may be rounded to the other side of a whole number.
    capacity = jnp.asarray(capacities, jnp.int32)[jnp.sum(counts)]
    starts = jnp.arange(num_experts, dtype=jnp.int32) * size
    kept = (assignment.experts < num_experts) & (ranks < capacity)
    return lay_out(assignment, ranks, jnp.minimum(counts, capacity), starts, num_experts * size, kept)


def multiply_capacity(rows: jax.Array, weights: jax.Array, layout: RowLayout, transposed: bool = False) -> jax.Array:
    """Each row times the matrix of its expert; see `pad_jax.layers.dispatch`."""
    stacked = rows.reshape(weights.shape[0], -1, rows.shape[1])
    product = jnp.einsum('emc,efc->emf' if transposed else 'emc,ecf->emf', stacked, weights)
    return product.reshape(rows.shape[0], -1)
