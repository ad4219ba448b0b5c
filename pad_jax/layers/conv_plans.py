"""How a dynamic convolution is executed: a table of plans that all give the same numbers.

A plan is a function

    plan(x, kernels, attention, geometry, precision=None) -> y

    x: [B, *S, C], the dtype that is computed in.
    kernels: [K, *kernel_size, C / groups, F], any float dtype. Of a wider one than x's, plans that mix kernels
        round each sample's mixed kernel to x's dtype, those that mix outputs the kernels and the K outputs,
        so that convolutions and their gradients are computed in x's dtype as in a static layer.
    attention: float[B, K], or float[B, K, *kernel_size] with a weight for every place of each kernel;
        float32 at least; any real weights, they need not sum to one.
    geometry: static.
    precision: as in `jax.lax.dot`; static.
    y: [B, *S', F] of x's dtype, y[b] = convolution of x[b] with Σ_k attention[b, k]·kernels[k], where a weight
        multiplies all channels and outputs of its place.

Sums over channels and kernels are taken in float32 at least. Row b of y depends on row b of x and of
attention alone.

Legend: B batch, S spatial axes, C input channels, F output channels, K kernels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from pad_jax.kernels.geometry import Geometry
from pad_jax.layers.plans.choice import ConvShape, estimate_cost
from pad_jax.layers.plans.fused import convolve_fused
from pad_jax.layers.plans.grouped import convolve_grouped
from pad_jax.layers.plans.outputs import convolve_outputs
from pad_jax.layers.plans.patches import convolve_patches
from pad_jax.layers.plans.shift import convolve_shifted
from pad_jax.layers.plans.unfolded import convolve_unfolded


class Plan(NamedTuple):
    """One row of the table.

    Attributes:
      function: the plan, with the signature above.
      symbolic_batch: whether it traces where the batch size is a symbol (export).
      automatic: whether `choose_plan` may take it.
      forward_mode: whether it has a forward derivative (jax.jvp, jax.jacfwd, jax.linearize). All have a
        gradient, and that gradient has a forward derivative.
      by_place: whether attention may have a weight for every place of each kernel. Outputs that are mixed after
        a convolution have no places any more.
    """

    function: Callable[..., jax.Array]
    symbolic_batch: bool
    automatic: bool
    forward_mode: bool
    by_place: bool


PLANS = {
    'outputs': Plan(convolve_outputs, symbolic_batch=True, automatic=True, forward_mode=True, by_place=False),
    'unfolded': Plan(convolve_unfolded, symbolic_batch=True, automatic=True, forward_mode=True, by_place=False),
    'shift': Plan(convolve_shifted, symbolic_batch=True, automatic=True, forward_mode=True, by_place=True),
    'patches': Plan(convolve_patches, symbolic_batch=True, automatic=True, forward_mode=True, by_place=True),
    'fused': Plan(convolve_fused, symbolic_batch=False, automatic=True, forward_mode=False, by_place=True),
    'grouped': Plan(convolve_grouped, symbolic_batch=False, automatic=False, forward_mode=True, by_place=True),
}
PLAN_NAMES = ('auto', *PLANS)
PLAN_NAMES_BY_PLACE = ('auto', *(name for name, plan in PLANS.items() if plan.by_place))


def list_plans(batch: int, by_place: bool = False) -> list[str]:
    """Those that 'auto' may take for a batch of that size, which may be a symbol."""
    known = isinstance(batch, int)
    return [
        name
        for name, plan in PLANS.items()
        if plan.automatic and (known or plan.symbolic_batch) and (plan.by_place or not by_place)
    ]


def choose_plan(
    x: jax.Array | jax.ShapeDtypeStruct,
    kernels: jax.Array | jax.ShapeDtypeStruct,
    geometry: Geometry,
    platform: str | None = None,
    by_place: bool = False,
) -> str:
    """Name of the plan that is expected to be fastest, from shapes alone: a pure function, at trace time.

    The one of the least cost. Costs are those of forward + backward,
    the measure of training; see `plans.choice` for the model.

    Args:
      x, kernels: as for a plan; only shape and dtype are read.
      platform: 'cpu', 'gpu', ...; None is the default backend of this process.
      by_place: whether attention has a weight for every place of each kernel.

    Returns:
      A key of PLANS.
    """
    candidates = list_plans(x.shape[0], by_place)
    shape = ConvShape.read(x.shape, kernels.shape, geometry)
    platform = jax.default_backend() if platform is None else platform
    return min(candidates, key=lambda name: estimate_cost(name, shape, platform))
