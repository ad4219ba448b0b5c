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

from pad_jax.partition.layout import Problem, positions_of
from pad_jax.partition.masks import group_size

NO_GRADIENT = (
    'dynamic factors that equal each other and the static parameters have no gradient through the mask; train some '
    "steps first (start_step > 0) with handoff 'mean', or take criterion 'magnitude' or 'random'"
)
_EXACT = jax.lax.Precision.HIGHEST


class Criterion(NamedTuple):
    """Functions that score positions, and their needs.

    Attributes:
      measure: `(problem, params, gates, batch, key) -> pytree`, summed over batches and devices.
      finish: `(problem, params, masks, total) -> scores`, float[*mask] each; by default the sum itself.
      needs: the functions of `Problem` that it calls. Without any it reads no data and gets None as its only batch.
      adds_up: True if a group gets the sum of its positions, to be divided by their number.
      of_factors: True if it scores only the dynamic factors. Others compare them with the static parameters, and know
        nothing of factors that are copies of these.
      hint: explanation and remedy in the error for scores that are all equal.
    """

    measure: Callable
    finish: Callable | None = None
    needs: tuple[str, ...] = ('loss',)
    adds_up: bool = True
    of_factors: bool = False
    hint: str = NO_GRADIENT


def measure_sensitivity(problem: Problem, params, gates, batch, key):
    """Return ∂L/∂gate: the paper's impact on the loss of switching a position from static to dynamic.

    By the chain rule it is Σ_b dL/dŴ_b · (λd Σ_k α_k W_k − λs W_s); the gate of a group gets the group's sum.
    (Reference: dyconv/pruners.py, SNIP; connection sensitivity of Lee et al. 2019, arXiv:1810.02340.)
    """
    return jax.grad(problem.loss, argnums=1)(params, gates, batch)


def measure_magnitude(problem: Problem, params, gates, batch, key):
    """Return the mean over the factors of |W_k|, summed over the positions of each group."""
    factors = problem.layout.dynamic(params, gates)
    return jax.tree.map(lambda gate, leaf: _sum_by_gate(jnp.abs(leaf).mean(0), gate), gates, factors)


