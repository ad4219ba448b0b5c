"""What a plan is expected to cost, from shapes: multiply-adds, bytes moved and calls started.

Legend: B batch, P output positions of a sample, T taps, C input channels, c of a group, F output channels,
K kernels, n = T·c·F positions of one kernel.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pad_jax.layers.conv_geometry import Geometry

# A symbolic batch is costed as if it were this large.
ASSUMED_BATCH = 8


class ConvShape(NamedTuple):
    """The sizes that a cost depends on."""

    batch: int
    outputs: int
    taps: int
    channels: int
    features: int
    kernels: int
    groups: int

    @classmethod
    def read(cls, x_shape: Sequence[int], kernels_shape: Sequence[int], geometry: Geometry) -> 'ConvShape':
        """From the shapes of a plan's arguments."""
        batch = x_shape[0] if isinstance(x_shape[0], int) else ASSUMED_BATCH
        return cls(
            batch=batch,
            outputs=math.prod(geometry.output_size(x_shape[1:-1])),
            taps=geometry.num_taps,
            channels=x_shape[-1],
            features=kernels_shape[-1],
            kernels=kernels_shape[0],
            groups=geometry.groups,
        )


def estimate_seconds(name: str, shape: ConvShape, platform: str) -> float:
    """Placeholder until measured."""
    small = shape.outputs < 256 and shape.taps > 1
    return {
        'outputs': 0.5 if small else 2.0,
        'shift': 1.0,
        'patches': 3.0,
        'fused': 0.9 if shape.taps > 1 else 1.1,
    }[name]
