"""Dispatcher `blocks`: dropless, by loops over as many blocks of rows as the experts really got.

The rows of an expert are padded to whole small blocks. One loop goes over the experts, takes the expert's matrix
once, and an inner one over its rows: large blocks while they last, since a product is the faster the larger it is,
then small ones, which leave little padding. Shapes are static, trip counts are not; rows of tokens that route
nowhere cost nothing.

Its gradient is written by hand: of the weights, each expert's is summed where it stands, so that no copy of a
matrix exists for a block. The two products below are one another's gradients, so derivatives of any order exist.
Tokens that are to be spread are read inside the loop, block by block: with many features, writing all their rows
out first would cost as much as a good part of the product.

Legend: N tokens, k selected, C input features, F output features, E experts, M rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.kernels.numerics import vary_together
from pad_jax.layers.dispatchers.rows import RowLayout, combine_rows, lay_out, rank_slots, read_tokens
from pad_jax.layers.gating import Assignment

# Rows of a block, large to small. Measured on CPU with benchmarks/moe.py, see docs/benchmarks.md.
BLOCK_SIZES = (128, 32)


def count_block_rows(num_slots: int, num_experts: int) -> int:
    """M: rows that hold `num_slots` slots however they are divided among the experts."""
    small = BLOCK_SIZES[-1]
    return (-(-num_slots // small) + num_experts) * small


def arrange_blocks(assignment: Assignment, num_experts: int, capacity_factor: float) -> RowLayout:
    """Every expert's rows start at a whole small block; nothing is dropped."""
    ranks, counts = rank_slots(assignment.experts, num_experts)
    small = BLOCK_SIZES[-1]
    padded = -(-counts // small) * small
    starts = jnp.cumsum(padded) - padded
    num_rows = count_block_rows(assignment.experts.size, num_experts)
    return lay_out(assignment, ranks, counts, starts, num_rows, assignment.experts < num_experts)


def multiply_blocks(
    x: jax.Array,
    weights: jax.Array,
    layout: RowLayout,
    transposed: bool = False,
    spread: bool = False,
    combine: bool = False,
) -> jax.Array:
    """Contract of every dispatcher: see `pad_jax.layers.dispatch`."""
    x, weights, _ = vary_together(x, weights, layout.slots)
    return _multiply(x, weights, layout, transposed, spread, combine)


def _block_of(values, layout, start, size, spread):
    """Rows start to start + size of what is in rows, or, where `spread`, of tokens, without writing all rows out."""
    if not spread:
        return lax.dynamic_slice_in_dim(values, start, size)
    slots = lax.dynamic_slice_in_dim(layout.slots, start, size)
    return read_tokens(values, slots, layout.positions.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _multiply(x, weights, layout, transposed, spread, combine):
    """Rows of expert e times weights[e]: [M, C], [E, C, F] -> [M, F]; with [E, F, C] if `transposed`."""
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))

    def multiply_expert(expert, found):
        matrix = lax.dynamic_index_in_dim(weights, expert, keepdims=False)

        def multiply_block(start, size, found):
            product = lax.dot_general(_block_of(x, layout, start, size, spread), matrix, contracted)
            return lax.dynamic_update_slice_in_dim(found, product, start, 0)

        return _over_blocks(multiply_block, layout, expert, found)

    found = jnp.zeros((layout.slots.shape[0], weights.shape[1 if transposed else 2]), x.dtype)
    *_, found = vary_together(x, weights, layout.slots, found)
    found = lax.fori_loop(0, weights.shape[0], multiply_expert, found)
    return combine_rows(found, layout, weighted=False) if combine else found


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _accumulate(left, right, layout, spread_left, spread_right):
    """Σ over the rows of expert e of left·rightᵀ: [M, C], [M, F] -> [E, C, F], at least float32."""
    wide = jnp.promote_types(left.dtype, jnp.float32)
    shape = (left.shape[1], right.shape[1])
    num_experts = layout.starts.shape[0]
    *_, start, nothing = vary_together(left, right, jnp.zeros((num_experts, *shape), wide), jnp.zeros(shape, wide))

    def accumulate_expert(expert, found):
        def add_block(start, size, total):
            lefts = _block_of(left, layout, start, size, spread_left)
            rights = _block_of(right, layout, start, size, spread_right)
            return total + lax.dot_general(lefts, rights, (((0,), (0,)), ((), ())), preferred_element_type=wide)

        total = _over_blocks(add_block, layout, expert, nothing)
        return lax.dynamic_update_index_in_dim(found, total, expert, 0)

    return lax.fori_loop(0, num_experts, accumulate_expert, start)


def _over_blocks(function, layout, expert, carry):
    """Folds `function(first row, size, carry)` over the rows of an expert, rounded up to whole small blocks."""
    start, count = layout.starts[expert], layout.counts[expert]
    for size in BLOCK_SIZES:
        if size > layout.slots.shape[0]:
            continue  # no such block fits, and a slice of that size would be an error even if it is never taken
        num_blocks = count // size if size != BLOCK_SIZES[-1] else -(-count // size)
        carry = lax.fori_loop(
            0,
            num_blocks,
            lambda index, carry, start=start, size=size: function(start + index * size, size, carry),
            carry,
        )
        start, count = start + num_blocks * size, count - num_blocks * size
    return carry


def _multiply_forward(x, weights, layout, *flags):
    return _multiply(x, weights, layout, *flags), (x, weights, layout)


def _multiply_backward(transposed, spread, combine, saved, d_y):
    x, weights, layout = saved
    # Spreading is the transpose of combining, so each stands for the other on the way back.
    d_x = _multiply(d_y, weights, layout, not transposed, combine, spread)
    if transposed:
        d_weights = _accumulate(d_y, x, layout, combine, spread)
    else:
        d_weights = _accumulate(x, d_y, layout, spread, combine)
    return d_x, d_weights.astype(weights.dtype), None


def _accumulate_forward(left, right, layout, *flags):
    return _accumulate(left, right, layout, *flags), (left, right, layout)


def _accumulate_backward(spread_left, spread_right, saved, d_products):
    left, right, layout = saved
    d_products = d_products.astype(left.dtype)
    d_left = _multiply(right, d_products, layout, True, spread_right, spread_left)
    d_right = _multiply(left, d_products, layout, False, spread_left, spread_right)
    return d_left, d_right, None


_multiply.defvjp(_multiply_forward, _multiply_backward)
_accumulate.defvjp(_accumulate_forward, _accumulate_backward)
