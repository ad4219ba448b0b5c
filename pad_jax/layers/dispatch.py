"""How tokens reach their experts: a table of dispatchers that all give the same numbers where none drops a token.

A dispatcher brings tokens into rows, each of which belongs to one expert; what rows are is its own affair, so a
single matrix and a whole feed-forward network of an expert are built from the same functions:

    arrange(assignment, num_experts, capacity_factor) -> layout
        The layout is a NamedTuple that has at least `experts` int32[N, k] and `weights` float[N, k], the latter zero
        where a slot (one of the k places of a token) was dropped.
    spread(x [N, C], layout, weighted=False) -> rows
        A token to all of its rows, times the weight of the slot if `weighted`.
    multiply(rows, weights [E, C, F], layout, transposed=False, spread=False, combine=False) -> rows
        Each row times the matrix of its expert; `transposed`: weights are [E, F, C]. `spread`: it is given x [N, C] and
        spreads it, unweighted, first; `combine`: it combines the product, unweighted, and returns [N, F].
    take(vectors [E, F], layout) -> rows
        The vector of its expert for each row.
    combine(rows, layout, weighted=True) -> [N, F]
        The sum of a token's rows, each times the weight of its slot if `weighted`; zero for a token without rows.
    dropped(layout) -> int32[], valid slots that have no row.

Arrays keep the dtype of x and rows. A row that belongs to no slot adds nothing to any output or gradient, as long as
what is done to rows in between maps zero to zero. One of spread and combine is weighted; where experts are linear, it
may be the one on the side with fewer features. Everything is differentiable in reverse, to any order.

Legend: N tokens, k selected, C input features, F output features, E experts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from pad_jax.layers.dispatchers.blocks import arrange_blocks, count_block_rows, multiply_blocks
from pad_jax.layers.dispatchers.capacity import arrange_capacity, multiply_capacity
from pad_jax.layers.dispatchers.dense import (
    arrange_dense,
    combine_dense,
    dropped_dense,
    multiply_dense,
    spread_dense,
    take_dense,
)
from pad_jax.layers.dispatchers.ragged import arrange_ragged, multiply_ragged
from pad_jax.layers.dispatchers.rows import combine_rows, dropped_rows, spread_rows, take_rows


def _with_ends(multiply, spread_tokens=spread_rows, combine_product=combine_rows):
    """`multiply` of rows alone, with the flags `spread` and `combine` of the contract."""

    def multiply_between(x, weights, layout, transposed=False, spread=False, combine=False):
        product = multiply(spread_tokens(x, layout) if spread else x, weights, layout, transposed)
        return combine_product(product, layout, weighted=False) if combine else product

    return multiply_between


class Dispatcher(NamedTuple):
    """One row of the table: the functions above, and whether every token always reaches all of its experts."""

    arrange: Callable[..., NamedTuple]
    multiply: Callable[..., jax.Array]
    dropless: bool
    spread: Callable[..., jax.Array] = spread_rows
    take: Callable[..., jax.Array] = take_rows
    combine: Callable[..., jax.Array] = combine_rows
    dropped: Callable[..., jax.Array] = dropped_rows


DISPATCHERS = {
    'dense': Dispatcher(
        arrange_dense,
        _with_ends(multiply_dense, spread_dense, combine_dense),
        dropless=True,
        spread=spread_dense,
        take=take_dense,
        combine=combine_dense,
        dropped=dropped_dense,
    ),
    'blocks': Dispatcher(arrange_blocks, multiply_blocks, dropless=True),
    'capacity': Dispatcher(arrange_capacity, _with_ends(multiply_capacity), dropless=False),
    'ragged': Dispatcher(arrange_ragged, _with_ends(multiply_ragged), dropless=True),
}
DISPATCHER_NAMES = ('auto', *DISPATCHERS)
DROPLESS = tuple(name for name, dispatcher in DISPATCHERS.items() if dispatcher.dropless)


def choose_dispatcher(
    num_tokens: int,
    num_experts: int,
    num_selected: int,
    platform: str | None = None,
) -> str:
    """Name of a dropless dispatcher that should be fast, from shapes alone: a pure function, at trace time.

    `dense` where it computes no more rows than padding would cost the others, and where the number of tokens is a
    symbol; else `ragged` on TPU, which has a kernel for ragged_dot, and `blocks` elsewhere: on CPU ragged_dot computes
    every expert for every token, and on GPU it may. The choice on CPU is measured (docs/benchmarks.md), that on
    accelerators is not.

    Args:
      num_tokens: N, or a symbolic dimension.
      num_experts, num_selected: E and k.
      platform: 'cpu', 'gpu', 'tpu'; None is the default backend of this process.

    Returns:
      A key of DISPATCHERS.

    >>> choose_dispatcher(2048, 8, 2, 'cpu'), choose_dispatcher(2048, 8, 8, 'cpu'), choose_dispatcher(2048, 8, 2, 'gpu')
    ('blocks', 'dense', 'blocks')
    """
    if not isinstance(num_tokens, int):
        return 'dense'
    if num_tokens * num_experts <= count_block_rows(num_tokens * num_selected, num_experts):
        return 'dense'
    platform = jax.default_backend() if platform is None else platform
    return 'ragged' if platform == 'tpu' else 'blocks'
