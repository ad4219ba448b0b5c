"""Plan `fused`: one matrix product a sample over unfolded windows, sample after sample.

Its gradient is written by hand: one scan adds every sample's kernel gradient into the K gradients and
contracts it with the K kernels for the attention's gradient, so that neither B kernels nor B kernel
gradients ever exist. Needs a batch size that is known, and has no forward derivative.

Legend: B batch, P output positions, T taps, C input channels, c of a group, g groups, F output channels,
f of a group, K kernels, n positions of a kernel.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.layers.conv_geometry import Geometry
from pad_jax.layers.plans.patches import unfold
from pad_jax.layers.varying import vary_together
from pad_jax.layers.wide_dtype import at_least_float32


def convolve_fused(
    x: jax.Array, kernels: jax.Array, attention: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`."""
    return _convolve_together(*vary_together(x, kernels, attention), geometry, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _convolve_together(x, kernels, attention, geometry, precision):
    return _convolve(x, kernels, attention, geometry, precision)


def _convolve(x, kernels, attention, geometry, precision):
    wide = at_least_float32(x.dtype)
    stack = _stack_matrices(kernels, geometry)
    multiply = functools.partial(_multiply, precision=precision, dtype=wide)

    def convolve_one(sample):
        image, weights = sample
        mixed = _mix_one(stack, _spread_weights(weights, stack), x.dtype)
        product = multiply('pc,cf->pf', _unfold_one(image, geometry), mixed)
        return _join_groups(product).astype(x.dtype)

    total = lax.map(convolve_one, (x, attention))
    return total.reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), kernels.shape[-1])


def _forward(x, kernels, attention, geometry, precision):
    # Not _convolve_together: its own rule would stand in the way of a forward derivative of this gradient.
    return _convolve(x, kernels, attention, geometry, precision), (x, kernels, attention)


def _backward(geometry, precision, saved, cotangent):
    x, kernels, attention = saved
    wide = at_least_float32(x.dtype)
    stack, unstack = jax.vjp(lambda kernels: _stack_matrices(kernels, geometry), kernels)
    multiply = functools.partial(_multiply, precision=precision, dtype=wide)
    cotangent = cotangent.reshape(x.shape[0], math.prod(cotangent.shape[1:-1]), kernels.shape[-1])

    def pull_one(d_stack, sample):
        image, weights, d_out = sample
        spread = _spread_weights(weights, stack)
        d_out = _split_groups(d_out, geometry.groups)
        rows, fold = jax.vjp(lambda image: _unfold_one(image, geometry), image)
        d_kernel = multiply('pc,pf->cf', rows, d_out)
        d_rows = multiply('pf,cf->pc', d_out, _mix_one(stack, spread, x.dtype))
        (d_image,) = fold(d_rows.astype(x.dtype))
        d_weights = _pull_weights(stack.astype(wide), d_kernel, weights.shape)
        d_stack += spread.astype(wide) * d_kernel[None]
        return d_stack, (d_image, d_weights)

    _, _, _, start = vary_together(x, kernels, attention, jnp.zeros(stack.shape, wide))
    d_stack, (d_x, d_attention) = lax.scan(pull_one, start, (x, attention, cotangent))
    (d_kernels,) = unstack(d_stack.astype(kernels.dtype))
    return d_x, d_kernels, d_attention.astype(attention.dtype)


_convolve_together.defvjp(_forward, _backward)


def _stack_matrices(kernels, geometry):
    """[K, *S, c, F] -> [K, T·c, F], or [K, g, T·c, f] where there are groups."""
    inner, features = kernels.shape[-2:]
    matrices = kernels.reshape(kernels.shape[0], geometry.num_taps * inner, features)
    if geometry.groups == 1:
        return matrices
    return jax.vmap(_split_groups, in_axes=(0, None))(matrices, geometry.groups)


def _unfold_one(image, geometry):
    """[*S, C] -> [P, T·c], or [g, P, T·c] where there are groups."""
    return _split_groups(unfold(image[None], geometry)[0], geometry.groups)


def _spread_weights(weights, stack):
    """[K] or [K, *kernel_size] as it broadcasts against the stack: [K, 1, 1] or [K, T·c, 1], with g = 1 in between."""
    ones = (1,) * (stack.ndim - 3)
    if weights.ndim == 1:
        return weights.reshape(weights.shape[0], *ones, 1, 1)
    inner = stack.shape[-2] // math.prod(weights.shape[1:])
    rows = jnp.repeat(weights.reshape(weights.shape[0], math.prod(weights.shape[1:])), inner, axis=1)
    return rows.reshape(weights.shape[0], *ones, stack.shape[-2], 1)


def _pull_weights(stack, d_kernel, shape):
    """The gradient of the weights, [K] or [K, *kernel_size], from that of their mixture."""
    if len(shape) == 1:
        # A product with a vector: XLA's reductions on CPU take several times as long for the same sum.
        return jnp.dot(stack.reshape(shape[0], -1), d_kernel.reshape(-1), precision=lax.Precision.HIGHEST)
    taps = math.prod(shape[1:])
    by_tap = (math.prod(d_kernel.shape[:-2]), taps, d_kernel.shape[-2] // taps * d_kernel.shape[-1])
    stack, d_kernel = stack.reshape(shape[0], *by_tap), d_kernel.reshape(by_tap)
    return jnp.einsum('kgtn,gtn->kt', stack, d_kernel, precision=lax.Precision.HIGHEST).reshape(shape)


def _mix_one(stack, weights, dtype):
    """[K, ...] and weights that broadcast -> [...]. A sum and not a product: one pass over the K matrices."""
    wide = at_least_float32(dtype)
    return sum(stack[k].astype(wide) * weights[k].astype(wide) for k in range(stack.shape[0])).astype(dtype)


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
