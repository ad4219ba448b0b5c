"""Whether a step made finite numbers, found out within it: one that did not never enters the state.

Axis letters: C things that are checked: the loss, the gradient of each parameter, and each parameter and running
statistic that the step would leave behind.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pad_jax.training.state import Faults, TrainState

PyTree = Any
ON_NONFINITE = ('stop', 'skip')


def check_finite(loss: jax.Array, gradients: PyTree, learned: PyTree) -> jax.Array:
    """bool[C]: what is finite.

    Of a gradient its norm, which is reported anyway: one that float32 can't hold is not finite either.

    >>> check_finite(jnp.float32(1), {'a': jnp.ones(2), 'b': jnp.array([1, jnp.inf])}, {'a': jnp.ones(2)}).tolist()
    [True, True, False, True]
    """
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)]
    kept = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(learned)]
    return jnp.stack([jnp.isfinite(loss), *map(jnp.isfinite, squares), *kept])


def name_checked(params: PyTree, learned: PyTree) -> list[str]:
    """What `check_finite` looks at, in words: [C].

    >>> name_checked({'a': 1}, {'params': {'a': 1}})
    ['the loss', 'the gradient of a', 'params/a after the step']
    """

    def paths(tree):
        return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in jax.tree.leaves_with_path(tree)]

    gradients = [f'the gradient of {path}' for path in paths(params)]
    return ['the loss', *gradients, *(f'{path} after the step' for path in paths(learned))]


def accept_finite(old: TrainState, new: TrainState, is_finite: jax.Array, most_in_a_row: int) -> TrainState:
    """The new state, or what was learned before where anything is not finite: that step counts, and changes nothing.

    After `most_in_a_row` of them the state stays as it is, whatever steps come: so a host that asks later finds it as
    it was.

    Args:
      is_finite: of `check_finite`, the same on all replicas.
      most_in_a_row: at least 1.
    """
    faults, sound = old.faults, jnp.all(is_finite)
    goes_on = faults.in_a_row < most_in_a_row
    fails = goes_on & ~sound
    counted = Faults(
        skipped=faults.skipped + fails,
        in_a_row=jnp.where(goes_on & sound, 0, faults.in_a_row + fails),
        place=jnp.where(fails, jnp.argmin(is_finite).astype(jnp.int32), faults.place),
        others=jnp.where(fails, jnp.sum(~is_finite, dtype=jnp.int32) - 1, faults.others),
    )
    learned = {
        name: jax.tree.map(
            lambda after, before: jnp.where(goes_on & sound, after, before), getattr(new, name), getattr(old, name)
        )
        for name in ('params', 'batch_stats', 'optimizer_state', 'average')
    }
    return old.replace(step=old.step + goes_on, faults=counted, **learned)
