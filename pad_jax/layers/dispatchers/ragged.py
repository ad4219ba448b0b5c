"""Dispatcher `ragged`: dropless, rows sorted by expert without any padding, multiplied by `jax.lax.ragged_dot`.

Legend: N tokens, k selected, C input features, F output features, E experts, M = N·k rows.
"""

import jax
import jax.numpy as jnp

from pad_jax.layers.dispatchers.rows import RowLayout, lay_out, rank_slots
from pad_jax.layers.gating import Assignment


def arrange_ragged(assignment: Assignment, num_experts: int, capacity_factor: float) -> RowLayout:
    """Rows of one expert right after those of the one before; nothing is dropped."""
    ranks, counts = rank_slots(assignment.experts, num_experts)
    starts = jnp.cumsum(counts) - counts
    return lay_out(assignment, ranks, counts, starts, assignment.experts.size, assignment.experts < num_experts)


def multiply_ragged(rows: jax.Array, weights: jax.Array, layout: RowLayout, transposed: bool = False) -> jax.Array:
    """Each row times the matrix of its expert; see `pad_jax.layers.dispatch`."""
    return jax.lax.ragged_dot(rows, jnp.swapaxes(weights, 1, 2) if transposed else weights, layout.counts)
