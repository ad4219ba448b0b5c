"""The static counterpart of a dynamic convolution, so that a model can hold either."""

from flax import linen as nn
from flax.typing import Initializer

# N(0, sqrt(2 / (kernel positions · outputs))), the law of the authors' code for every kernel.
KERNEL_LAW = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class StaticConv(nn.Conv):
    """`flax.linen.Conv` that is called like a dynamic layer, and drawn from the same law.

    >>> layer = StaticConv(features=8, kernel_size=(3, 3))
    """

    kernel_init: Initializer = KERNEL_LAW

    def __call__(self, x, temperature=None):
        """[B, *S, C] -> [B, *S', F]; the temperature of dynamic layers is ignored."""
        del temperature
        return super().__call__(x)
