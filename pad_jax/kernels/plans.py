"""Plans: executions of a dynamic convolution that give the same numbers.

| plan | execution | limits |
| --- | --- | --- |
| `fused` | one sample after another: mix its kernel, multiply unfolded windows | no symbolic batch, no jax.jvp |
| `shift` | mix every sample's kernel, one batched product for each tap | |
| `outputs` | one convolution with all K kernels, then mix the K outputs | no tap weights |

Sums over channels and kernels are taken in float32 at least. A row of y depends only on that row of x and attention.
If kernels have a wider dtype than x, `outputs` rounds kernels and K outputs, and the others the mixed kernel.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.kernels.factors import at_least_float32, put_entries, vary_together
from pad_jax.kernels.geometry import Geometry

LARGE_MAP = 40  # rows of outputs from which XLA's convolutions on CPU take longer than products, sample by sample
FEW_CHANNELS = 4  # below it, as in the stem, the products of large maps are too narrow
TINY_MAP = 16  # output positions up to which XLA's convolutions on CPU take longer than one matrix product
WIDE = 160  # output features above which they do so too


def convolve_static(x: jax.Array, kernel: jax.Array, geometry: Geometry, precision=None) -> jax.Array:
    """Convolve [B, *S, C] with one kernel [*kernel_size, C / groups, F] for all samples -> [B, *S', F]."""
    kernel = kernel.astype(x.dtype)
    size = geometry.output_size(x.shape[1:-1])
    on_cpu = geometry.groups == 1 and jax.default_backend() == 'cpu'
    if on_cpu and (geometry.num_taps == 1 or math.prod(size) < TINY_MAP or kernel.shape[-1] > WIDE):
        rows = unfold(x, geometry)
        matrix = kernel.reshape(rows.shape[2], kernel.shape[-1])
        y = jnp.dot(rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2]), matrix, precision=precision)
        return y.reshape(x.shape[0], *size, kernel.shape[-1])
    is_large = len(size) == 2 and size[0] >= LARGE_MAP and kernel.shape[-2] >= FEW_CHANNELS
    if on_cpu and is_large and isinstance(x.shape[0], int):
        windows, wide = Windows.choose(x.shape, geometry), at_least_float32(x.dtype)
        matrix = windows.arrange(kernel.reshape(geometry.num_taps, *kernel.shape[-2:]))

        @jax.checkpoint  # the gradient unfolds again: windows of a whole batch would be large
        def convolve_one(image):
            product = jnp.dot(windows.unfold(image), matrix, precision=precision, preferred_element_type=wide)
            return windows.fold(product).astype(x.dtype)

        return lax.map(convolve_one, x).reshape(x.shape[0], *size, kernel.shape[-1])
    axes = '0123456789'[: len(geometry.kernel_size)]
    numbers = f'N{axes}C', f'{axes}IO', f'N{axes}C'
    sizes = geometry.strides, geometry.padding, geometry.input_dilation, geometry.kernel_dilation
    return lax.conv_general_dilated(x, kernel, *sizes, numbers, geometry.groups, precision=precision)


class Windows(NamedTuple):
    """Windows of one image as a matrix: whole ones, or rows of them whose products are shifted and added."""

    geometry: Geometry  # of what is unfolded
    size: tuple[int, ...]  # of the output
    height: int  # rows of windows
    taps: int = 1  # rows of the kernel
    gap: int = 1  # between them

    @classmethod
    def choose(cls, shape: tuple[int, ...], geometry: Geometry) -> 'Windows':
        """Choose for x of this shape: rows for large maps, which take a third of the memory for kernels of 3 × 3."""
        size = geometry.output_size(shape[1:-1])
        if len(size) != 2 or size[0] < LARGE_MAP or geometry.strides[0] > 1 or geometry.groups > 1:
            return cls(geometry, size, size[0])
        taps, gap = geometry.kernel_size[0], geometry.kernel_dilation[0]
        rows = dataclasses.replace(
            geometry, kernel_size=(1, geometry.kernel_size[1]), kernel_dilation=(1, geometry.kernel_dilation[1])
        )
        return cls(rows, size, rows.output_size(shape[1:-1])[0], taps, gap)

    def unfold(self, image):
        """[*S, C] -> [rows, columns]."""
        return unfold(image[None], self.geometry)[0]

    def arrange(self, kernel):
        """[taps, c, F] -> the matrix [columns, outputs]."""
        kernel = jnp.moveaxis(kernel.reshape(self.taps, -1, kernel.shape[-1]), 0, 1)
        return _split_groups(kernel.reshape(kernel.shape[0], -1), self.geometry.groups)

    def fold(self, products):
        """[rows, outputs] -> [P, F]."""
        if self.taps == 1:
            return products
        parts = products.reshape(self.height, self.size[1], self.taps, -1)
        rows = [parts[tap * self.gap :][: self.size[0], :, tap] for tap in range(self.taps)]
        return functools.reduce(jnp.add, rows).reshape(math.prod(self.size), -1)