def measure_random(problem: Problem, params, gates, batch, key):
    """Return uniform numbers in [0, 1): the control that every other criterion has to beat."""
    leaves, structure = jax.tree.flatten(gates)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([jax.random.uniform(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def measure_gradient_flow(problem: Problem, params, gates, batch, key):
    """Return Σ_k W_k · (H g)_k for the gradient g and the Hessian H of the loss: the gradient flow of the factors.

    GraSP (Wang et al. 2020, arXiv:2002.07376, eq. 8) of the dynamic factors, because H g is the gradient of ½‖g‖².
    Signed: positions that carry gradient flow stay dynamic.
    """

    def gradient_flow(params):
        gradients = jax.tree.leaves(jax.grad(problem.loss, allow_int=True)(params, gates, batch))
        return 0.5 * sum(jnp.vdot(leaf, leaf) for leaf in gradients if leaf.dtype != jax.dtypes.float0)

    return _saliency(problem, params, gates, jax.grad(gradient_flow, allow_int=True)(params))


def measure_synaptic_flow(problem: Problem, params, gates, batch, key):
    """Return Σ_k |W_k| · ∂R/∂|W_k| for R = the sum of the outputs with |params| on an input of ones.

    SynFlow (Tanaka et al. 2020, arXiv:2006.05467, eq. 2) of the dynamic factors. It reads only the shapes of the data;
    integers (token ids) and scalars (a temperature) stay as they are. R of a deep network without effective norms may
    overflow, and then its scores are refused.
    """

    def change_floats(change, tree):
        return jax.tree.map(lambda leaf: change(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)

    positive = change_floats(jnp.abs, params)
    ones = change_floats(lambda leaf: jnp.ones_like(leaf) if leaf.ndim else leaf, batch)
    flow = jax.grad(lambda params: jnp.sum(problem.output(params, gates, ones)), allow_int=True)(positive)
    return _saliency(problem, positive, gates, flow)


def measure_routing(problem: Problem, params, gates, batch, key):
    """Return (count, first, second) behind every mask: the number of routed rows, and two sums over them.

    They are sums of mixing weights float[K] and of their products float[K, K]. Weights are centred at 1/K, so float32
    keeps their digits. For generated values they are sums of the values and of their squares, float[*shape] each. A row
    of zero weights is padding.
    """

    def moments(gate, part, rows):
        rows = rows.astype(jnp.float32)
        if part.generated:
            return jnp.float32(rows.shape[0]), rows.sum(0), jnp.square(rows).sum(0)
        routed = jnp.any(rows != 0, axis=-1)
        centred = jnp.where(routed[:, None], rows - 1 / rows.shape[-1], 0)
        return jnp.sum(routed, dtype=jnp.float32), centred.sum(0), jnp.dot(centred.T, centred, precision=_EXACT)

    return jax.tree.map(moments, gates, problem.layout.read(params, gates), problem.routing(params, gates, batch))


def finish_absolute(problem: Problem, params, masks, total):
    """Return the absolute sums."""
    return jax.tree.map(jnp.abs, total)


def finish_variance(problem: Problem, params, masks, total):
    """Return the variance over the inputs of the dynamic parameter Σ_k α_k(x) W_k, summed over each group.

    With C the covariance of the mixing weights, the variance at a position is `wᵀ C w` for `w = (W_1, ..., W_K)`. For
    generated parameters it is the variance of the values. (Reference: dyconv/pruners.py, Variant.)

    A variance within float32's rounding error counts as 0, so that it cannot pass as a score. It occurs if the weights
    are the same for all rows, or if the factors are copies.
    """

    def contract(matrix, factors):
        return jnp.sum(jnp.tensordot(matrix, factors, axes=1, precision=_EXACT) * factors, axis=0)

    def variance(mask, part, moments):
        count, first, second = moments
        mean, second = first / count, second / count
        if part.generated:
            varied, terms = second - mean**2, second
        else:
            factors = part.dynamic.astype(jnp.float32)
            varied = contract(second - jnp.outer(mean, mean), factors)
            terms = contract(jnp.abs(second), jnp.abs(factors))
        rounding = 4 * part.dynamic.shape[0] * jnp.finfo(jnp.float32).eps * terms
        return _sum_by_gate(jnp.where(varied > rounding, varied, 0), mask)

    return jax.tree.map(variance, masks, problem.layout.read(params, masks), total)


def _saliency(problem, params, gates, gradients):
    """Return Σ_k W_k · gradient_k, summed over the positions of each group."""
    factors, slopes = (problem.layout.dynamic(tree, gates) for tree in (params, gradients))
    return jax.tree.map(lambda gate, leaf, by: _sum_by_gate((leaf * by).sum(0), gate), gates, factors, slopes)


def _sum_by_gate(values, mask):
    """Sum float[*shape] over the positions of each gate, to float[*mask]."""
    grouped = tuple(axis for axis, gates in enumerate(mask.shape) if gates == 1)
    return jnp.sum(values, axis=grouped, keepdims=True)


CRITERIA = {
    'sensitivity': Criterion(measure_sensitivity, finish_absolute),
    'magnitude': Criterion(
        measure_magnitude, needs=(), of_factors=True, hint="take criterion 'sensitivity' or 'random'"
    ),
    'random': Criterion(measure_random, needs=(), adds_up=False),
    'grasp': Criterion(measure_gradient_flow, of_factors=True),
    'synflow': Criterion(measure_synaptic_flow, needs=('output',), of_factors=True),
    'variance': Criterion(
        measure_routing,
        finish_variance,
        needs=('routing',),
        hint='routing weights that are the same for every input, or factors that equal each other, do not vary; train '
        "some steps first (start_step > 0), or take criterion 'sensitivity'",
    ),
}


def score_positions(
    problem: Problem, params, masks, batches: Iterable, criterion: str = 'sensitivity', key=None, axis_name=None
):
    """Score every gate under a criterion: float[*mask] per position, higher stays dynamic.

    Args:
      problem, params: the network; scores are taken at the gates of its `masks` so far.
      batches: scoring batches, as `problem.loss` takes them.
      criterion: a row of `CRITERIA`.
      key: jax.random.key, for `random`; key(0) if None.
      axis_name: inside pmap or shard_map, the axis to sum the measurements over. All replicas then get the scores of
        one device on the whole batch. `grasp` is an exception, because it is not linear in the gradient.

    Raises:
      ValueError: on an unknown criterion, a function that it needs and `problem` lacks, or no batches to read.
    """
    if criterion not in CRITERIA:
        raise ValueError(f'criterion must be one of {", ".join(CRITERIA)}, got {criterion!r}')
    row = CRITERIA[criterion]
    for field in row.needs:
        if getattr(problem, field) is None:
            raise ValueError(f'criterion {criterion!r} needs the function {field!r}, which was not given')
    if not row.needs:
        batches, axis_name = [None], None
    total = _sum_batches(row.measure, problem, params, masks, batches, key, axis_name)
    return _finish(row, problem, params, masks, total)


def mean_routing(problem: Problem, params, masks, batches: Iterable):
    """Return the means over batches behind every mask: mixing weights float[K], or generated values float[*shape]."""

    def mean(mask, part, moments):
        count, first, _ = moments
        return first / count + (0 if part.generated else 1 / first.shape[0])

    total = _sum_batches(measure_routing, problem, params, masks, batches)
    return jax.tree.map(mean, masks, problem.layout.read(params, masks), total)


def _sum_batches(measure, problem, params, masks, batches, key=None, axis_name=None):
    key, total = jax.random.key(0) if key is None else key, None
    for batch in batches:
        found = _measure(measure, problem, params, masks, batch, key, axis_name)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise ValueError('batches must hold at least one scoring batch, got none')
    return total


# Each is compiled once for all rounds: masks and parameters are traced.
@functools.partial(jax.jit, static_argnames=('measure', 'problem', 'axis_name'))
def _measure(measure, problem, params, masks, batch, key, axis_name):
    gates = as_gates(masks)
    if axis_name is None:
        return measure(problem, params, gates, batch, key)
    # Each replica computes its own measurement before the sum. Otherwise shard_map would sum the gradient of shared
    # arrays early, and pmap would not. That differs for measurements that are not linear in the gradient.
    mine = jax.lax.axis_index(axis_name) >= 0
    params, gates = jax.tree.map(lambda leaf: jnp.where(mine, leaf, leaf), (params, gates))
    return jax.lax.psum(measure(problem, params, gates, batch, key), axis_name)


@functools.partial(jax.jit, static_argnames=('row', 'problem'))
def _finish(row, problem, params, masks, total):
    scores = total if row.finish is None else row.finish(problem, params, masks, total)
    if not row.adds_up:
        return scores
    sizes = jax.tree.map(group_size, masks, positions_of(problem.layout, params, masks))
    return jax.tree.map(jnp.divide, scores, sizes)


def as_gates(masks):
    """Return float copies of the masks, to be differentiated."""
    return jax.tree.map(lambda mask: mask.astype(jnp.float32), masks)
