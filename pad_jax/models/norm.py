"""The norm of the networks of images."""

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn
from flax.typing import Dtype

EPSILON = 1e-5
"""Added to a variance that is divided by."""


class Shift(nn.Module):
    """What is left of a norm whose scale is in the convolution before it: x + bias, [*batch, C] of x's dtype."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.param('bias', nn.initializers.zeros_init(), (x.shape[-1],))
        return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + bias.shape)


def make_norm(train: bool, dtype: Dtype, axis_name: str | None, folded: bool = False) -> Callable[..., nn.Module]:
    """Makes batch norms, with torchvision's constants.

    Args:
      train: take the statistics of the batch, and update the running ones.
      dtype: to compute in; parameters and statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged, None outside of one.
      folded: each is a `Shift` instead: a network that is no longer trained.
    """
    if folded:
        return Shift
    # The last scale of a residual block starts at one like all others, not at zero as is common: at zero the
    # gradient of every gate inside the branch would be zero when the partition is scored at step 0.
    return partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=EPSILON, dtype=dtype, axis_name=axis_name
    )
