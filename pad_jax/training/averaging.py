"""An exponential moving average of what a network has learned, to be evaluated in its place.

Of the parameters and, as is done where large networks are trained so, of the norms' running statistics, which belong to
them. It is corrected for its start: after t steps it is Σ_i d^(t − i)·θ_i / Σ_i d^(t − i) over the parameters θ_i after
each of them, for a decay d. So it holds nothing of the initial parameters, and a short run has a use for it too. What
a round of the partition replaces is the exception: see `follow_handoff`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def update_average(average: PyTree, current: PyTree, step: jax.Array, decay: float) -> PyTree:
    """The average after one more step.

    Args:
      average: that over the steps before; has no weight where there were none.
      current: what the step has led to, of the same structure.
      step: int, steps done, this one included: at least 1.
      decay: in (0, 1).

    >>> float(update_average(jnp.float32(2), jnp.float32(5), step=jnp.int32(2), decay=0.5))  # (0.5·2 + 5) / 1.5
    4.0
    """
    # (1 − d) / (1 − d^t), which is exactly 1 at the first step; as differences from 1 both would lose their digits.
    weight = jnp.expm1(math.log(decay)) / jnp.expm1(step * math.log(decay))
    return jax.tree.map(lambda old, new: ((1 - weight) * old + weight * new).astype(old.dtype), average, current)


def follow_handoff(average: PyTree, before: PyTree, after: PyTree) -> PyTree:
    """The average of params once a round of the partition has replaced some of them.

    A static parameter that took over from the dynamic ones has left its own past behind: its average becomes the value
    that it took over, as though it had had it at every step before. From there it follows at the pace of all others: n
    steps after the round that value still has the share dⁿ of it, or a little less early in a run, so with a decay of
    0.9999 a half after 6900 steps. That keeps every entry an average over the same steps, which weights of its own for
    each entry would not; and the value is one to be averaged over where it is the mean of the factors, which the
    network computed with before (handoff 'mean'). Leave a run so many steps after its last round.

    Args:
      average, before, after: of one structure; the last two are the params on either side of the round.
    """
    return jax.tree.map(lambda kept, old, new: jnp.where(old == new, kept, new), average, before, after)
