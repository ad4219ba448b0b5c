"""The operator of partially dynamic convolutions: a convolution of which whole outputs, inputs or taps are dynamic.

Legend: B batch, S spatial axes, C input channels, c of a group, F output channels, K kernels, T taps, D dynamic of N
outputs, inputs or taps.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.typing import PrecisionLike

from pad_jax.errors import check_choice
from pad_jax.kernels.geometry import Geometry, Padding, pad_by_copying, resolve_geometry
from pad_jax.kernels.windows import some_windows
from pad_jax.layers.conv_plans import PLAN_NAMES, PLAN_NAMES_BY_PLACE, PLANS, choose_plan, list_plans
from pad_jax.layers.dynamic_columns import Columns, put_columns, split_columns, take_columns
from pad_jax.layers.dynamic_convolution import add_bias
from pad_jax.layers.plans.choice import ConvShape, estimate_cost, get_rates
from pad_jax.layers.plans.convolution import convolve
from pad_jax.layers.plans.fused import convolve_fused
from pad_jax.layers.plans.grouped import convolve_own_grouped
from pad_jax.layers.plans.mixing import mix_kernels, mix_outputs
from pad_jax.layers.plans.parts import Order, StaticPart, flat_places, flatten_taps, join_static, reorder
from pad_jax.layers.plans.patches import convolve_own_patches
from pad_jax.layers.plans.shift import convolve_own_shifted
from pad_jax.layers.plans.unfolded import convolve_unfolded_once
from pad_jax.partition.masks import scale_values

# Which axis of a kernel [..., C, F], or with its taps in one [T, C, F], the dynamic and the static entries share out.
STRUCTURED_AXES = {'output': -1, 'input': -2, 'spatial': -3, 'layer': -1}

# The plans that give each sample a kernel of its own, in which both parts can stand; but for `fused`, which makes them
# one by one, by what they do with B such kernels.
OWN_KERNELS = {'patches': convolve_own_patches, 'shift': convolve_own_shifted, 'grouped': convolve_own_grouped}
JOINED = ('fused', *OWN_KERNELS)
STACKED = {'outputs': convolve, 'unfolded': convolve_unfolded_once}

_ONE_PLACE = Geometry((1,), (1,), ((0, 0),), (1,), (1,))


def partial_convolution(
    x: jax.Array,
    kernels: jax.Array,
    static: jax.Array,
    attention: jax.Array,
    dynamic: jax.Array,
    bias: jax.Array | None = None,
    *,
    granularity: str,
    kernel_size: Sequence[int],
    dynamic_scale: jax.Array | float = 1.0,
    static_scale: jax.Array | float = 1.0,
    static_attention: jax.Array | None = None,
    strides: None | int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    input_dilation: None | int | Sequence[int] = 1,
    kernel_dilation: None | int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: PrecisionLike = None,
    plan: str = 'auto',
) -> jax.Array:
    """`dynamic_convolution` with λd·Σ_k attention[b, k]·kernels[k] where the kernel is dynamic, λs·static where not.

    The static part is taken once, whatever the attention of a sample sums to. Dead entries are neither read nor
    computed, but for plans `outputs` and `unfolded` of granularity 'output' in feature groups that are not depthwise:
    their kernels are put together with zeros first.

    Args:
      x: [B, *S, C] in the dtype to compute in.
      kernels: the dynamic entries alone. Where outputs are dynamic, or the whole layer, [K, *kernel_size, c, D]; where
        inputs are [K, *kernel_size, D, F]; where taps are [K, D, c, F], taps in C order of the kernel's spatial axes.
      static: the others: [*kernel_size, c, F − D], [*kernel_size, c − D, F] or [T − D, c, F].
      attention: float[B, K], or float[B, K, *kernel_size] with a weight for every place of each kernel.
      dynamic: int32[D], ascending: which outputs, inputs of a feature group, or taps are dynamic; may be traced.
      bias: [K, F], mixed by attention, or None; with weights by place there is none.
      granularity: one of STRUCTURED_AXES.
      kernel_size: spatial shape of the whole kernel.
      dynamic_scale, static_scale: λd and λs, scalars.
      static_attention: float[B, *kernel_size], a weight for every place of the static entries, or None: all are one.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as in `flax.linen.Conv`.
      plan: how it is executed, one of `conv_plans.PLAN_NAMES`.

    Returns:
      [B, *S', F] of x's dtype.

    Raises:
      ValueError: for shapes that do not fit one another, or values that are not one of those.

    >>> x, attention = jnp.ones((2, 5, 5, 3)), jnp.full((2, 4), .25)
    >>> kernels, static = jnp.ones((4, 3, 3, 3, 2)), jnp.ones((3, 3, 3, 6))
    >>> y = partial_convolution(
    ...     x, kernels, static, attention, jnp.array([1, 4]), granularity='output', kernel_size=(3, 3)
    ... )
    >>> y.shape
    (2, 5, 5, 8)
    """
    check_choice('granularity', granularity, tuple(STRUCTURED_AXES))
    kernel_size = tuple(kernel_size)
    axis = STRUCTURED_AXES[granularity]
    num_dynamic = kernels.shape[axis]
    if dynamic.shape != (num_dynamic,):
        raise ValueError(
            f'dynamic must be [D] = ({num_dynamic},) for kernels {kernels.shape} of granularity {granularity!r}, '
            f'got {dynamic.shape}'
        )
    by_place = attention.ndim > 2 or static_attention is not None
    if by_place:
        check_choice('plan of attention by place', plan, PLAN_NAMES_BY_PLACE)
        if bias is not None and attention.ndim > 2:
            raise ValueError('bias is mixed by attention [B, K]: attention by place takes none')
    check_choice('plan', plan, PLAN_NAMES)
    geometry = resolve_geometry(
        x.shape[1:-1], kernel_size, strides, padding, input_dilation, kernel_dilation, feature_group_count
    )
    x = pad_by_copying(x, padding, geometry)
    split = split_columns(dynamic, num_dynamic + static.shape[axis])
    sides = (
        # λd on the few weights of attention: on the kernels its gradient would be a sum over all their entries.
        Side(kernels, attention * jnp.asarray(dynamic_scale, attention.dtype), split[0]),
        Side(
            scale_values(static_scale, static)[None],
            None if static_attention is None else static_attention[:, None],
            split[1],
        ),
    )
    present = [side for side in sides if side.columns.indices.shape[0]]
    if len(present) == 1:
        (side,) = present
        whole = side.kernels.reshape(side.kernels.shape[0], *kernel_size, *side.kernels.shape[-2:])
        y = side.run(plan, x, whole, geometry, precision)
    else:
        form, name = choose_form(x, kernels, static, axis, geometry, plan, by_place)
        y = FORMS[form](name, x, *sides, axis, geometry, precision)
    return y if bias is None else add_bias(y, attention, bias)


def choose_form(
    x: jax.Array | jax.ShapeDtypeStruct,
    kernels: jax.Array | jax.ShapeDtypeStruct,
    static: jax.Array | jax.ShapeDtypeStruct,
    axis: int,
    geometry: Geometry,
    plan: str = 'auto',
    by_place: bool = False,
    platform: str | None = None,
) -> tuple[str, str]:
    """How a partial convolution is executed, from shapes alone: (a key of FORMS, a plan or 'auto' for each part).

    Args:
      x, kernels, static: as for `partial_convolution`; only shapes are read. Neither part is empty.
      axis: of STRUCTURED_AXES.
      plan: 'auto' for the choice, else the form that plan has.
      by_place: whether attention has a weight for every place of each kernel.
      platform: 'cpu', 'gpu', ...; None is the default backend of this process.
    """
    depthwise = geometry.groups == x.shape[-1] == kernels.shape[-1] + static.shape[-1]
    can_be_apart = not (axis == -1 and geometry.groups > 1 and not depthwise) and not (axis == -3 and by_place)
    can_be_stacked = axis == -1 and geometry.groups == 1 and not by_place
    if plan != 'auto':
        if plan in JOINED:
            return 'joined', plan
        return ('stacked' if can_be_stacked else 'apart' if can_be_apart else 'whole'), plan
    platform = jax.default_backend() if platform is None else platform
    num_kernels = kernels.shape[0]
    sizes = list(kernels.shape[1:])
    sizes[axis] += static.shape[axis]
    shape = ConvShape.read(x.shape, (num_kernels, *geometry.kernel_size, *sizes[-2:]), geometry)
    share = kernels.shape[axis] / (kernels.shape[axis] + static.shape[axis])
    # Of each position one number is read where it is static, and K where it is dynamic.
    mean = shape._replace(kernels=1 - share + share * num_kernels)
    names = list_plans(x.shape[0], by_place)
    forms = {'joined': JOINED, 'stacked': STACKED if can_be_stacked else ()}
    costs = {
        (form, name): estimate_cost(name, mean, platform)
        for form, members in forms.items()
        for name in names
        if name in members
    }
    # Its kernels have to be written side by side, and their gradients apart.
    written = 2 * shape.taps * (shape.channels // shape.groups) * shape.features * mean.kernels / 1e6
    costs = {
        choice: cost + written * get_rates(platform).moved * (choice[0] == 'stacked') for choice, cost in costs.items()
    }
    best = min(costs, key=costs.get)
    if not can_be_apart or axis == -3:
        return best
    field = {-1: 'features', -2: 'channels'}[axis]
    apart = 0.0
    for part, count in ((share, num_kernels), (1 - share, 1)):
        part_shape = shape._replace(kernels=count, **{field: getattr(shape, field) * part})
        if depthwise:
            part_shape = part_shape._replace(channels=shape.channels * part, groups=shape.groups * part)
        apart += min(estimate_cost(name, part_shape, platform) for name in names)
    return best if costs[best] <= apart else ('apart', 'auto')


class Side(NamedTuple):
    """One of the two parts of a kernel: a stack, its attention (None: of one kernel, weight one), and its columns."""

    kernels: jax.Array
    attention: jax.Array | None
    columns: Columns

    def run(self, plan, x, kernels, geometry, precision):
        """`dynamic_convolution` with this attention; without any a static one, whatever the plan."""
        if self.attention is None:
            return convolve_once(x, kernels[0], geometry, precision)
        by_place = self.attention.ndim > 2
        name = choose_plan(x, kernels, geometry, by_place=by_place) if plan == 'auto' else plan
        return PLANS[name].function(x, kernels, self.attention, geometry, precision)


def convolve_once(x: jax.Array, kernel: jax.Array, geometry: Geometry, precision=None) -> jax.Array:
    """A static convolution: as one of XLA's, or, where these are slow, as one matrix product."""
    shape = ConvShape.read(x.shape, (1, *kernel.shape), geometry)
    costs = {name: estimate_cost(name, shape, jax.default_backend()) for name in ('outputs', 'unfolded')}
    if geometry.groups == 1 and costs['unfolded'] < costs['outputs']:
        return convolve_unfolded_once(x, kernel, geometry, precision)
    return convolve(x, kernel.astype(x.dtype), geometry, precision)


def _convolve_joined(name, x, dynamic, static, axis, geometry, precision):
    """Each sample with a kernel of its own, in which both parts stand."""
    order, places = Order.read(dynamic.columns, static.columns), None
    if axis == -3 or (axis == -1 and geometry.groups > 1):
        places = order  # taps and the outputs of groups have to be where they belong
    elif axis == -2:
        x = _regroup(x, geometry.groups, lambda grouped: reorder(grouped, order.slots, order.sources, -1))
    attention, weights = (_weights_of_taps(side, axis) for side in (dynamic, static))
    part = StaticPart(flatten_taps(static.kernels)[0], places, None if weights is None else weights[:, 0])
    kernels = flatten_taps(dynamic.kernels)
    if name == 'fused':
        y = convolve_fused(x, kernels, attention, geometry, precision, part, axis)
    else:
        mixed = join_static(mix_kernels(kernels, attention, x.dtype), part, axis)
        mixed = mixed.reshape(x.shape[0], *geometry.kernel_size, *mixed.shape[-2:])
        y = OWN_KERNELS[name](x, mixed, geometry, precision)
    return reorder(y, *order, -1) if axis == -1 and places is None else y


def _convolve_stacked(name, x, dynamic, static, axis, geometry, precision):
    """One convolution with the F − D static outputs and all K·D dynamic ones, which are mixed then."""
    num_kernels, num_dynamic = dynamic.kernels.shape[0], dynamic.kernels.shape[-1]
    stack = jnp.moveaxis(dynamic.kernels, 0, -2)
    stack = stack.reshape(*stack.shape[:-2], num_kernels * num_dynamic)
    every = STACKED[name](x, jnp.concatenate([static.kernels[0], stack], -1).astype(x.dtype), geometry, precision)
    num_static, size = static.kernels.shape[-1], every.shape[1:-1]
    products = every[..., num_static:].reshape(x.shape[0], math.prod(size), 1, num_kernels, num_dynamic)
    mixed = mix_outputs(products, dynamic.attention).reshape(x.shape[0], *size, num_dynamic)
    order = Order.read(dynamic.columns, static.columns)
    return reorder(jnp.concatenate([every[..., :num_static], mixed], -1), *order, axis)


def _convolve_apart(name, x, dynamic, static, axis, geometry, precision):
    """The static part as a convolution of one kernel, and the dynamic part as a dynamic one."""
    products = []
    for side in (static, dynamic):
        rows, kernels, places = x, side.kernels, geometry
        if axis == -2:
            rows = _regroup(x, geometry.groups, lambda grouped, side=side: take_columns(grouped, side.columns, -1))
        elif axis == -3:
            rows = some_windows(x, geometry, side.columns.indices)
            places = dataclasses.replace(_ONE_PLACE, groups=geometry.groups)
            kernels = kernels.reshape(kernels.shape[0], 1, kernels.shape[1] * kernels.shape[2], kernels.shape[3])
        elif geometry.groups > 1:  # depthwise: each output has an input of its own
            rows = take_columns(x, side.columns, -1)
            places = dataclasses.replace(geometry, groups=rows.shape[-1])
        products.append(side.run(name, rows, kernels, places, precision))
    if axis == -1:
        return reorder(jnp.concatenate(products, -1), *Order.read(dynamic.columns, static.columns), -1)
    size = geometry.output_size(x.shape[1:-1])
    return (products[0] + products[1]).reshape(x.shape[0], *size, products[0].shape[-1])


def _convolve_whole(name, x, dynamic, static, axis, geometry, precision):
    """One more kernel, of weight one, for the static part: exact, but nothing is saved."""
    whole = [put_columns(side.kernels, side.columns, axis) for side in (dynamic, static)]
    attention = static.attention
    if attention is None:
        attention = jnp.ones_like(dynamic.attention[:, :1])
    attention = jnp.concatenate([dynamic.attention, attention.astype(dynamic.attention.dtype)], axis=1)
    return PLANS[name].function(x, jnp.concatenate(whole), attention, geometry, precision)


FORMS = {'joined': _convolve_joined, 'stacked': _convolve_stacked, 'apart': _convolve_apart, 'whole': _convolve_whole}


def _weights_of_taps(side, axis):
    """Attention with the taps in one axis, of those alone that a part has where it has some; None stays None."""
    if side.attention is None:
        return None
    weights = side.attention.reshape(*side.attention.shape[:2], *flat_places(side.attention))
    return weights[:, :, side.columns.indices] if axis == -3 and weights.ndim > 2 else weights


def _regroup(x, groups, change):
    """Changes the channels of each feature group."""
    grouped = change(x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups))
    return grouped.reshape(*x.shape[:-1], groups * grouped.shape[-1])
