"""One operator for dynamic convolutions, fully or partially dynamic.

    y[b] = convolution of x[b] with tap_weights[b] ⊙ (Σ_k attention[b, k] · λd · dynamic[k] + λs · static)

The plans in `kernels.plans` execute it and give the same numbers. Compact kernels have two strategies on top: 'joined'
puts the static part into each sample's kernel, 'apart' computes a static and a dynamic convolution.
"""

import functools
import math

import jax
import jax.numpy as jnp

from pad_jax.errors import check_choice
from pad_jax.kernels.factors import Factors, invert_index, put_entries, take_entries
from pad_jax.kernels.geometry import Geometry
from pad_jax.kernels.plans import (
    Kernels,
    convolve_fused,
    convolve_outputs,
    convolve_shifted,
    convolve_static,
    flatten_taps,
)
from pad_jax.partition.masks import scale_values

PLANS = ('fused', 'shift', 'outputs')
PLAN_NAMES = ('auto', *PLANS)
PLAN_NAMES_BY_TAP = ('auto', 'fused', 'shift')  # outputs have no taps

# Thresholds of 'auto' on a 2-core CPU, measured with benchmarks/conv.py.
TINY_MAP = 16  # output positions up to which reading B mixed kernels takes longer than K times the products
SMALL_MAP = 100  # output positions below which one static product for the batch beats one joined to each kernel
MOST_MERGED = 1_000_000  # positions of a masked kernel up to which K merged kernels beat one merged for each sample
MANY_KERNELS = 8  # above it accelerators mix kernels and not outputs; not measured, it follows from data sheets


def convolve(
    x: jax.Array,
    factors: Factors,
    attention: jax.Array,
    geometry: Geometry,
    plan: str = 'auto',
    precision=None,
    tap_weights: jax.Array | None = None,
) -> jax.Array:
    """Convolve each sample with its own mixture of K kernels, plus the static part.

    In masked storage the weights of a sample must sum to one. In compact storage they may be any numbers: the static
    part counts once. Dead entries are neither read nor multiplied, except by `outputs` for taps or in feature groups.

    Args:
      x: [B, *S, C] in the dtype to compute in, padded by `pad_by_copying`.
      factors: kernels [K, *kernel_size, C / groups, F].
      attention: float[B, K], float32 at least.
      geometry: strides, padding, dilation and groups.
      plan: one of `PLAN_NAMES`.
      precision: as in `jax.lax.dot`.
      tap_weights: float[B, *kernel_size], a factor for every tap of a sample's kernel, or None.

    Returns:
      [B, *S', F] of x's dtype.

    >>> x, kernels = jnp.ones((2, 5, 5, 3)), jnp.ones((4, 3, 3, 3, 8))
    >>> geometry = Geometry((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1))
    >>> convolve(x, Factors((3, 3, 3, 8), kernels), jnp.full((2, 4), .25), geometry).shape
    (2, 3, 3, 8)
    """
    _check_arguments(x, factors, attention, geometry, plan, tap_weights)
    if tap_weights is not None:
        tap_weights = tap_weights.reshape(x.shape[0], geometry.num_taps)
    run = functools.partial(_run_plan, geometry=geometry, plan=plan, precision=precision, tap_weights=tap_weights)
    if factors.static is None:
        return run(x, factors.dynamic, attention)
    if factors.index is None:
        return _convolve_masked(x, factors, attention, geometry, plan, precision, tap_weights)
    # λd goes to the few weights of attention: for the kernels its gradient would be a sum over all their positions.
    attention = attention * jnp.asarray(factors.dynamic_scale, attention.dtype)
    static = scale_values(factors.static_scale, factors.static)
    if factors.index.shape[0] == factors.size:
        return run(x, factors.dynamic.reshape(-1, *factors.shape), attention)
    if factors.index.shape[0] == 0:
        static = static.reshape(factors.shape)
        if tap_weights is None:
            return convolve_static(x, static, geometry, precision)
        return run(x, static[None], jnp.ones_like(attention[:, :1]))
    factors = factors._replace(dynamic_scale=1.0, static=static, static_scale=1.0)
    strategy = choose_strategy(x, factors, geometry, plan, tap_weights is not None)
    if strategy == 'apart':
        return _convolve_apart(x, factors, attention, geometry, plan, precision)
    return _convolve_joined(x, factors, attention, geometry, plan, precision, tap_weights)


def choose_plan(
    x: jax.Array, num_kernels: int, geometry: Geometry, by_tap: bool = False, platform: str | None = None
) -> str:
    """Return the plan that 'auto' takes, from the shape of x [B, *S, C], whose B may be symbolic.

    Accelerators have not been measured: a loop over samples would leave them idle between its steps.
    """
    positions = math.prod(geometry.output_size(x.shape[1:-1]))
    if (platform or jax.default_backend()) != 'cpu':
        return 'shift' if by_tap or geometry.num_taps == 1 or num_kernels > MANY_KERNELS else 'outputs'
    if positions <= TINY_MAP and geometry.groups == 1 and not by_tap:
        return 'outputs'
    return 'shift' if geometry.num_taps == 1 or not isinstance(x.shape[0], int) else 'fused'


def choose_strategy(
    x: jax.Array, factors: Factors, geometry: Geometry, plan: str, by_tap: bool, platform: str | None = None
) -> str:
    """Return the strategy for a compact kernel, 'joined' or 'apart', from shapes only."""
    if plan != 'auto' or by_tap or factors.axis == -3 or geometry.groups > 1:
        return 'apart' if plan == 'outputs' else 'joined'
    small = math.prod(geometry.output_size(x.shape[1:-1])) < SMALL_MAP or geometry.num_taps == 1
    loops = (platform or jax.default_backend()) == 'cpu' and isinstance(x.shape[0], int)
    return 'joined' if loops and not small else 'apart'


