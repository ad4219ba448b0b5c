"""Execution of a mixture of experts: plans that bring tokens to their experts, all with the same numbers.

A plan is a layout, made by `arrange`. It copies tokens into rows, each of which belongs to one expert. The shape of the
rows is private to the plan, so a matrix and a whole network of an expert use the same methods:

    spread(x [N, C]) -> rows            Copy each token to all of its rows.
    multiply(rows, [E, C, F]) -> rows   Multiply each row by the matrix of its expert; `transposed`: by [E, F, C].
                                        `spread`: the input is x [N, C]. `combine`: the result is [N, F].
    take([E, F]) -> rows                Read the vector of each row's expert.
    weigh(rows) -> rows                 Multiply each row by its routing weight, once between spread and combine.
    combine(rows) -> [N, F]             Sum the rows of each token; zero for a token without experts.

Arrays keep their dtype. Empty rows add nothing, as long as the operations between these calls map zero to zero.
Everything is differentiable in reverse, to any order. A slot is one of the k choices of a token, M the number of rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.kernels.factors import vary_together

# Rows of a block, large to small. Measured on CPU with benchmarks/moe.py, see docs/benchmarks.md.
BLOCK_SIZES = (128, 32)


class Routing(NamedTuple):
    """Experts of each token, with their weights, which sum to one. A token that is not valid has weight zero."""

    experts: jax.Array  # int32[N, k], best expert first; E throughout for a token that is not valid
    weights: jax.Array  # float[N, k], at least float32


def dense_gates(routing: Routing, num_experts: int) -> jax.Array:
    """Spread the weights over all experts, zero for experts that were not selected: float[N, E]."""
    chosen = routing.experts[:, :, None] == jnp.arange(num_experts)[None, None]
    return jnp.sum(jnp.where(chosen, routing.weights[:, :, None], 0), axis=1)


class Dense(NamedTuple):
    """Every expert computes every token: rows are [E, N, ...]. The twin of all other plans."""

    gates: jax.Array  # float[N, E]

    @classmethod
    def arrange(cls, routing: Routing, num_experts: int) -> 'Dense':
        return cls(dense_gates(routing, num_experts))

    def spread(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[None], (self.gates.shape[1], *x.shape))

    def multiply(self, rows, weights, transposed: bool = False, spread: bool = False, combine: bool = False):
        rows = self.spread(rows) if spread else rows
        product = jnp.einsum('enc,efc->enf' if transposed else 'enc,ecf->enf', rows, weights)
        return self.combine(product) if combine else product

    def take(self, vectors: jax.Array) -> jax.Array:
        return jnp.broadcast_to(vectors[:, None], (vectors.shape[0], self.gates.shape[0], vectors.shape[1]))

    def weigh(self, rows: jax.Array) -> jax.Array:
        return rows * self.gates.T.astype(rows.dtype)[:, :, None]

    def combine(self, rows: jax.Array) -> jax.Array:
        return jnp.sum(rows, axis=0)


class Ragged(NamedTuple):
    """Rows sorted by expert, multiplied by `jax.lax.ragged_dot`: rows are [M, ...]."""

    experts: jax.Array  # as in `Routing`, and so are the weights
    weights: jax.Array
    rows: jax.Array  # int32[N, k], the row of each slot; M for a slot of a token that is not valid
    slots: jax.Array  # int32[M], the slot n·k + s in each row; N·k in an empty row
    starts: jax.Array  # int32[E], first row of each expert
    counts: jax.Array  # int32[E], number of its rows that hold a slot
    alignment = 1  # the first row of each expert is a multiple of it

    @classmethod
    def count_rows(cls, num_slots: int, num_experts: int) -> int:
        """M: enough rows for every division of `num_slots` slots among the experts."""
        return (num_slots + num_experts * (cls.alignment - 1)) // cls.alignment * cls.alignment

    @classmethod
    def arrange(cls, routing: Routing, num_experts: int) -> 'Ragged':
        experts, num_slots = routing.experts, routing.experts.size
        ranks, counts = rank_slots(experts, num_experts)
        padded = -(-counts // cls.alignment) * cls.alignment
        starts = jnp.cumsum(padded) - padded
        num_rows = cls.count_rows(num_slots, num_experts)
        rows = jnp.where(experts < num_experts, jnp.take(starts, experts, mode='clip') + ranks, num_rows)
        rows = rows.astype(jnp.int32)  # under 64 bits a cumulated count is wider
        slots = jnp.full(num_rows, num_slots, jnp.int32)
        slots = slots.at[rows.reshape(-1)].set(jnp.arange(num_slots, dtype=jnp.int32), mode='drop')
        return cls(experts, routing.weights, rows, slots, starts, counts)

    def spread(self, x: jax.Array) -> jax.Array:
        return _copy(x, self.rows, self.slots, True)

    def multiply(self, rows, weights, transposed: bool = False, spread: bool = False, combine: bool = False):
        rows = self.spread(rows) if spread else rows
        product = lax.ragged_dot(rows, jnp.swapaxes(weights, 1, 2) if transposed else weights, self.counts)
        return self.combine(product) if combine else product

    def take(self, vectors: jax.Array) -> jax.Array:
        experts = jnp.take(self.experts.reshape(-1), self.slots, mode='fill', fill_value=vectors.shape[0])
        # A product, because its gradient is one too; the gradient of an indexed read would be a scatter.
        chosen = (experts[:, None] == jnp.arange(vectors.shape[0])[None]).astype(vectors.dtype)
        return jnp.dot(chosen, vectors, precision=lax.Precision.HIGHEST)

    def weigh(self, rows: jax.Array) -> jax.Array:
        weights = jnp.take(self.weights.reshape(-1), self.slots, mode='fill', fill_value=0)
        return rows * weights.astype(rows.dtype)[:, None]

    def combine(self, rows: jax.Array) -> jax.Array:
        return _copy(rows, self.rows, self.slots, False)


class Blocks(Ragged):
    """Rows of each expert padded to whole small blocks, multiplied in as many blocks as the experts really have.

    One loop runs over the experts and takes each matrix once. An inner loop runs over the expert's rows: large blocks
    while they last, because a larger product is faster, then small blocks, which leave little padding. Shapes are
    static, trip counts are not, so tokens without experts cost nothing.
    The gradient is written by hand: the sum for each matrix stays in place, so no block needs a copy of a matrix.
    Tokens are spread inside the loop: writing all rows out would cost a good part of the product.
    """

    alignment = BLOCK_SIZES[-1]

    def multiply(self, rows, weights, transposed: bool = False, spread: bool = False, combine: bool = False):
        rows, weights, _ = vary_together(rows, weights, self.slots)
        return _multiply(rows, weights, self, transposed, spread, combine)

    def read_block(self, values: jax.Array, start: jax.Array, size: int, spread: bool) -> jax.Array:
        """Read rows start to start + size of `values`, which are tokens [N, C] if `spread`."""
        rows = lax.dynamic_slice_in_dim(self.slots if spread else values, start, size)
        return _read(values, rows // self.rows.shape[1]) if spread else rows

    def fold_blocks(self, function, expert: jax.Array, carry):
        """Fold `function(first row, size, carry)` over the rows of an expert, rounded up to whole small blocks."""
        start, count = self.starts[expert], self.counts[expert]
        for size in BLOCK_SIZES:
            if size > self.slots.shape[0]:
                continue  # such a block does not fit, and a slice of that size is an error even if never taken
            num_blocks = count // size if size != BLOCK_SIZES[-1] else -(-count // size)

            def step(index, carry, start=start, size=size):
                return function(start + index * size, size, carry)

            carry = lax.fori_loop(0, num_blocks, step, carry)
            start, count = start + num_blocks * size, count - num_blocks * size
        return carry


PLANS = {'dense': Dense, 'blocks': Blocks, 'ragged': Ragged}
MIXTURE_PLANS = ('auto', *PLANS)


def choose_mixture_plan(num_tokens: int, num_experts: int, num_selected: int, platform: str | None = None) -> str:
    """Choose a fast plan from shapes only, at trace time.

    The plan is `dense` for a symbolic number of tokens, or if padding costs other plans as many rows. Otherwise it is
    `ragged` on TPU, which has a kernel for ragged_dot, and `blocks` elsewhere: on CPU ragged_dot computes every expert
    for every token, and on GPU it may. Only the choice on CPU is measured (docs/benchmarks.md).
    """
    padded = Blocks.count_rows(num_tokens * num_selected, num_experts)
    if not isinstance(num_tokens, int) or num_tokens * num_experts <= padded:
        return 'dense'
    return 'ragged' if (platform or jax.default_backend()) == 'tpu' else 'blocks'


def arrange(routing: Routing, num_experts: int, plan: str = 'auto') -> Dense | Ragged:
    """Lay out the tokens of a routing by one of `MIXTURE_PLANS`."""
    num_tokens, num_selected = routing.experts.shape
    if isinstance(num_tokens, int) and num_tokens == 0:
        plan = 'dense'  # the other plans would read rows that do not exist
    elif plan == 'auto':
        plan = choose_mixture_plan(num_tokens, num_experts, num_selected)
    return PLANS[plan].arrange(routing, num_experts)


def rank_slots(experts: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Return (rank of each slot among those of its expert, int32[N, k]; slots of each expert, int32[E])."""
    chosen = experts.reshape(-1, 1) == jnp.arange(num_experts)[None]
    passed = jnp.cumsum(chosen.astype(jnp.int32), axis=0)
    ranks = jnp.sum(jnp.where(chosen, passed, 0), axis=1) - 1
    return ranks.reshape(experts.shape), passed[-1]


