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
        product = multiply('pc,cf->pf', _unfold_one(image, geometry), _mix_one(stack, weights, x.dtype))
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
        d_out = _split_groups(d_out, geometry.groups)
        rows, fold = jax.vjp(lambda image: _unfold_one(image, geometry), image)
        d_kernel = multiply('pc,pf->cf', rows, d_out)
        d_rows = multiply('pf,cf->pc', d_out, _mix_one(stack, weights, x.dtype))
        (d_image,) = fold(d_rows.astype(x.dtype))
        # A product with a vector: XLA's reductions on CPU take several times as long for the same sum.
        d_weights = jnp.dot(
            stack.reshape(stack.shape[0], -1).astype(wide), d_kernel.reshape(-1), precision=lax.Precision.HIGHEST
        )
        d_stack += weights.astype(wide).reshape(-1, *(1,) * d_kernel.ndim) * d_kernel[None]
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


def _mix_one(stack, weights, dtype):
    """[K, ...] and [K] -> [...]. A sum and not a product, so that it is one pass over the K matrices."""
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
