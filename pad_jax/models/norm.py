"""The norm of the networks of images."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
from flax.typing import Dtype


def make_norm(train: bool, dtype: Dtype, axis_name: str | None) -> Callable[..., nn.Module]:
    """Makes batch norms, with torchvision's constants.

    Args:
      train: take the statistics of the batch, and update the running ones.
      dtype: to compute in; parameters and statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged, None outside of one.
    """
    # The last scale of a residual block starts at one like all others, not at zero as is common: at zero the
    # gradient of every gate inside the branch would be zero when the partition is scored at step 0.
    return partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, axis_name=axis_name
    )
