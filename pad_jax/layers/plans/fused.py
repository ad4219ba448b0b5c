"""Plan `fused`: one matrix product a sample over unfolded windows, sample after sample.

Its gradient is written by hand: one scan adds every sample's kernel gradient into the K gradients and
contracts it with the K kernels for the attention's gradient, so that neither B kernels nor B kernel
gradients ever exist. Needs a batch size that is known.

Legend: B batch, P output positions, T taps, C input channels, c of a group, g groups, F output channels,
f of a group, K kernels, n positions of a kernel.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.layers.conv_geometry import Geometry
from pad_jax.layers.plans.patches import unfold


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def convolve_fused(
    x: jax.Array, kernels: jax.Array, attention: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`."""
    flat = kernels.reshape(kernels.shape[0], -1)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def convolve_one(sample):
        image, weights = sample
        rows = _unfold_one(image, geometry)
        kernel = _mix_one(flat, weights, kernels.shape[1:], geometry, x.dtype)
        total = jnp.einsum('pgc,cgf->pgf', rows, kernel, precision=precision, preferred_element_type=wide)
        return total.astype(x.dtype).reshape(rows.shape[0], -1)

    total = lax.map(convolve_one, (x, attention))
    return total.reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), kernels.shape[-1])


def _forward(x, kernels, attention, geometry, precision):
    return convolve_fused(x, kernels, attention, geometry, precision), (x, kernels, attention)


def _backward(geometry, precision, saved, cotangent):
    x, kernels, attention = saved
    flat = kernels.reshape(kernels.shape[0], -1)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    groups = geometry.groups
    cotangent = cotangent.reshape(x.shape[0], -1, groups, kernels.shape[-1] // groups)

    def pull_one(d_kernels, sample):
        image, weights, d_out = sample
        rows, fold = jax.vjp(lambda image: _unfold_one(image, geometry), image)
        kernel = _mix_one(flat, weights, kernels.shape[1:], geometry, x.dtype)
        d_kernel = jnp.einsum('pgc,pgf->cgf', rows, d_out, precision=precision, preferred_element_type=wide)
        d_rows = jnp.einsum('pgf,cgf->pgc', d_out, kernel, precision=precision, preferred_element_type=wide)
        (d_image,) = fold(d_rows.astype(x.dtype))
        d_kernel = d_kernel.reshape(-1)
        d_weights = jnp.dot(flat.astype(wide), d_kernel, precision=precision)
        return d_kernels + weights.astype(wide)[:, None] * d_kernel[None], (d_image, d_weights)

    start = jnp.zeros(flat.shape, wide)
    d_kernels, (d_x, d_attention) = lax.scan(pull_one, start, (x, attention, cotangent))
    return d_x, d_kernels.reshape(kernels.shape).astype(kernels.dtype), d_attention.astype(attention.dtype)


convolve_fused.defvjp(_forward, _backward)


def _unfold_one(image, geometry):
    """[*S, C] -> [P, g, T·c]."""
    rows = unfold(image[None], geometry)[0]
    return rows.reshape(rows.shape[0], geometry.groups, -1)


def _mix_one(flat, weights, shape, geometry, dtype):
    """[K, n] and [K] -> [T·c, g, f]. A sum and not a product, so that it is one pass over the K kernels."""
    wide = jnp.promote_types(dtype, jnp.float32)
    mixed = sum(flat[k].astype(wide) * weights[k].astype(wide) for k in range(flat.shape[0]))
    return mixed.astype(dtype).reshape(-1, geometry.groups, shape[-1] // geometry.groups)
