"""Criteria: scores of positions. Positions with a higher score stay dynamic.

A gate for a group of positions gets the sum of their gradients by the chain rule. Its score is that sum divided by
the number of positions. So a large group wins by its worth and not by its size.

A criterion is a row of `CRITERIA`. It measures each scoring batch; the sum of the measurements over batches (and over
devices) is turned into scores. A new criterion is one function and one row. `*mask` is the shape of a mask.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.layout import Problem, is_part, positions_of
from pad_jax.partition.masks import group_size

LATER = "train some steps first (start_step > 0) with handoff 'mean', or take criterion 'magnitude' or 'random'"
NO_GRADIENT = (
    'dynamic factors that equal each other and the static parameters have no gradient through the mask; ' + LATER
)
_EXACT = jax.lax.Precision.HIGHEST
_LEAST_SIZE = 1e-30  # of SynFlow's input


def finish_unchanged(problem: Problem, params, masks, total):
    """Return the summed measurements as the scores."""
    return total


class Criterion(NamedTuple):
    """Functions that score positions, and their needs.

    Attributes:
      measure: `(problem, params, gates, batch, key) -> pytree`, summed over batches and devices.
      finish: `(problem, params, masks, total) -> scores`, float[*mask] each; by default the sum itself.
      reads_data: False if `measure` is called once, with batch None.
      needs: the optional fields of `Problem` that it reads.
      adds_up: True if `finish` gives a group the sum of its positions, to be divided by their number.
      hint: explanation and remedy in the error for scores that are all equal.
    """

    measure: Callable
    finish: Callable = finish_unchanged
    reads_data: bool = True
    needs: tuple[str, ...] = ()
    adds_up: bool = True
    hint: str = NO_GRADIENT


def measure_sensitivity(problem: Problem, params, gates, batch, key):
    """Return ∂L/∂gate: the paper's impact on the loss of switching a position from static to dynamic.

    By the chain rule it is Σ_b dL/dŴ_b · (λd Σ_k α_k W_k − λs W_s); the gate of a group gets the group's sum.
    (Reference: dyconv/pruners.py, SNIP; connection sensitivity of Lee et al. 2019, arXiv:1810.02340.)
    """
    return jax.grad(problem.loss, argnums=1)(params, gates, batch)


def measure_gradient_flow(problem: Problem, params, gates, batch, key):
    """Return ∂(½‖∂L/∂params‖²)/∂gate: the gradient flow that a switch to dynamic adds.

    GraSP (Wang et al. 2020, arXiv:2002.07376, eq. 8) through the gate. Signed: positions that add gradient flow
    stay dynamic.
    """

    def gradient_flow(gates):
        gradients = jax.tree.leaves(jax.grad(problem.loss, allow_int=True)(params, gates, batch))
        return 0.5 * sum(jnp.vdot(leaf, leaf) for leaf in gradients if leaf.dtype != jax.dtypes.float0)

    return jax.grad(gradient_flow)(gates)


def measure_synaptic_flow(problem: Problem, params, gates, batch, key):
    """Return ∂R/∂gate for R = the sum of the outputs with |params| on an input of ones.

    SynFlow (Tanaka et al. 2020, arXiv:2006.05467, eq. 2) through the gate. It reads only the shapes of the data;
    integers (token ids) and scalars (a temperature) stay as they are. A deep network without effective norms
    overflows, above all if it multiplies generated values with its input. Then the ones are made smaller, which keeps
    the order of the scores in a linear network.
    """

    def is_float(leaf):
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    positive = jax.tree.map(lambda leaf: jnp.abs(leaf) if is_float(leaf) else leaf, params)

    def shrink(state):
        size = state[0] / 16
        inputs = jax.tree.map(lambda leaf: jnp.full_like(leaf, size) if is_float(leaf) and leaf.ndim else leaf, batch)
        return size, jax.grad(lambda gates: jnp.sum(problem.output(positive, gates, inputs)))(gates)

    def overflows(state):
        size, flow = state
        finite = jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), flow)
        return ~jnp.all(jnp.stack(jax.tree.leaves(finite))) & (size > _LEAST_SIZE)

    start = jax.tree.map(lambda gate: jnp.full_like(gate, jnp.nan), gates)
    return jax.lax.while_loop(overflows, shrink, (jnp.float32(16), start))[1]


def measure_random(problem: Problem, params, gates, batch, key):
    """Return uniform numbers in [0, 1): the control that every other criterion has to beat."""
    leaves, structure = jax.tree.flatten(gates)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([jax.random.uniform(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


class Moments(NamedTuple):
    """Sums over rows of mixing weights, centred at 1/K so that float32 sums keep their digits, or of generated values.

    Attributes:
      count: number of rows that are routed.
      first: float[K], or float[*shape].
      second: float[K, K] of products, or float[*shape] of squares.
    """

    count: jax.Array
    first: jax.Array
    second: jax.Array


def measure_routing(problem: Problem, params, gates, batch, key):
    """Return the `Moments` of the mixing weights (or values) behind every mask, over all routed rows.

    A row of zero weights is padding.
    """

    def moments(part, rows):
        rows = rows.astype(jnp.float32)
        if part.generated:
            return Moments(jnp.float32(rows.shape[0]), rows.sum(0), jnp.square(rows).sum(0))
        routed = jnp.any(rows != 0, axis=-1)
        centred = jnp.where(routed[:, None], rows - 1 / rows.shape[-1], 0)
        second = jnp.einsum('nk,nl->kl', centred, centred, precision=_EXACT)
        return Moments(jnp.sum(routed).astype(jnp.float32), jnp.sum(centred, axis=0), second)

    parts = problem.layout.read(params, gates)
    return jax.tree.map(moments, parts, problem.routing(params, gates, batch), is_leaf=is_part)


def mean_routing(problem: Problem, params, masks, total):
    """Return the means behind every mask from `measure_routing`: weights float[K], or values float[*shape]."""

    def mean(part, moments):
        return moments.first / moments.count + (0 if part.generated else 1 / moments.first.shape[0])

    return jax.tree.map(mean, problem.layout.read(params, masks), total, is_leaf=is_part)


def finish_absolute(problem: Problem, params, masks, total):
    """Return the absolute sums."""
    return jax.tree.map(jnp.abs, total)


def finish_magnitude(problem: Problem, params, masks, total):
    """Return the mean over the factors of |W_k|, summed over the positions of each group."""
    factors = problem.layout.dynamic(params, masks)
    return jax.tree.map(lambda leaf, mask: _sum_by_gate(jnp.abs(leaf).mean(0), mask), factors, masks)


def finish_variance(problem: Problem, params, masks, total):
    """Return the variance over the inputs of the dynamic parameter Σ_k α_k(x) W_k, summed over each group.

    With C the covariance of the mixing weights, the variance at a position is `wᵀ C w` for `w = (W_1, ..., W_K)`. For
    generated parameters it is the variance of the values. (Reference: dyconv/pruners.py, Variant.)

    A variance within float32's rounding error counts as 0, so that it cannot pass as a score. It occurs if the weights
    are the same for all rows, or if the factors are copies.
    """

    def variance(part, mask, moments):
        factors = part.dynamic.astype(jnp.float32)
        mean, second = moments.first / moments.count, moments.second / moments.count
        if part.generated:
            return _sum_by_gate(jnp.maximum(_unless_rounding(second - mean**2, second, 4), 0), mask)
        covariance = _unless_rounding(second - jnp.outer(mean, mean), second, moments.second.shape[0])
        varied = jnp.tensordot(covariance, factors, axes=1, precision=_EXACT)
        summed = jnp.tensordot(jnp.abs(covariance), jnp.abs(factors), axes=1, precision=_EXACT)
        total = jnp.sum(varied * factors, axis=0)
        bound = jnp.sum(summed * jnp.abs(factors), axis=0)
        return _sum_by_gate(jnp.maximum(_unless_rounding(total, bound, factors.shape[0]), 0), mask)

    return jax.tree.map(variance, problem.layout.read(params, masks), masks, total, is_leaf=is_part)


def _unless_rounding(values, terms, num_terms):
    """Return `values`, with 0 where they are within the rounding of sums over `num_terms` terms as large as `terms`."""
    return jnp.where(jnp.abs(values) > 4 * num_terms * jnp.finfo(jnp.float32).eps * jnp.abs(terms), values, 0)


def _sum_by_gate(values, mask):
    """Sum float[*shape] over the positions of each gate, to float[*mask]."""
    grouped = tuple(axis for axis, gates in enumerate(mask.shape) if gates == 1)
    return jnp.sum(values, axis=grouped, keepdims=True)


def _measure_nothing(problem: Problem, params, gates, batch, key):
    return ()


CRITERIA = {
    'sensitivity': Criterion(measure_sensitivity, finish_absolute),
    'magnitude': Criterion(
        _measure_nothing, finish_magnitude, reads_data=False, hint="take criterion 'sensitivity' or 'random'"
    ),
    'random': Criterion(measure_random, reads_data=False, adds_up=False),
    'grasp': Criterion(measure_gradient_flow),
    'synflow': Criterion(measure_synaptic_flow, finish_absolute, needs=('output',)),
    'variance': Criterion(
        measure_routing,
        finish_variance,
        needs=('routing',),
        hint='routing weights that are the same for every input, or factors that equal each other, do not vary; train '
        "some steps first (start_step > 0), or take criterion 'sensitivity'",
    ),
}


def get_criterion(name: str, problem: Problem) -> Criterion:
    """Return the row of `CRITERIA`, after a check that the problem has all functions that it needs."""
    if name not in CRITERIA:
        raise ValueError(f'criterion must be one of {", ".join(CRITERIA)}, got {name!r}')
    for field in CRITERIA[name].needs:
        if getattr(problem, field) is None:
            raise ValueError(f'criterion {name!r} needs the function {field!r}, which was not given')
    return CRITERIA[name]


def as_gates(masks):
    """Return float copies of the masks, to be differentiated."""
    return jax.tree.map(lambda mask: mask.astype(jnp.float32), masks)


def score_positions(
    problem: Problem, params, masks, batches: Iterable, criterion: str = 'sensitivity', key=None, axis_name=None
):
    """Score every gate under a criterion: float[*mask] per position, higher stays dynamic.

    Args:
      problem: the network.
      params: its parameters.
      masks: the masks so far; scores are taken at their gates.
      batches: scoring batches, as `problem.loss` takes them.
      criterion: a row of `CRITERIA`.
      key: jax.random.key, for `random`; key(0) if None.
      axis_name: inside pmap or shard_map, the axis to sum the measurements over. All replicas then get the scores of
        one device on the whole batch. `grasp` is an exception, because it is not linear in the gradient.

    Raises:
      ValueError: on an unknown criterion, or no batches for one that reads data.
    """
    row = get_criterion(criterion, problem)
    key = jax.random.key(0) if key is None else key
    if not row.reads_data:
        batches, axis_name = [None], None
    total = measure_batches(row.measure, problem, params, masks, batches, key, axis_name)
    if total is None:
        raise ValueError(f'criterion {criterion!r} needs at least one scoring batch, got none')
    return _finish(row, problem, params, masks, total)


def measure_batches(measure, problem, params, masks, batches, key, axis_name=None):
    """Sum a measurement over batches (and devices); None without batches."""
    total = None
    for batch in batches:
        found = _measure(measure, problem, params, masks, batch, key, axis_name)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total


# Each is compiled once for all rounds: masks and parameters are traced.
@functools.partial(jax.jit, static_argnames=('measure', 'problem', 'axis_name'))
def _measure(measure, problem, params, masks, batch, key, axis_name=None):
    gates = as_gates(masks)
    if axis_name is not None:
        # Each replica computes its own measurement before the sum. Otherwise shard_map would sum the gradient of shared
        # arrays early, and pmap would not. That differs for measurements that are not linear in the gradient.
        params, gates = jax.tree.map(functools.partial(_vary, axis_name=axis_name), (params, gates))
    found = measure(problem, params, gates, batch, key)
    return found if axis_name is None else jax.lax.psum(found, axis_name)


def _vary(leaf, axis_name):
    """Return the same values, typed as different on each replica."""
    return jnp.where(jax.lax.axis_index(axis_name) >= 0, leaf, leaf)


@functools.partial(jax.jit, static_argnames=('criterion', 'problem'))
def _finish(criterion, problem, params, masks, total):
    scores = criterion.finish(problem, params, masks, total)
    if not criterion.adds_up:
        return scores
    sizes = jax.tree.map(group_size, masks, positions_of(problem.layout, params, masks))
    return jax.tree.map(jnp.divide, scores, sizes)
