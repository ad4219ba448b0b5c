"""Dispatcher `blocks`: dropless, by loops over as many blocks of rows as the experts really got.

The rows of an expert are padded to whole small blocks. One loop goes over the experts, takes the expert's matrix
once, and an inner one over its rows: large blocks while they last, since a product is the faster the larger it is,
then small ones, which leave little padding. Shapes are static, trip counts are not; rows of tokens that route
nowhere cost nothing.

Its gradient is written by hand: of the weights, each expert's is summed where it stands, so that no copy of a
matrix exists for a block. The two products below are one another's gradients, so derivatives of any order exist.

Legend: N tokens, k selected, C input features, F output features, E experts, M rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.layers.dispatchers.rows import RowLayout, lay_out, rank_slots
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


def multiply_blocks(rows: jax.Array, weights: jax.Array, layout: RowLayout, transposed: bool = False) -> jax.Array:
    """Contract of every dispatcher: see `pad_jax.layers.dispatch`."""
    return _multiply(rows, weights, layout.starts, layout.counts, transposed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _multiply(rows, weights, starts, counts, transposed):
    """Rows of expert e times weights[e]: [M, C], [E, C, F] -> [M, F]; with [E, F, C] if `transposed`."""
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))

    def multiply_expert(expert, found):
        matrix = lax.dynamic_index_in_dim(weights, expert, keepdims=False)

        def multiply_block(start, size, found):
            block = lax.dynamic_slice_in_dim(rows, start, size)
            product = lax.dot_general(block, matrix, contracted)
            return lax.dynamic_update_slice_in_dim(found, product, start, 0)

        return _over_blocks(multiply_block, starts[expert], counts[expert], found)

    found = jnp.zeros((rows.shape[0], weights.shape[1 if transposed else 2]), rows.dtype)
    return lax.fori_loop(0, weights.shape[0], multiply_expert, found)


@jax.custom_vjp
def _accumulate(left, right, starts, counts):
    """Σ over the rows of expert e of left·rightᵀ: [M, C], [M, F] -> [E, C, F], at least float32."""
    wide = jnp.promote_types(left.dtype, jnp.float32)
    shape = (left.shape[1], right.shape[1])

    def accumulate_expert(expert, found):
        def add_block(start, size, total):
            blocks = (lax.dynamic_slice_in_dim(side, start, size) for side in (left, right))
            return total + lax.dot_general(*blocks, (((0,), (0,)), ((), ())), preferred_element_type=wide)

        total = _over_blocks(add_block, starts[expert], counts[expert], jnp.zeros(shape, wide))
        return lax.dynamic_update_index_in_dim(found, total, expert, 0)

    return lax.fori_loop(0, starts.shape[0], accumulate_expert, jnp.zeros((starts.shape[0], *shape), wide))


def _over_blocks(function, start, count, carry):
    """Folds `function(first row, size, carry)` over `count` rows from `start`, rounded up to whole small blocks."""
    for size in BLOCK_SIZES:
        num_blocks = count // size if size != BLOCK_SIZES[-1] else -(-count // size)
        carry = lax.fori_loop(
            0,
            num_blocks,
            lambda index, carry, start=start, size=size: function(start + index * size, size, carry),
            carry,
        )
        start, count = start + num_blocks * size, count - num_blocks * size
    return carry


def _multiply_forward(rows, weights, starts, counts, transposed):
    return _multiply(rows, weights, starts, counts, transposed), (rows, weights, starts, counts)


def _multiply_backward(transposed, saved, d_rows):
    rows, weights, *places = saved
    sides = (d_rows, rows) if transposed else (rows, d_rows)
    d_weights = _accumulate(*sides, *places).astype(weights.dtype)
    return _multiply(d_rows, weights, *places, not transposed), d_weights, None, None


def _accumulate_forward(left, right, starts, counts):
    return _accumulate(left, right, starts, counts), (left, right, starts, counts)


def _accumulate_backward(saved, d_products):
    left, right, *places = saved
    d_products = d_products.astype(left.dtype)
    return _multiply(right, d_products, *places, True), _multiply(left, d_products, *places, False), None, None


_multiply.defvjp(_multiply_forward, _multiply_backward)
_accumulate.defvjp(_accumulate_forward, _accumulate_backward)