def _check_arguments(x, factors, attention, geometry, plan, tap_weights):
    check_choice('plan', plan, PLAN_NAMES if tap_weights is None else PLAN_NAMES_BY_TAP)
    num_kernels, channels, features = factors.dynamic.shape[0], *factors.shape[-2:]
    if x.ndim != len(factors.shape):
        raise ValueError(f'kernels {factors.shape} need x with {len(factors.shape)} axes, got {x.shape}')
    if x.shape[-1] != channels * geometry.groups or features % geometry.groups:
        raise ValueError(f'channels {x.shape[-1]} and features {features} do not fit {factors.shape} and {geometry}')
    if attention.shape != (x.shape[0], num_kernels):
        expected = f'[B, K] = ({x.shape[0]}, {num_kernels}) for x {x.shape}'
        raise ValueError(f'attention must be {expected}, got {attention.shape}')


def _run_plan(x, kernels, attention, geometry, plan, precision, tap_weights=None):
    """Convolve with whole kernels [K, *kernel_size, c, F]."""
    name = plan if plan != 'auto' else choose_plan(x, kernels.shape[0], geometry, tap_weights is not None)
    if name == 'outputs':
        return convolve_outputs(x, kernels, attention, geometry, precision)
    kernels = Kernels(flatten_taps(kernels), attention, tap_weights)
    return (convolve_fused if name == 'fused' else convolve_shifted)(x, kernels, None, geometry, precision)


def _convolve_masked(x, factors, attention, geometry, plan, precision, tap_weights):
    """Convolve with the merged kernels of masked storage.

    Plan `fused` merges sample by sample, so that neither K merged kernels nor their gradients exist.
    """
    mask, dynamic_scale, static_scale = factors.mask, factors.dynamic_scale, factors.static_scale
    run = functools.partial(_run_plan, geometry=geometry, precision=precision, tap_weights=tap_weights)
    name = plan if plan != 'auto' else choose_plan(x, factors.dynamic.shape[0], geometry, tap_weights is not None)
    if mask.dtype != bool:  # its gradient is a score
        return run(x, factors.merge(), attention, plan=name)
    if name != 'fused' or (plan == 'auto' and factors.static.size <= MOST_MERGED):
        divisor, static = factors.factor_out_scale()
        # Repeated by hand, as in `partition.masks.merge`.
        merged = jnp.where(mask, factors.dynamic, jnp.concatenate([static[None]] * factors.dynamic.shape[0]))
        return run(x, merged, attention * jnp.asarray(divisor, attention.dtype), plan=name)
    attention = attention * jnp.asarray(dynamic_scale, attention.dtype)
    static = flatten_taps(scale_values(static_scale, factors.static)[None])[0]
    mask = jnp.broadcast_to(mask, (*geometry.kernel_size, *mask.shape[-2:])).reshape(-1, *mask.shape[-2:])
    kernels = Kernels(flatten_taps(factors.dynamic), attention, tap_weights, static, mask=mask)
    return convolve_fused(x, kernels, None, geometry, precision)


def _convolve_joined(x, factors, attention, geometry, plan, precision, tap_weights):
    """Convolve each sample with one kernel that holds both parts.

    Entries stand side by side, static ones first. Instead of the kernel, its cheaper counterpart is brought into order
    where there is one: the outputs y, or the channels of x.
    """
    axis, sources = factors.axis, _list_entries(factors)
    keeps_order = axis == -3 or (axis == -1 and geometry.groups > 1)
    order = (sources, invert_index(sources, factors.size)) if keeps_order else None
    if axis == -2:
        starts = jnp.arange(geometry.groups, dtype=jnp.int32)[:, None] * factors.shape[-2]
        x = take_entries(x, (starts + sources[None]).reshape(-1), -1)
    dynamic, static = (flatten_taps(part) if axis != -3 else part for part in (factors.dynamic, factors.static[None]))
    kernels = Kernels(dynamic, attention, tap_weights, static[0], order=order)
    name = plan if plan != 'auto' else choose_plan(x, dynamic.shape[0], geometry, True)
    y = (convolve_fused if name == 'fused' else convolve_shifted)(x, kernels, axis, geometry, precision)
    return put_entries(y, sources, factors.size, -1) if axis == -1 and not keeps_order else y


def _convolve_apart(x, factors, attention, geometry, plan, precision):
    """Join a static convolution and a dynamic one, each with its own outputs or inputs.

    Taps and entries of feature groups stay in whole kernels, padded with zeros. For them this strategy saves no work.
    """
    dynamic, static, rows = factors.dynamic, factors.static, [x, x]
    if factors.axis == -3 or geometry.groups > 1:
        dynamic, static = factors.split()
    elif factors.axis == -2:
        rows = [take_entries(x, index, -1) for index in (factors.static_index, factors.index)]
    static_part = convolve_static(rows[0], static, geometry, precision)
    dynamic_part = _run_plan(rows[1], dynamic, attention, geometry, plan, precision)
    if factors.axis == -1 and geometry.groups == 1:
        return put_entries(jnp.concatenate([static_part, dynamic_part], -1), _list_entries(factors), factors.size, -1)
    return static_part + dynamic_part


def _list_entries(factors):
    """List compact entries in the order in which they are computed, static ones first: int32[size]."""
    return jnp.concatenate([factors.static_index, factors.index])
