"""Plan `fused`: one matrix product a sample over unfolded windows, sample after sample.

Its gradient is written by hand: one scan adds every sample's kernel gradient into the K gradients and
contracts it with the K kernels for the attention's gradient, so that neither B kernels nor B kernel
gradients ever exist. Needs a batch size that is known, and has no forward derivative.

Of a partially dynamic kernel only the dynamic entries are mixed; a sample's matrix is made of them and the static
ones right before its product.

Legend: B batch, P output positions, T taps, C input channels, c of a group, g groups, F output channels,
f of a group, K kernels, n positions of a kernel; T', c' and F' of which those of the dynamic entries alone.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.kernels.geometry import Geometry
from pad_jax.kernels.numerics import at_least_float32, vary_together
from pad_jax.kernels.windows import unfold
from pad_jax.layers.plans.parts import StaticPart, flat_places, flatten_taps, join_static


def convolve_fused(
    x: jax.Array,
    kernels: jax.Array,
    attention: jax.Array,
    geometry: Geometry,
    precision=None,
    static: StaticPart | None = None,
    axis: int | None = None,
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`; with a static part, that of `plans.parts`."""
    inputs = x, flatten_taps(kernels), attention.reshape(*attention.shape[:2], *flat_places(attention)), static
    leaves, structure = jax.tree.flatten(inputs)
    return _convolve_together(*structure.unflatten(vary_together(*leaves)), axis, geometry, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _convolve_together(x, kernels, attention, static, axis, geometry, precision):
    return _convolve(x, kernels, attention, static, axis, geometry, precision)


def _convolve(x, kernels, attention, static, axis, geometry, precision):
    multiply = functools.partial(_multiply, precision=precision, dtype=at_least_float32(x.dtype))
    values, places, by_sample = _separate(static)

    def convolve_one(sample):
        image, row, weights = sample
        matrix = _make_matrix(_mix_one(kernels, row, x.dtype), values, weights, places, axis, geometry)
        product = multiply('pc,cf->pf', _unfold_one(image, geometry), matrix)
        return _join_groups(product).astype(x.dtype)

    total = lax.map(convolve_one, (x, attention, by_sample))
    return total.reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), total.shape[-1])


def _forward(x, kernels, attention, static, axis, geometry, precision):
    # Not _convolve_together: its own rule would stand in the way of a forward derivative of this gradient.
    return _convolve(x, kernels, attention, static, axis, geometry, precision), (x, kernels, attention, static)


def _backward(axis, geometry, precision, saved, cotangent):
    x, kernels, attention, static = saved
    wide = at_least_float32(x.dtype)
    multiply = functools.partial(_multiply, precision=precision, dtype=wide)
    cotangent = cotangent.reshape(x.shape[0], math.prod(cotangent.shape[1:-1]), cotangent.shape[-1])
    values, places, by_sample = _separate(static)

    def pull_one(sums, sample):
        d_kernels, d_values = sums
        image, row, weights, d_out = sample
        d_out = _split_groups(d_out, geometry.groups)
        rows, fold = jax.vjp(lambda image: _unfold_one(image, geometry), image)
        make = functools.partial(_make_matrix, places=places, axis=axis, geometry=geometry)
        wide_values = None if values is None else values.astype(wide)
        # In the wide dtype, so that no gradient is rounded before it is summed; products are of x's.
        matrix, unmake = jax.vjp(make, _mix_one(kernels, row, x.dtype).astype(wide), wide_values, weights)
        d_mixed, d_values_one, d_weights = unmake(multiply('pc,pf->cf', rows, d_out))
        d_rows = multiply('pf,cf->pc', d_out, matrix.astype(x.dtype))
        (d_image,) = fold(d_rows.astype(x.dtype))
        d_row = _pull_weights(kernels.astype(wide), d_mixed, row.shape)
        d_kernels += _spread_weights(row).astype(wide) * d_mixed[None]
        d_values = None if values is None else d_values + d_values_one
        return (d_kernels, d_values), (d_image, d_row, d_weights)

    start = jax.tree.map(lambda part: jnp.zeros(part.shape, wide), (kernels, values))
    start = jax.tree.map(lambda zero: vary_together(x, kernels, attention, zero)[-1], start)
    scanned = (x, attention, by_sample, cotangent)
    (d_kernels, d_values), (d_x, d_attention, d_by_sample) = lax.scan(pull_one, start, scanned)
    d_static = None
    if static is not None:
        d_static = StaticPart(d_values.astype(values.dtype), None, d_by_sample)
    return d_x, d_kernels.astype(kernels.dtype), d_attention.astype(attention.dtype), d_static


_convolve_together.defvjp(_forward, _backward)


def _separate(static):
    return (None, None, None) if static is None else static


def _make_matrix(mixed, values, weights, places, axis, geometry):
    """[T', c', F'] and the static values -> [T·c, F], or [g, T·c, f] where there are groups."""
    if values is not None:
        mixed = join_static(mixed, StaticPart(values, places, weights), axis)
    return _split_groups(mixed.reshape(-1, mixed.shape[-1]), geometry.groups)


def _unfold_one(image, geometry):
    """[*S, C] -> [P, T·c], or [g, P, T·c] where there are groups."""
    return _split_groups(unfold(image[None], geometry)[0], geometry.groups)


def _spread_weights(weights):
    """[K] or [K, T'] as it broadcasts against [K, T', c', F']."""
    return weights.reshape(weights.shape[0], -1, 1, 1)


def _pull_weights(kernels, d_mixed, shape):
    """The gradient of the weights, [K] or [K, T'], from that of their mixture."""
    if len(shape) == 1:
        # A product with a vector: XLA's reductions on CPU take several times as long for the same sum.
        return jnp.dot(kernels.reshape(shape[0], -1), d_mixed.reshape(-1), precision=lax.Precision.HIGHEST)
    kernels, d_mixed = kernels.reshape(*shape, -1), d_mixed.reshape(shape[1], -1)
    return jnp.einsum('ktn,tn->kt', kernels, d_mixed, precision=lax.Precision.HIGHEST)


def _mix_one(kernels, weights, dtype):
    """[K, T', c', F'] and [K] or [K, T'] -> [T', c', F']. A sum and not a product: one pass over the K kernels."""
    wide = at_least_float32(dtype)
    weights = _spread_weights(weights).astype(wide)
    return sum(kernels[k].astype(wide) * weights[k] for k in range(kernels.shape[0])).astype(dtype)


def _multiply(rule, left, right, precision, dtype):
    # Groups lead where there are any. Without them no axis of length one may stand in for them: XLA's
    # batched matrix product on CPU is many times slower than the plain one.
    if left.ndim == 3:
        inputs, output = rule.split('->')
        first, second = inputs.split(',')
        rule = f'g{first},g{second}->g{output}'
    return jnp.einsum(rule, left, right, precision=precision, preferred_element_type=dtype)


def _split_groups(matrix, groups):
    """[R, g·f] -> [g, R, f]; a matrix without groups passes."""
    if groups == 1:
        return matrix
    return jnp.moveaxis(matrix.reshape(matrix.shape[0], groups, matrix.shape[1] // groups), 1, 0)


def _join_groups(product):
    """[g, P, f] -> [P, g·f]; a matrix passes."""
    if product.ndim == 2:
        return product
    groups, positions, outer = product.shape
    return jnp.moveaxis(product, 0, 1).reshape(positions, groups * outer)
