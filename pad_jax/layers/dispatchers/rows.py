"""Rows: the layout that dispatchers share which copy each token to a row of its own for every expert it has.

A slot is one of the k places of a token. Spreading tokens over rows and gathering the rows of a token are the
transposes of one another; said so to autodiff, both directions are gathers, where the derived one would be a
scatter, which takes XLA on CPU many times as long.

Legend: N tokens, k selected, C input features, F output features, E experts, M rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.layers.gating import Assignment


class RowLayout(NamedTuple):
    """Which slot stands in which row; the rows of an expert are adjacent.

    Attributes:
      experts: int32[N, k], E where a token routes nowhere.
      weights: float[N, k], 0 where a slot has no row.
      positions: int32[N, k], the row of a slot; M where it has none.
      slots: int32[M], the slot n·k + s in a row; N·k where it is empty.
      starts: int32[E], first row of each expert.
      counts: int32[E], its rows that hold a slot.
    """

    experts: jax.Array
    weights: jax.Array
    positions: jax.Array
    slots: jax.Array
    starts: jax.Array
    counts: jax.Array


def rank_slots(experts: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Place of each slot among those of its expert, earlier tokens first.

    Returns:
      (ranks int32[N, k], of no meaning where a token routes nowhere; counts int32[E])

    >>> ranks, counts = rank_slots(jnp.array([[0, 1], [1, 2], [3, 3]]), 3)
    >>> ranks[:2].tolist(), counts.tolist()
    ([[0, 0], [1, 0]], [1, 2, 1])
    """
    chosen = experts.reshape(-1, 1) == jnp.arange(num_experts)[None]
    passed = jnp.cumsum(chosen.astype(jnp.int32), axis=0)
    ranks = jnp.sum(jnp.where(chosen, passed, 0), axis=1) - 1
    return ranks.reshape(experts.shape), passed[-1]


def lay_out(
    assignment: Assignment, ranks: jax.Array, counts: jax.Array, starts: jax.Array, num_rows: int, kept: jax.Array
) -> RowLayout:
    """The layout in which slot (n, s) stands in row starts[expert] + rank where `kept` (bool[N, k]), else nowhere."""
    experts, weights = assignment
    positions = jnp.where(kept, jnp.take(starts, experts, mode='clip') + ranks, num_rows)
    positions = positions.astype(jnp.int32)  # under 64 bits a cumulated count is wider
    slots = jnp.full(num_rows, experts.size, jnp.int32)
    slots = slots.at[positions.reshape(-1)].set(jnp.arange(experts.size, dtype=jnp.int32), mode='drop')
    return RowLayout(experts, jnp.where(kept, weights, 0), positions, slots, starts, counts)


def spread_rows(x: jax.Array, layout: RowLayout, weighted: bool = False) -> jax.Array:
    """Each token to its rows, times the weight of the slot if `weighted`; empty rows are zero: [N, C] -> [M, C]."""
    rows = _spread(x, layout.positions, layout.slots)
    return _weigh(rows, layout) if weighted else rows


def combine_rows(rows: jax.Array, layout: RowLayout, weighted: bool = True) -> jax.Array:
    """Sum of a token's rows, each times the weight of its slot if `weighted`: [M, F] -> [N, F]."""
    if weighted:
        rows = _weigh(rows, layout)
    return _gather(rows, layout.positions, layout.slots)


def take_rows(vectors: jax.Array, layout: RowLayout) -> jax.Array:
    """For each row the vector of its expert, zero for an empty row: [E, F] -> [M, F]."""
    experts = jnp.take(layout.experts.reshape(-1), layout.slots, mode='fill', fill_value=vectors.shape[0])
    chosen = (experts[:, None] == jnp.arange(vectors.shape[0])[None]).astype(vectors.dtype)
    # A product, since its gradient is one too; that of an indexed read would be a scatter.
    return jnp.dot(chosen, vectors, precision=jax.lax.Precision.HIGHEST)


def dropped_rows(layout: RowLayout) -> jax.Array:
    """Valid slots that have no row, int32[]."""
    valid = layout.experts < layout.counts.shape[0]
    return jnp.sum(valid & (layout.positions == layout.slots.shape[0]), dtype=jnp.int32)


def read_tokens(x: jax.Array, slots: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """The token of each of these slots, zero for an empty one: [N, C] and int32[m] -> [m, C]; `shape` is (N, k)."""
    num_tokens, num_selected = shape
    tokens = jnp.take(x, slots // num_selected, axis=0, mode='clip')
    return jnp.where((slots < num_tokens * num_selected)[:, None], tokens, 0)


def _weigh(rows, layout):
    weights = jnp.take(layout.weights.reshape(-1), layout.slots, mode='fill', fill_value=0)
    return rows * weights.astype(rows.dtype)[:, None]


@jax.custom_vjp
def _spread(x, positions, slots):
    return read_tokens(x, slots, positions.shape)


@jax.custom_vjp
def _gather(rows, positions, slots):
    found = jnp.zeros((), rows.dtype)
    for s in range(positions.shape[1]):
        place = positions[:, s]
        taken = jnp.take(rows, place, axis=0, mode='clip')
        taken = jnp.where((place < rows.shape[0])[:, None], taken, 0)
        found = taken if s == 0 else found + taken
    return found


_spread.defvjp(
    lambda x, positions, slots: (_spread(x, positions, slots), (positions, slots)),
    lambda places, d_rows: (_gather(d_rows, *places), None, None),
)
_gather.defvjp(
    lambda rows, positions, slots: (_gather(rows, positions, slots), (positions, slots)),
    lambda places, d_x: (_spread(d_x, *places), None, None),
)
