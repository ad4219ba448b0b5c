"""Handoff: the value a static parameter takes when its position turns static."""

import jax
import jax.numpy as jnp

from pad_jax.partition.masks import leaf_names
from pad_jax.partition.problem import Layout, Values

HANDOFFS = ('independent', 'mean')


def hand_off_means(params, old_masks, new_masks, layout: Layout, routing=None):
    """Params in which every position that turned static takes over the mean of its dynamic factors.

        λs · static = λd · Σ_k ᾱ_k W_k

    so that the layer computes what it computed before for an input routed like the average one. Of what is generated
    it is the mean of the `Values`, λs · static = λd · mean value, and not the value of a mean. (With the handoff
    `independent`, the paper's, params simply stay as they are: each static parameter starts from its own draw.)

    Args:
      params: as `layout` reads it.
      old_masks, new_masks: pytrees of bool; only positions that are True in the first and False in the second
        are touched.
      layout: where params keeps its parts.
      routing: pytree like the masks of float[K], mean routing weights, or of `Values` float[*shape], their mean;
        uniform if None.

    Raises:
      ValueError: without routing for what a network generates: no mean follows from the factors alone.
    """

    def take_over(dynamic, static, scales, old, new, weights):
        dynamic_scale, static_scale = scales
        if isinstance(weights, Values):
            mean = weights.values.astype(dynamic.dtype)
        else:
            mean = jnp.tensordot(weights.astype(dynamic.dtype), dynamic, axes=1)
        return jnp.where(old & ~new, (dynamic_scale / static_scale * mean).astype(static.dtype), static)

    structure = jax.tree.structure(new_masks)
    dynamic = structure.flatten_up_to(layout.dynamic(params, new_masks))
    if routing is None:
        generated = [name for name in leaf_names(new_masks) if layout.generates(name)]
        if generated:
            raise ValueError(f'the mean of {generated[0]} needs the values of scoring batches: give the routing')
        weights = [jnp.full(leaf.shape[0], 1 / leaf.shape[0]) for leaf in dynamic]
    else:
        weights = structure.flatten_up_to(routing)
    taken = map(
        take_over,
        dynamic,
        structure.flatten_up_to(layout.static(params, new_masks)),
        structure.flatten_up_to(layout.scales(params, new_masks)),
        jax.tree.leaves(old_masks),
        jax.tree.leaves(new_masks),
        weights,
    )
    return layout.with_static(params, new_masks, structure.unflatten(taken))
