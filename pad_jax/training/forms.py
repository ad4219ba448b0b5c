"""The forms that a state takes, with the same numbers: the one that is stored, and the one that is trained.

A checkpoint holds the masked form, which knows no settings: what is dead in it is zero, and takes no room on disk. The
partition scores that form too, since it needs the gates of all positions. What is trained after a round is made of it
on the host: compact, without what is dead, where the config asks for it and no round is left, else with the columns
that masks leave to experts and to the dynamic part of convolutions.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pad_jax.layers import index_dynamic_columns
from pad_jax.partition import compact_params, expand_params, pack_masks, unpack_masks
from pad_jax.training.state import TrainState

PyTree = Any


def to_trained_form(state: TrainState, rounds: int, compact: bool) -> TrainState:
    """What the steps run on, of a masked state; they compile anew for its shapes.

    Args:
      rounds: of the whole run.
      compact: whether to drop what is dead after the last of them.
    """
    done = int(state.round)
    if not state.masks or not done:
        return state
    if not compact or done < rounds:
        return state.replace(columns=index_dynamic_columns(state.masks))
    masks = jax.device_get(state.masks)
    return _map_params(state, lambda params: compact_params(params, masks)).replace(masks={}, packed=pack_masks(masks))


def to_masked_form(state: TrainState) -> TrainState:
    """The inverse of `to_trained_form`, but that what it dropped is zero."""
    if not state.packed:
        return state.replace(columns={})
    masks = unpack_masks(state.packed, state.params)
    expanded = _map_params(state, lambda params: expand_params(params, state.packed))
    return expanded.replace(masks=masks, packed={})


def masked_params(params: PyTree, masks: PyTree, packed: PyTree) -> tuple[PyTree, PyTree]:
    """(params, masks) in the masked form, of either form."""
    if not packed:
        return params, masks
    return expand_params(params, packed), unpack_masks(packed, params)


def _map_params(state: TrainState, change) -> TrainState:
    """The state with everything changed that has an entry for each parameter: momentum and averages too."""
    structure = jax.tree.structure(state.params)

    def is_like_params(tree):
        return jax.tree.structure(tree) == structure

    def change_all(tree):
        return jax.tree.map(
            lambda found: change(found) if is_like_params(found) else found, tree, is_leaf=is_like_params
        )

    changed = {name: change_all(getattr(state, name)) for name in ('params', 'optimizer_state', 'average')}
    return state.replace(**jax.tree.map(jnp.asarray, changed))
