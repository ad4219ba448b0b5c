"""What a plan is expected to cost, from shapes: multiply-adds, bytes moved and calls started.

Legend: B batch, P output positions of a sample, T taps, C input channels, c of a group, F output channels,
K kernels, n = T·c·F positions of one kernel.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pad_jax.kernels.geometry import Geometry

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


class Rates(NamedTuple):
    """What the parts of a plan cost on one kind of device; milliseconds, but only ratios matter.

    Attributes:
      multiply: of 1e9 multiply-adds, with their share of the gradients (three times the forward ones).
      convolve: the same inside of a convolution of XLA.
      mixed: of 1e6 numbers of per-sample kernels that are written out for the whole batch, for each of
        `mixed_base` + K passes over them.
      reread: of 1e6 numbers of the K kernels that are read again for each sample.
      moved: of 1e6 numbers of windows or activations that are written out.
      call: of one step of a loop over samples.
      mixed_base: see `mixed`.
      tiny_map: factor on a convolution whose output has less than `TINY_MAP` positions.
      grouped: factor on a convolution with feature groups.
    """

    multiply: float
    convolve: float
    mixed: float
    reread: float
    moved: float
    call: float
    mixed_base: float = 10.0
    tiny_map: float = 1.0
    grouped: float = 1.0


# Set by hand to forward + backward of about 30 shapes on a 2-core CPU (benchmarks/conv.py has the five main
# ones): over them the choice takes 4 % longer than the best plan of each, by geometric mean.
CPU = Rates(multiply=33, convolve=40, mixed=0.25, reread=0.75, moved=1.2, call=0.05, tiny_map=10, grouped=20)
# Not measured: from the arithmetic and bandwidth that data sheets promise. A loop over samples leaves such a
# device idle between its steps, so its step is costed by what it takes to start kernels.
ACCELERATOR = Rates(multiply=0.03, convolve=0.03, mixed=0.001, reread=0.01, moved=0.01, call=0.2)

TINY_MAP = 16


def get_rates(platform: str) -> Rates:
    """Of 'cpu', or of anything else, an accelerator."""
    return CPU if platform == 'cpu' else ACCELERATOR


def estimate_cost(name: str, shape: ConvShape, platform: str) -> float:
    """Expected milliseconds of a plan, forward + backward; comparable between plans alone.

    Args:
      name: of a plan that `auto` may take.
      shape: the sizes.
      platform: 'cpu', or anything else for an accelerator.
    """
    rates = get_rates(platform)
    batch, outputs, kernels = shape.batch, shape.outputs, shape.kernels
    positions = shape.taps * (shape.channels // shape.groups) * shape.features
    multiply_adds = batch * outputs * positions / 1e9
    activations = batch * outputs * kernels * shape.features / 1e6
    # A 1×1 kernel's windows are the input itself.
    windows = batch * outputs * shape.taps * shape.channels / 1e6 if shape.taps > 1 else 0.0
    if name == 'outputs':
        factor = rates.tiny_map if shape.taps > 1 and outputs < TINY_MAP else 1.0
        factor *= rates.grouped if shape.groups > 1 else 1.0
        return kernels * multiply_adds * rates.convolve * factor + activations * rates.moved
    if name == 'unfolded':
        return kernels * multiply_adds * rates.multiply + (windows + activations) * rates.moved
    mixed = batch * positions / 1e6 * rates.mixed * (rates.mixed_base + kernels)
    if name == 'shift':
        moved = shape.taps * batch * outputs * (shape.channels + shape.features) / 1e6
        return multiply_adds * rates.multiply + mixed + moved * rates.moved
    if name == 'patches':
        return multiply_adds * rates.multiply + mixed + windows * rates.moved
    if name == 'fused':
        reread = batch * kernels * positions / 1e6 * rates.reread
        # Windows of one sample stay in the cache; what goes in and out of the loop does not.
        moved = batch * outputs * (shape.channels + shape.features) / 1e6
        return multiply_adds * rates.multiply + reread + moved * rates.moved + batch * rates.call
    raise ValueError(f'plan {name!r} has no cost')
