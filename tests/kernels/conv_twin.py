"""Twin of every plan: a loop over samples in NumPy with gradients by hand."""

import itertools

import numpy as np


def convolve_samples(x, kernels, attention, cotangent, geometry):
    """y and the gradients of <y, cotangent> with respect to x, kernels and attention.

    Args:
      x: [B, *S, C]; kernels: [K, *kernel_size, c, F]; attention: [B, K] or [B, K, *kernel_size];
        cotangent: [B, *S', F].
    """
    x, kernels, attention, cotangent = map(np.asarray, (x, kernels, attention, cotangent))
    y, d_x = np.zeros(cotangent.shape), np.zeros(x.shape)
    d_kernels, d_attention = np.zeros(kernels.shape), np.zeros(attention.shape)
    for b in range(x.shape[0]):
        # A weight of a kernel, or of one of its places, in the shape in which it broadcasts.
        weights = attention[b].reshape(*attention.shape[1:], *(1,) * (kernels.ndim - attention.ndim + 1))
        kernel = np.sum(weights * kernels, axis=0)
        y[b], d_x[b], d_kernel = convolve_one(x[b], kernel, cotangent[b], geometry)
        d_kernels += weights * d_kernel
        others = tuple(range(attention.ndim - 1, kernels.ndim))
        d_attention[b] = np.sum(d_kernel * kernels, axis=others)
    return y, (d_x, d_kernels, d_attention)


def convolve_one(x, kernel, cotangent, geometry):
    """One sample: x [*S, C], kernel [*kernel_size, c, F], cotangent [*S', F]."""
    inner, outer = kernel.shape[-2], kernel.shape[-1] // geometry.groups
    y, d_x, d_kernel = np.zeros(cotangent.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for group in range(geometry.groups):
        read, write = slice(group * inner, (group + 1) * inner), slice(group * outer, (group + 1) * outer)
        for place in np.ndindex(*cotangent.shape[:-1]):
            for tap in itertools.product(*map(range, geometry.kernel_size)):
                source = _source(place, tap, x.shape[:-1], geometry)
                if source is None:
                    continue
                y[place][write] += x[source][read] @ kernel[tap][:, write]
                d_x[source][read] += kernel[tap][:, write] @ cotangent[place][write]
                d_kernel[tap][:, write] += np.outer(x[source][read], cotangent[place][write])
    return y, d_x, d_kernel


def _source(place, tap, size, geometry):
    """Return where in x this tap of this window reads, or None if it reads a zero."""
    source = []
    for axis, (position, offset) in enumerate(zip(place, tap)):
        dilated = position * geometry.strides[axis] + offset * geometry.kernel_dilation[axis]
        dilated -= geometry.padding[axis][0]
        index, between = divmod(dilated, geometry.input_dilation[axis])
        if between or not 0 <= index < size[axis]:
            return None
        # Negative padding crops: what lies beyond it is never read, since no window reaches there.
        source.append(index)
    return tuple(source)