class Kernels(NamedTuple):
    """Kernels of all samples before they are mixed; taps are flattened."""

    dynamic: jax.Array  # [K, taps, c, F], in compact storage only the dynamic entries
    attention: jax.Array  # [B, K]
    tap_weights: jax.Array | None = None  # [B, taps]
    static: jax.Array | None = None  # [taps, c, F], in compact storage only the static entries
    mask: jax.Array | None = None  # bool that broadcasts against [taps, c, F]; None in compact storage
    order: tuple[jax.Array, jax.Array] | None = None  # (index, places) for `put_entries` if it is needed

    def join(self, mixed, static, tap_weights, axis):
        """Join both parts: mixed [(B,) taps, c, F] -> the kernel [(B,) taps, c, F] of a sample or of each."""
        if static is not None:
            static = jnp.broadcast_to(static.astype(mixed.dtype), (*mixed.shape[:-3], *static.shape))
            if self.mask is not None:
                mixed = jnp.where(self.mask, mixed, static)
            else:
                mixed = jnp.concatenate([static, mixed], axis)
                if self.order is not None:
                    mixed = put_entries(mixed, self.order[0], mixed.shape[axis], axis, self.order[1])
        if tap_weights is None:
            return mixed
        return mixed * tap_weights[..., None, None].astype(mixed.dtype)


