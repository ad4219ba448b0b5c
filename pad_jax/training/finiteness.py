"""Whether a step made finite numbers, found out within it: one that did not never enters the state.

Axis letters: C things that are checked: the loss, the gradient of each parameter, and the running statistics together.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.training.state import Faults, TrainState

PyTree = Any
ON_NONFINITE = ('stop', 'skip')
# What a step learns, and leaves as it was where it isn't finite.
LEARNED = ('params', 'batch_stats', 'optimizer_state', 'average')


def check_finite(loss: jax.Array, gradients: PyTree, batch_stats: PyTree) -> jax.Array:
    """bool[C]: what is finite.

    Of a gradient its squared norm, which is computed anyway: one that float32 can't hold is not finite either. What an
    optimizer makes of finite gradients is not looked at, as that would take another pass over all parameters: see
    `find_nonfinite`.

    >>> check_finite(jnp.float32(1), {'a': jnp.ones(2), 'b': jnp.array([1, jnp.inf])}, {}).tolist()
    [True, True, False, True]
    """
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)]
    statistics = [jnp.ravel(leaf) for leaf in jax.tree.leaves(batch_stats)]
    kept = jnp.all(jnp.isfinite(jnp.concatenate(statistics))) if statistics else jnp.bool_(True)
    return jnp.stack([jnp.isfinite(loss), *map(jnp.isfinite, squares), kept])


def name_checked(params: PyTree) -> list[str]:
    """What `check_finite` looks at, in words: [C].

    >>> name_checked({'a': 1})
    ['the loss', 'the gradient of a', 'a running statistic']
    """
    return ['the loss', *(f'the gradient of {path}' for path in _paths(params)), 'a running statistic']


def accept_finite(
    state: TrainState, learn: Callable[[], dict[str, PyTree]], is_finite: jax.Array, most_in_a_row: int
) -> TrainState:
    """The state after a step, in which nothing is learned where anything is not finite: that step counts alone.

    After `most_in_a_row` of them the state stays as it is, whatever steps come: so a host that asks later finds it as
    it was.

    Args:
      learn: gives the new value of what is `LEARNED`. It is a branch, not a choice between two states that are there:
        choosing would read and write all parameters once more.
      is_finite: of `check_finite`, the same on all replicas.
      most_in_a_row: at least 1.
    """
    faults, sound = state.faults, jnp.all(is_finite)
    goes_on = faults.in_a_row < most_in_a_row
    fails = goes_on & ~sound
    counted = Faults(
        skipped=faults.skipped + fails,
        in_a_row=jnp.where(goes_on & sound, 0, faults.in_a_row + fails),
        place=jnp.where(fails, jnp.argmin(is_finite).astype(jnp.int32), faults.place),
        others=jnp.where(fails, jnp.sum(~is_finite, dtype=jnp.int32) - 1, faults.others),
    )
    before = {name: getattr(state, name) for name in LEARNED}
    learned = jax.lax.cond(goes_on & sound, learn, lambda: before)
    return state.replace(step=state.step + goes_on, faults=counted, **learned)


def find_nonfinite(state: TrainState) -> str | None:
    """The first parameter, running statistic or optimizer's number that is not finite, of a state on the host.

    >>> ones = np.ones(2, np.float32)
    >>> state = TrainState(0, {'a': ones, 'b': {'c': ones / 0}}, {}, {}, (), None, 0)
    >>> find_nonfinite(state)
    'params/b/c'
    """
    learned = {name: getattr(state, name) for name in LEARNED}
    sound = [bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(learned)]
    return None if all(sound) else _paths(learned)[sound.index(False)]


def _paths(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in jax.tree.leaves_with_path(tree)]
