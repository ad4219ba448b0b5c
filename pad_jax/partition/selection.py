"""Selection: from scores to masks that keep an exact number of positions dynamic.

The order is total. A higher score comes first; of equal scores the lower flat index does (leaves in the order of
jax.tree.leaves, then row-major). NaN never enters. The selection keeps the longest prefix of that order whose positions
fit the target. So at granularity `element` it keeps exactly the target, and with groups never more.

Nothing is sorted. Histograms of order-preserving integer keys tell the score at which the prefix ends. That is linear
in the number of positions. The target is traced, so one compilation serves all rounds.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pad_jax.partition.masks import group_size, leaf_names

SCOPES = ('global', 'layer')


def num_dynamic_positions(num_positions: int, dynamic_fraction: float) -> int:
    """Return the target of a selection: κ·n to the nearest integer, and at least one position.

    Raises:
      ValueError: if the dynamic fraction is not in (0, 1].

    >>> num_dynamic_positions(10, 0.3), num_dynamic_positions(10, 1e-6)
    (3, 1)
    """
    if not 0 < dynamic_fraction <= 1:
        raise ValueError(f'dynamic_fraction must be in (0, 1], got {dynamic_fraction}')
    return max(1, round(dynamic_fraction * num_positions))


def find_competitions(paths: Iterable[str], scope: str, layer_of: Callable[[str], str] = str) -> dict[str, list[str]]:
    """Return the paths of the parameters that compete with each other, by the name of their layer.

    By default every parameter is a layer.

    >>> find_competitions(['a/kernel', 'a/vector', 'b/kernel'], 'layer', lambda path: path.split('/')[0])
    {'a': ['a/kernel', 'a/vector'], 'b': ['b/kernel']}
    >>> find_competitions(['a', 'b'], 'global')
    {'all parameters': ['a', 'b']}
    """
    if scope not in SCOPES:
        raise ValueError(f'scope must be one of {", ".join(SCOPES)}, got {scope!r}')
    found = {}
    for path in paths:
        found.setdefault('all parameters' if scope == 'global' else layer_of(path), []).append(path)
    return found


def select_positions(scores, masks, targets, positions, scope='global', layer_of: Callable[[str], str] = str):
    """Return new masks: the best-scored positions among those that are still dynamic.

    Args:
      scores: pytree of float arrays like the masks, compared in float32; higher stays dynamic, NaN never does.
      masks: pytree of bool, the candidates: a position that is static stays static (nested rounds).
      targets: number of positions to keep, traced: one int32 scalar under scope `global`, a dict of them by layer
        under scope `layer`. Every gate counts with the number of positions that it decides for.
      positions: pytree of arrays or shapes, the positions behind each mask.
      scope: one of `SCOPES`: positions compete over the whole tree, or within their layer.
      layer_of: path of a mask -> its layer.

    Returns:
      Pytree of bool like `masks`.

    >>> select_positions(jnp.array([3., 1., 3., 2.]), jnp.ones(4, bool), 2, jnp.zeros(4)).tolist()
    [True, False, True, False]
    """
    structure, sizes = jax.tree.structure(masks), jax.tree.map(group_size, masks, positions)
    kept, rows = {}, zip(*map(structure.flatten_up_to, (scores, masks, sizes)), strict=True)
    rows = dict(zip(leaf_names(masks), rows, strict=True))
    for layer, paths in find_competitions(rows, scope, layer_of).items():
        target = targets if scope == 'global' else targets[layer]
        kept |= zip(paths, _select(*zip(*(rows[path] for path in paths), strict=True), target), strict=True)
    return structure.unflatten([kept[path] for path in rows])


@functools.partial(jax.jit, static_argnums=2)
def _select(scores, masks, sizes, target):
    """Select from tuples: all leaves as one vector, because compile time grows with the number of arrays."""
    candidates, unravel = ravel_pytree(masks)
    key = _order_preserving_key(ravel_pytree([score.astype(jnp.float32) for score in scores])[0], candidates)
    # Each is sharded as its mask, if that is.
    weights, _ = ravel_pytree([jnp.full_like(mask, size, jnp.int32) for mask, size in zip(masks, sizes, strict=True)])
    threshold, remaining = _find_threshold(key, weights, jnp.asarray(target, jnp.int32))
    # Gates of the same score compete for the rest: the lower index has the higher key.
    tied = jnp.where(key == threshold, ~jnp.arange(key.size, dtype=jnp.uint32), 0)
    last, _ = _find_threshold(tied, weights, remaining)
    return unravel((key > 0) & ((key > threshold) | (tied > last)))


def _order_preserving_key(score, mask):
    """Return uint32[n] that sorts like the float32 scores. Gates that cannot be kept get 0, below every other key.

    −0.0, whose only bit is the sign, gets the key of 0.0. (XLA would simplify an addition of 0.0 away.)
    """
    bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    key = jnp.where(bits > sign, ~bits, bits | sign)
    return jnp.where(jnp.isnan(score) | ~mask, jnp.uint32(0), key)


def _find_threshold(key, weights, target):
    """Return the threshold t, and the target minus the weight of the gates with key > t.

    t is the largest uint32 such that the gates with key >= t weigh more than `target`; 0 if all gates fit. It is found
    in two halves of 16 bits, the upper one first. Only keys with the upper half of t compete for the lower one.
    """
    threshold = jnp.uint32(0)
    for shift in (16, 0):
        digit = (key >> shift) ^ (threshold << 16)  # 2**16 or more in keys that start otherwise: not counted
        counts = jnp.bincount(digit, weights, length=1 << 16)
        weight_from = jnp.cumsum(counts[::-1])[::-1]
        found = jnp.maximum(jnp.sum(weight_from > target) - 1, 0)
        target -= weight_from[found] - counts[found]
        threshold = (threshold << 16) | found.astype(jnp.uint32)
    return threshold, target