def convolve_outputs(x, kernels, attention, geometry, precision):
    """Plan `outputs`."""
    num_kernels, features, groups = kernels.shape[0], kernels.shape[-1], geometry.groups
    # [K, *S, c, g·f] -> [*S, c, g·K·f]: the convolution wants the outputs of a group side by side.
    stacked = jnp.moveaxis(kernels.reshape(*kernels.shape[:-1], groups, features // groups), 0, -2)
    every = convolve_static(x, stacked.reshape(*kernels.shape[1:-1], num_kernels * features), geometry, precision)
    size, wide = every.shape[1:-1], at_least_float32(x.dtype)
    every = every.reshape(x.shape[0], math.prod(size), groups, num_kernels, features // groups).astype(wide)
    weights = attention.astype(wide)[:, None, None, :, None]
    # A sum over slices and not a matrix product: it fuses into one pass over the K outputs.
    mixed = sum(every[:, :, :, k] * weights[:, :, :, k] for k in range(num_kernels))
    return mixed.astype(x.dtype).reshape(x.shape[0], *size, features)


def convolve_shifted(x, kernels, axis, geometry, precision):
    """Plan `shift`."""
    wide, joined, total = at_least_float32(x.dtype), None, None
    if kernels.static is not None:
        joined = kernels.join(_mix(kernels.dynamic, kernels.attention, wide), kernels.static, None, axis)
    for tap, rows in enumerate(tap_windows(x, geometry)):
        # Without a static part mixed tap by tap: B whole kernels would be B · n numbers.
        kernel = _mix(kernels.dynamic[:, tap], kernels.attention, wide) if joined is None else joined[:, tap]
        if kernels.tap_weights is not None:
            kernel = kernel * kernels.tap_weights[:, tap, None, None].astype(wide)
        product = multiply_groups(rows, kernel.astype(x.dtype), geometry.groups, precision)
        total = product if total is None else total + product
    return total.astype(x.dtype).reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), total.shape[-1])


def _mix(kernels, attention, dtype):
    """Mix every sample's kernel: [K, *shape], [B, K] -> [B, *shape]."""
    flat = kernels.reshape(kernels.shape[0], math.prod(kernels.shape[1:])).astype(dtype)
    mixed = jnp.dot(attention.astype(dtype), flat, precision=lax.Precision.HIGHEST)
    return mixed.reshape(attention.shape[0], *kernels.shape[1:])


def convolve_fused(x, kernels, axis, geometry, precision):
    """Plan `fused`."""
    leaves, structure = jax.tree.flatten((x, kernels))
    return _fused(*structure.unflatten(vary_together(*leaves)), axis, geometry, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _fused(x, kernels, axis, geometry, precision):
    return _fused_forward(x, kernels, axis, geometry, precision)[0]


def _fused_forward(x, kernels, axis, geometry, precision):
    if geometry.groups > 1:
        # A depthwise layer multiplies no matrices, and one pass for each tap is many times faster. Its gradient is not.
        return convolve_shifted(x, kernels, axis, geometry, precision), (x, kernels)
    wide = at_least_float32(x.dtype)
    multiply = functools.partial(jnp.matmul, precision=precision, preferred_element_type=wide)
    windows = Windows.choose(x.shape, geometry)

    def convolve_one(sample):
        image, row, weights = sample
        mixed = _mix_one(kernels.dynamic.astype(wide), row)
        matrix = windows.arrange(kernels.join(mixed, kernels.static, weights, axis))
        return windows.fold(multiply(windows.unfold(image), matrix.astype(x.dtype))).astype(x.dtype)

    total = lax.map(convolve_one, (x, kernels.attention, kernels.tap_weights))
    return total.reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), total.shape[-1]), (x, kernels)


def _fused_backward(axis, geometry, precision, saved, cotangent):
    """Compute all gradients of `fused` in one scan over samples.

    A step adds a sample's kernel gradient, times its attention, to the K gradients. Contracted with the K kernels it is
    the gradient of attention. Neither B kernels nor B kernel gradients ever exist.
    """
    x, kernels = saved
    wide = at_least_float32(x.dtype)
    multiply = functools.partial(jnp.matmul, precision=precision, preferred_element_type=wide)
    cotangent = cotangent.reshape(x.shape[0], math.prod(cotangent.shape[1:-1]), cotangent.shape[-1])
    windows = Windows.choose(x.shape, geometry)
    # In the wide dtype, so that no gradient is rounded before it is summed.
    dynamic, static = jax.tree.map(lambda part: part.astype(wide), (kernels.dynamic, kernels.static))

    def pull_one(sums, sample):
        d_dynamic, d_static = sums
        image, row, weights, d_out = sample
        d_out = _split_groups(d_out, geometry.groups)
        rows, fold = jax.vjp(lambda image: _split_groups(windows.unfold(image), geometry.groups), image)
        if windows.taps > 1:
            shape = jax.ShapeDtypeStruct((rows.shape[0], windows.taps * d_out.shape[-1]), d_out.dtype)
            (d_out,) = jax.linear_transpose(windows.fold, shape)(d_out)
        parts = _mix_one(dynamic, row), static, weights
        matrix, unmake = jax.vjp(lambda *parts: windows.arrange(kernels.join(*parts, axis)), *parts)
        d_mixed, d_static_one, d_weights = unmake(multiply(jnp.swapaxes(rows, -1, -2), d_out))
        d_rows = multiply(d_out, jnp.swapaxes(matrix, -1, -2).astype(x.dtype))
        (d_image,) = fold(d_rows.astype(x.dtype))
        # A product with a vector: XLA's reductions on CPU take several times as long for the same sum.
        d_row = jnp.dot(dynamic.reshape(row.shape[0], -1), d_mixed.reshape(-1), precision=lax.Precision.HIGHEST)
        d_dynamic += row.astype(wide)[:, None, None, None] * d_mixed[None]
        d_static = None if static is None else d_static + d_static_one
        return (d_dynamic, d_static), (d_image, d_row, d_weights)

    start = jax.tree.map(jnp.zeros_like, (dynamic, static))
    start = jax.tree.map(lambda zero: vary_together(x, dynamic, kernels.attention, zero)[-1], start)
    scanned = x, kernels.attention, kernels.tap_weights, cotangent
    (d_dynamic, d_static), (d_x, d_attention, d_weights) = lax.scan(pull_one, start, scanned)
    d_static = None if static is None else d_static.astype(kernels.static.dtype)
    d_attention = d_attention.astype(kernels.attention.dtype)
    return d_x, Kernels(d_dynamic.astype(kernels.dynamic.dtype), d_attention, d_weights, d_static)


