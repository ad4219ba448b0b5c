"""Execution of a mixture of experts: plans that bring tokens to their experts, all with the same numbers.

A plan is a layout, made by `arrange`. It copies tokens into rows, each of which belongs to one expert:

    apply(function, experts, shared, mask, x [N, C]) -> [N, F]

`experts` is a pytree of [E, ...], `shared` one of what all experts use. `function(products, experts, shared, mask,
rows, weights) -> rows` computes all experts at once or one of them, and `products` hides which:

    multiply(rows, matrices, transposed)    Multiply each row by the matrix of its expert, or by its transpose.
    take(vectors)                           Read the vector of each row's expert.

`weights` has the routing weight of each row, which the function multiplies in before or after its products. Rows
without a token have weight zero. The rows of a token are summed; a token without experts gets zero. Everything is
differentiable in reverse, to any order, except with respect to the mask. A slot is one of the k choices of a token, M
the number of rows.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.kernels.factors import at_least_float32, vary_together

# Rows of a product, large to small. Measured on CPU with benchmarks/moe.py, see docs/benchmarks.md.
BLOCK_SIZES = (128, 32)


class Routing(NamedTuple):
    """Experts of each token, with their weights. A token that is not valid has weight zero."""

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

    def apply(self, function: Callable, experts: Any, shared: Any, mask: jax.Array | None, x: jax.Array) -> jax.Array:
        rows = jnp.broadcast_to(x[None], (self.gates.shape[1], *x.shape))
        return jnp.sum(function(self, experts, shared, mask, rows, self.gates.T.astype(x.dtype)[:, :, None]), axis=0)

    def multiply(self, rows: jax.Array, matrices: jax.Array, transposed: bool = False) -> jax.Array:
        return jnp.einsum('enc,efc->enf' if transposed else 'enc,ecf->enf', rows, matrices)

    def take(self, vectors: jax.Array) -> jax.Array:
        return vectors[:, None]


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

    def apply(self, function: Callable, experts: Any, shared: Any, mask: jax.Array | None, x: jax.Array) -> jax.Array:
        rows = _copy(x, self.rows, self.slots, True)
        return _copy(
            function(self, experts, shared, mask, rows, self.read_weights(x.dtype)), self.rows, self.slots, False
        )

    def multiply(self, rows: jax.Array, matrices: jax.Array, transposed: bool = False) -> jax.Array:
        rows, matrices, _ = vary_together(rows, matrices, self.slots)
        return _multiply_ragged(rows, jnp.swapaxes(matrices, 1, 2) if transposed else matrices, self.counts)

    def take(self, vectors: jax.Array) -> jax.Array:
        experts = jnp.take(self.experts.reshape(-1), self.slots, mode='fill', fill_value=vectors.shape[0])
        # A product, because its gradient is one too; the gradient of an indexed read would be a scatter.
        chosen = (experts[:, None] == jnp.arange(vectors.shape[0])[None]).astype(vectors.dtype)
        return jnp.dot(chosen, vectors, precision=lax.Precision.HIGHEST)

    def read_weights(self, dtype) -> jax.Array:
        """Read the weight of each row: [M, 1]."""
        return jnp.take(self.weights.reshape(-1), self.slots, mode='fill', fill_value=0).astype(dtype)[:, None]


class Blocks(Ragged):
    """Rows of each expert padded to whole small blocks, multiplied in as many blocks as the experts really have.

    One loop runs over the experts. Inner loops run over the expert's rows: large blocks while they last, because a
    larger product is faster, then small blocks, which leave little padding. Shapes are static, trip counts are not, so
    tokens without experts cost nothing. Tokens are spread, and experts put together from both parts, inside the loop:
    to write all of them out would cost a good part of the products.
    """

    alignment = BLOCK_SIZES[-1]

    def apply(self, function: Callable, experts: Any, shared: Any, mask: jax.Array | None, x: jax.Array) -> jax.Array:
        def call(experts, shared, mask, tokens, rows):
            return function(_ONE_EXPERT, experts, shared, mask, tokens, rows), (), (), ()

        inputs = experts, shared, x, self.read_weights(x.dtype)
        leaves, structure = jax.tree.flatten(inputs)
        *leaves, _ = vary_together(*leaves, self.slots)
        experts, shared, x, weights = structure.unflatten(leaves)
        return _fold(call, self, mask, experts, shared, x, weights)[0]


# Products of the rows of one expert.
_ONE_EXPERT = types.SimpleNamespace(
    multiply=lambda rows, matrix, transposed=False: lax.dot_general(rows, matrix, (((1,), (+transposed,)), ((), ()))),
    take=lambda vector: vector[None],
)


class Slots(NamedTuple):
    """One product for each slot, which reads its own expert only: rows are [1, ...]. For a few tokens."""

    experts: jax.Array  # as in `Routing`, and so are the weights
    weights: jax.Array

    @classmethod
    def arrange(cls, routing: Routing, num_experts: int) -> 'Slots':
        return cls(*routing)

    def apply(self, function: Callable, experts: Any, shared: Any, mask: jax.Array | None, x: jax.Array) -> jax.Array:
        def run(slot):
            expert, weight, row = slot
            part = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, expert, keepdims=False), experts)
            return function(_ONE_EXPERT, part, shared, mask, row[None], weight.astype(x.dtype)[None, None])[0]

        rows = jnp.repeat(x, self.experts.shape[1], axis=0)
        found = lax.map(run, (self.experts.reshape(-1), self.weights.reshape(-1), rows))
        return jnp.sum(found.reshape(*self.experts.shape, -1), axis=1)


PLANS = {'dense': Dense, 'slots': Slots, 'blocks': Blocks, 'ragged': Ragged}
MIXTURE_PLANS = ('auto', *PLANS)


def choose_mixture_plan(num_tokens: int, num_experts: int, num_selected: int, platform: str | None = None) -> str:
    """Choose a fast plan from shapes only, at trace time.

    The plan is `dense` for a symbolic number of tokens, or if padding costs other plans as many rows. On CPU with fewer
    slots than experts it is `slots`, which reads the parameters of chosen experts only. Otherwise it is `ragged` on
    TPU, which has a kernel for ragged_dot, and `blocks` elsewhere: on CPU ragged_dot computes every expert for every
    token, and on GPU it may. Only the choice on CPU is measured (docs/benchmarks.md).
    """
    platform = platform or jax.default_backend()
    if isinstance(num_tokens, int) and num_tokens * num_selected < num_experts and platform == 'cpu':
        return 'slots'
    padded = Blocks.count_rows(num_tokens * num_selected, num_experts)
    if not isinstance(num_tokens, int) or num_tokens * num_experts <= padded:
        return 'dense'
    return 'ragged' if platform == 'tpu' else 'blocks'


def arrange(routing: Routing, num_experts: int, plan: str = 'auto') -> Dense | Slots | Ragged:
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


@jax.custom_vjp
def _multiply_ragged(rows, matrices, counts):
    """Multiply [M, C], sorted by expert, by [E, C, F] -> [M, F]. JAX has no second derivative of `ragged_dot`."""
    return lax.ragged_dot(rows, matrices, counts)


@jax.custom_vjp
def _accumulate_ragged(rows, others, counts):
    """Sum rows·othersᵀ for each expert: [M, C], [M, F] -> [E, C, F], the gradient of the matrices."""
    shape = jax.ShapeDtypeStruct((counts.shape[0], rows.shape[1], others.shape[1]), rows.dtype)
    return jax.linear_transpose(lambda matrices: lax.ragged_dot(rows, matrices, counts), shape)(others)[0]


def _pull_ragged(saved, d_y):
    rows, matrices, counts = saved
    return _multiply_ragged(d_y, jnp.swapaxes(matrices, 1, 2), counts), _accumulate_ragged(rows, d_y, counts), None


def _pull_accumulated(saved, d_sums):
    rows, others, counts = saved
    d_rows = _multiply_ragged(others, jnp.swapaxes(d_sums, 1, 2), counts)
    return d_rows, _multiply_ragged(rows, d_sums, counts), None


_multiply_ragged.defvjp(lambda *inputs: (_multiply_ragged(*inputs), inputs), _pull_ragged)
_accumulate_ragged.defvjp(lambda *inputs: (_accumulate_ragged(*inputs), inputs), _pull_accumulated)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fold(function, layout, mask, experts, shared, tokens, rows):
    """Apply a function to the rows of each expert, block by block.

    Args:
      function: called with an expert's part of `experts`, then shared, mask, tokens [R, ...] and rows [R, ...] of a
        block. It returns four pytrees: tokens and rows of the block, sums over it for the expert, and sums for all.
      layout: `Blocks`.
      mask: any arrays; they get no gradient.
      experts, tokens, rows: pytrees of [E, ...], [N, ...] and [M, ...].
      shared: a pytree.

    Returns:
      (tokens [N, ...], each the sum of its rows; rows [M, ...]; sums over the rows of each expert [E, ...]; sums over
      all rows). The gradient of this function is this function, with the gradient of `function`.
    """
    num_experts, num_rows, num_selected = layout.starts.shape[0], layout.slots.shape[0], layout.rows.shape[1]

    def call(expert, start, size):
        part = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, expert, keepdims=False), experts)
        indices = lax.dynamic_slice_in_dim(layout.slots, start, size) // num_selected
        block = jax.tree.map(lambda leaf: _read(leaf, indices), tokens)
        own_rows = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), rows)
        return function(part, shared, mask, block, own_rows)

    def run_block(expert, size, carry, start):
        def write(old, new):
            return lax.dynamic_update_slice_in_dim(old, new, start, 0)

        def add(old, new):
            total = lax.dynamic_index_in_dim(old, expert, keepdims=False) + new.astype(old.dtype)
            return lax.dynamic_update_index_in_dim(old, total, expert, 0)

        written, by_expert, by_all = carry
        *new, sums, more = call(expert, start, size)
        written = jax.tree.map(write, written, tuple(new))
        by_all = jax.tree.map(lambda old, new: old + new.astype(old.dtype), by_all, more)
        return (written, jax.tree.map(add, by_expert, sums), by_all), start + size

    def run_expert(expert, carry):
        start, count = layout.starts[expert], layout.counts[expert]
        for size in BLOCK_SIZES:
            if size > num_rows:
                continue  # such a block does not fit, and a slice of that size is an error even if never taken
            num_blocks = count // size if size != BLOCK_SIZES[-1] else -(-count // size)
            run = functools.partial(run_block, expert, size)
            carry, start = lax.fori_loop(0, num_blocks, lambda _, carry, run=run: run(*carry), (carry, start))
            count -= num_blocks * size
        return carry

    *found, sums, more = jax.eval_shape(lambda: call(0, 0, BLOCK_SIZES[-1]))
    start = (
        jax.tree.map(lambda leaf: jnp.zeros((num_rows, *leaf.shape[1:]), leaf.dtype), tuple(found)),
        jax.tree.map(lambda leaf: jnp.zeros((num_experts, *leaf.shape), at_least_float32(leaf.dtype)), sums),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, at_least_float32(leaf.dtype)), more),
    )
    leaves = jax.tree.leaves((experts, shared, tokens, rows))
    start = jax.tree.map(lambda zero: vary_together(*leaves, layout.slots, zero)[-1], start)
    written, *totals = lax.fori_loop(0, num_experts, run_expert, start)
    copied = jax.tree.map(lambda leaf: _copy(leaf, layout.rows, layout.slots, False), written[0])
    return copied, written[1], *jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), tuple(totals), (sums, more))


def _fold_backward(function, saved, cotangents):
    layout, mask, experts, shared, tokens, rows = saved
    d_tokens, d_rows, d_experts, d_shared = cotangents

    def pull(experts, shared, mask, tokens, rows):
        inputs, cotangents = zip(tokens, rows, experts, shared)
        _, pull_block = jax.vjp(lambda tokens, rows, *both: function(*both, mask, tokens, rows), *inputs)
        return pull_block(cotangents)

    # A cotangent has the kind of what it belongs to: tokens, rows, an expert's values, or those of all.
    pairs = (experts, d_experts), (shared, d_shared), (tokens, d_tokens), (rows, d_rows)
    d_tokens, d_rows, d_experts, d_shared = _fold(pull, layout, mask, *pairs)
    return None, None, d_experts, d_shared, d_tokens, d_rows


_fold.defvjp(lambda function, *inputs: (_fold(function, *inputs), inputs), _fold_backward)
