"""Criteria: what scores a position. Higher stays dynamic.

A gate that stands for a group of positions gets the sum of theirs by the chain rule; its score is that sum per
position, so that a large group, which takes up more of what may stay dynamic, wins by being worth it and not by size.

A criterion is a row of `CRITERIA`. It measures something on each scoring batch, the measurements are summed over
batches (and over devices), and the sum is turned into scores. Adding one is one function and one row.

Axis letters: N routed rows, K stacked factors, `*shape` one position tensor, `*mask` the shape of its mask.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.checks import NO_GRADIENT
from pad_jax.partition.problem import Problem, Values

_EXACT = jax.lax.Precision.HIGHEST
_LEAST_SIZE = 1e-30  # of SynFlow's input


def finish_unchanged(problem: Problem, params, masks, total):
    return total


class Criterion(NamedTuple):
    """How a position is scored.

    Attributes:
      measure: `(problem, params, gates, batch, key) -> pytree`, summed over batches and devices.
      finish: `(problem, params, masks, total) -> scores`, float[*mask] each; by default the sum itself.
      reads_data: False: `measure` is called once, with batch None.
      needs: the optional fields of `Problem` that it can't do without.
      adds_up: True: what `finish` gives a group is the sum of its positions, to be divided by their number.
      hint: what it means that all scores are equal, and what to do then.
    """

    measure: Callable
    finish: Callable = finish_unchanged
    reads_data: bool = True
    needs: tuple[str, ...] = ()
    adds_up: bool = True
    hint: str = NO_GRADIENT


def measure_sensitivity(problem: Problem, params, gates, batch, key):
    """∂L/∂gate: the paper's impact on the loss of switching a position from static to dynamic.

    By the chain rule it is Σ_b dL/dŴ_b · (λd Σ_k α_k W_k − λs W_s), and a gate that stands for a group gets the
    group's sum. (Reference: dyconv/pruners.py, SNIP; connection sensitivity of Lee et al. 2019, arXiv:1810.02340.)
    """
    return jax.grad(problem.loss, argnums=1)(params, gates, batch)


def measure_gradient_flow(problem: Problem, params, gates, batch, key):
    """∂(½‖∂L/∂params‖²)/∂gate: what the switch to dynamic adds to the gradient flow.

    GraSP (Wang et al. 2020, arXiv:2002.07376, eq. 8) through the gate. Signed: positions that add gradient flow
    stay dynamic.
    """

    def gradient_flow(gates):
        gradients = jax.tree.leaves(jax.grad(problem.loss, allow_int=True)(params, gates, batch))
        return 0.5 * sum(jnp.vdot(leaf, leaf) for leaf in gradients if leaf.dtype != jax.dtypes.float0)

    return jax.grad(gradient_flow)(gates)


def measure_synaptic_flow(problem: Problem, params, gates, batch, key):
    """∂R/∂gate for R = the sum of the outputs with |params| on an input of ones.

    SynFlow (Tanaka et al. 2020, arXiv:2006.05467, eq. 2) through the gate. It sees the shapes of the data only;
    integers (token ids) and scalars (a temperature) stay as they are. Without norms that do anything a deep network
    overflows, above all one that multiplies what it generates with its input; then the ones are made smaller, which
    changes nothing of the order in a network that is linear.
    """

    def of_floats(function, tree, least_axes):
        def replace(leaf):
            return function(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim >= least_axes else leaf

        return jax.tree.map(replace, tree)

    positive = of_floats(jnp.abs, params, 0)

    def flow_at(size):
        inputs = of_floats(lambda leaf: jnp.full_like(leaf, size), batch, 1)
        return jax.grad(lambda gates: jnp.sum(problem.output(positive, gates, inputs)))(gates)

    def overflows(state):
        size, flow = state
        finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(flow)])
        return ~jnp.all(finite) & (size > _LEAST_SIZE)

    def shrink(state):
        size = state[0] / 16
        return size, flow_at(size)

    start = jax.tree.map(lambda gate: jnp.full_like(gate, jnp.nan), gates)
    return jax.lax.while_loop(overflows, shrink, (jnp.float32(16), start))[1]


def measure_random(problem: Problem, params, gates, batch, key):
    """Uniform in [0, 1): the control that any other criterion has to beat."""
    leaves, structure = jax.tree.flatten(gates)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([jax.random.uniform(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


class RoutingMoments(NamedTuple):
    """Sums over rows of routing weights, centred at 1/K so that float32 sums keep their digits."""

    count: jax.Array  # number of rows that are routed
    first: jax.Array  # float[K]
    second: jax.Array  # float[K, K]


class ValueMoments(NamedTuple):
    """Sums over rows of `Values` and of their squares."""

    count: jax.Array
    first: jax.Array  # float[*shape]
    second: jax.Array  # float[*shape]


def is_moments(node) -> bool:
    """For jax.tree.map over what `measure_routing` gives."""
    return isinstance(node, (RoutingMoments, ValueMoments))


def measure_routing(problem: Problem, params, gates, batch, key):
    """First and second moments of the routing weights (or values) behind every mask, over the rows that are routed.

    A row of zero routing weights is padding: it was given to no factor.
    """

    def moments(weights):
        if isinstance(weights, Values):
            values = weights.values.astype(jnp.float32)
            return ValueMoments(jnp.float32(values.shape[0]), values.sum(0), jnp.square(values).sum(0))
        routed = jnp.any(weights != 0, axis=-1)
        centred = jnp.where(routed[:, None], weights.astype(jnp.float32) - 1 / weights.shape[-1], 0)
        second = jnp.einsum('nk,nl->kl', centred, centred, precision=_EXACT)
        return RoutingMoments(jnp.sum(routed).astype(jnp.float32), jnp.sum(centred, axis=0), second)

    routing = problem.routing(params, gates, batch)
    return jax.tree.map(moments, routing, is_leaf=lambda node: isinstance(node, Values))


def mean_routing(moments: RoutingMoments | ValueMoments):
    """Mean routing weights float[K], or mean `Values` float[*shape], from their moments."""
    if isinstance(moments, ValueMoments):
        return Values(moments.first / moments.count)
    return moments.first / moments.count + 1 / moments.first.shape[0]


def finish_absolute(problem: Problem, params, masks, total):
    return jax.tree.map(jnp.abs, total)


def finish_magnitude(problem: Problem, params, masks, total):
    """Mean over the factors of |W_k|; a group has the sum of its positions."""
    factors = problem.layout.dynamic(params, masks)
    return jax.tree.map(lambda leaf, mask: _sum_by_gate(jnp.abs(leaf).mean(0), mask), factors, masks)


def finish_variance(problem: Problem, params, masks, total):
    """Variance over the inputs of the dynamic parameter Σ_k α_k(x) W_k; a group has the sum of its positions.

    With C the covariance of the routing weights, the variance at a position is wᵀ C w for w = (W_1, ..., W_K); of
    what is generated it is that of the values.
    (Reference: dyconv/pruners.py, Variant.) What cancels to within float32's rounding, a routing that is the same for
    all rows or factors that are copies, is 0: its remainder would pass as a score.
    """

    def variance(factors, mask, moments):
        factors = factors.astype(jnp.float32)
        mean, second = moments.first / moments.count, moments.second / moments.count
        if isinstance(moments, ValueMoments):
            return _sum_by_gate(jnp.maximum(_unless_rounding(second - mean**2, second, 4), 0), mask)
        covariance = _unless_rounding(second - jnp.outer(mean, mean), second, moments.second.shape[0])
        varied = jnp.tensordot(covariance, factors, axes=1, precision=_EXACT)
        summed = jnp.tensordot(jnp.abs(covariance), jnp.abs(factors), axes=1, precision=_EXACT)
        total = jnp.sum(varied * factors, axis=0)
        bound = jnp.sum(summed * jnp.abs(factors), axis=0)
        return _sum_by_gate(jnp.maximum(_unless_rounding(total, bound, factors.shape[0]), 0), mask)

    return jax.tree.map(variance, problem.layout.dynamic(params, masks), masks, total)


def _unless_rounding(values, terms, num_terms):
    """`values`, or 0 where they are within the rounding of sums over `num_terms` terms of the size of `terms`."""
    return jnp.where(jnp.abs(values) > 4 * num_terms * jnp.finfo(jnp.float32).eps * jnp.abs(terms), values, 0)


def _sum_by_gate(values, mask):
    """Sums float[*shape] over the positions of each gate, to float[*mask]."""
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
    """The row of `CRITERIA`, once the problem is known to give what it needs."""
    if name not in CRITERIA:
        raise ValueError(f'criterion must be one of {", ".join(CRITERIA)}, got {name!r}')
    for field in CRITERIA[name].needs:
        if getattr(problem, field) is None:
            raise ValueError(f'criterion {name!r} needs the function {field!r}, which was not given')
    return CRITERIA[name]
