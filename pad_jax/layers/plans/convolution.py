"""An ordinary convolution with channels last, by explicit geometry: the static layer, and parts of plans."""

import jax
from jax import lax

from pad_jax.kernels.geometry import Geometry


def convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry, precision=None) -> jax.Array:
    """[B, *S, C] with one kernel [*kernel_size, C / groups, F] for all samples -> [B, *S', F]."""
    rank = len(geometry.kernel_size)
    spatial = tuple(range(1, rank + 1))
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(0, rank + 1, *spatial),
        rhs_spec=(rank + 1, rank, *range(rank)),
        out_spec=(0, rank + 1, *spatial),
    )
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.padding,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=numbers,
        feature_group_count=geometry.groups,
        precision=precision,
    )