_fused.defvjp(_fused_forward, _fused_backward)


def _mix_one(kernels, row):
    """Mix one sample's kernel: [K, *shape], [K] -> [*shape]. A sum takes one pass over the K kernels."""
    return sum(kernels[k] * row[k].astype(kernels.dtype) for k in range(kernels.shape[0]))


def _split_groups(values, groups):
    """Make a matrix [rows, G·f] of [..., G·f], and split it into [G, rows, f] if there are feature groups."""
    matrix = values.reshape(-1, values.shape[-1])
    return matrix if groups == 1 else jnp.moveaxis(matrix.reshape(-1, groups, matrix.shape[1] // groups), 1, 0)


def flatten_taps(kernels):
    """[K, *kernel_size, c, F] -> [K, taps, c, F]."""
    return kernels.reshape(kernels.shape[0], math.prod(kernels.shape[1:-2]), *kernels.shape[-2:])


def tap_windows(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """Slice x [B, *S, C] into values [B, P, C] for each tap, in C order of the taps."""
    size = geometry.output_size(x.shape[1:-1])
    pads = ((*pad, dilation - 1) for pad, dilation in zip(geometry.padding, geometry.input_dilation))
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    lengths = [max(0, (extent - 1) * stride + 1) for extent, stride in zip(size, geometry.strides)]
    windows = []
    for tap in itertools.product(*map(range, geometry.kernel_size)):
        # Without outputs a tap may lie outside of the input.
        starts = [offset * gap * (length > 0) for offset, gap, length in zip(tap, geometry.kernel_dilation, lengths)]
        stops = [start + length for start, length in zip(starts, lengths)]
        sizes = (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), (1, *geometry.strides, 1)
        windows.append(lax.slice(padded, *sizes).reshape(x.shape[0], math.prod(size), x.shape[-1]))
    return windows


def unfold(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Put the windows of x side by side: [B, *S, C] -> [B, P, taps·C], ordered by group, tap, channel."""
    windows, groups = tap_windows(x, geometry), geometry.groups
    batch, positions, channels = windows[0].shape
    # All sizes are written out: beside an empty axis, -1 would be ambiguous.
    grouped = [window.reshape(batch, positions, groups, channels // groups) for window in windows]
    return jnp.concatenate(grouped, axis=-1).reshape(batch, positions, len(windows) * channels)


def multiply_groups(rows: jax.Array, kernels: jax.Array, groups: int, precision=None) -> jax.Array:
    """Multiply each sample's rows by its kernel, group by group: [B, P, C], [B, C / groups, F] -> [B, P, F].

    The result is float32 at least: the caller rounds the sum over channels and taps once.
    """
    dtype, features = at_least_float32(rows.dtype), kernels.shape[-1]
    batch, positions, channels = rows.shape
    inner, outer = channels // groups, features // groups
    rows = rows.reshape(batch, positions, groups, inner)
    kernels = kernels.reshape(batch, inner, groups, outer)
    if inner == 1 and groups > 1:
        # A depthwise layer: matrix products would be B · groups products with an inner size of one.
        product = rows.astype(dtype) * kernels.astype(dtype)
    else:
        product = jnp.einsum('bpgc,bcgf->bpgf', rows, kernels, precision=precision, preferred_element_type=dtype)
    return product.reshape(batch, positions, features)