def _read(values, indices):
    """Read rows of values, zero for an index beyond the last."""
    return jnp.take(values, indices, axis=0, mode='fill', fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _copy(values, rows, slots, spread):
    """Spread tokens, [N, C] -> [M, C], or sum the rows of each token, [M, F] -> [N, F]."""
    if spread:
        return _read(values, slots // rows.shape[1])
    return functools.reduce(jnp.add, [_read(values, rows[:, s]) for s in range(rows.shape[1])])


# Spreading and summing are each other's transposes. With that as the gradient, both directions are gathers; the derived
# gradient would be a scatter, which takes XLA on CPU many times as long.
_copy.defvjp(
    lambda values, rows, slots, spread: (_copy(values, rows, slots, spread), (rows, slots)),
    lambda spread, where, d_found: (_copy(d_found, *where, not spread), None, None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _multiply(x, weights, layout, transposed, spread, combine):
    """Multiply rows of expert e by weights[e]: [M, C], [E, C, F] -> [M, F]; with [E, F, C] if `transposed`."""
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))

    def multiply_expert(expert, found):
        matrix = lax.dynamic_index_in_dim(weights, expert, keepdims=False)

        def multiply_block(start, size, found):
            product = lax.dot_general(layout.read_block(x, start, size, spread), matrix, contracted)
            return lax.dynamic_update_slice_in_dim(found, product, start, 0)

        return layout.fold_blocks(multiply_block, expert, found)

    found = jnp.zeros((layout.slots.shape[0], weights.shape[1 if transposed else 2]), x.dtype)
    *_, found = vary_together(x, weights, layout.slots, found)
    found = lax.fori_loop(0, weights.shape[0], multiply_expert, found)
    return layout.combine(found) if combine else found


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _accumulate(left, right, layout, spread_left, spread_right):
    """Sum left·rightᵀ over the rows of each expert: [M, C], [M, F] -> [E, C, F], at least float32."""
    wide = jnp.promote_types(left.dtype, jnp.float32)
    shape, num_experts = (left.shape[1], right.shape[1]), layout.starts.shape[0]
    *_, found, nothing = vary_together(left, right, jnp.zeros((num_experts, *shape), wide), jnp.zeros(shape, wide))

    def accumulate_expert(expert, found):
        def add_block(start, size, total):
            lefts = layout.read_block(left, start, size, spread_left)
            rights = layout.read_block(right, start, size, spread_right)
            return total + lax.dot_general(lefts, rights, (((0,), (0,)), ((), ())), preferred_element_type=wide)

        total = layout.fold_blocks(add_block, expert, nothing)
        return lax.dynamic_update_index_in_dim(found, total, expert, 0)

    return lax.fori_loop(0, num_experts, accumulate_expert, found)


def _multiply_backward(transposed, spread, combine, saved, d_y):
    x, weights, layout = saved
    # Spreading is the transpose of combining, so each replaces the other in the gradient.
    d_x = _multiply(d_y, weights, layout, not transposed, combine, spread)
    sides = (d_y, x, layout, combine, spread) if transposed else (x, d_y, layout, spread, combine)
    d_weights = _accumulate(*sides)
    return d_x, d_weights.astype(weights.dtype), None


def _accumulate_backward(spread_left, spread_right, saved, d_products):
    left, right, layout = saved
    d_products = d_products.astype(left.dtype)
    d_left = _multiply(right, d_products, layout, True, spread_right, spread_left)
    d_right = _multiply(left, d_products, layout, False, spread_left, spread_right)
    return d_left, d_right, None


_multiply.defvjp(lambda *inputs: (_multiply(*inputs), inputs[:3]), _multiply_backward)
_accumulate.defvjp(lambda *inputs: (_accumulate(*inputs), inputs[:3]), _accumulate_backward)
