"""Selection: from scores to masks that keep an exact number of positions dynamic.

The order is total. A higher score comes first; of equal scores the lower flat index does (leaves in the order of
jax.tree.leaves, then row-major). NaN never enters. The selection keeps the longest prefix of that order whose positions
fit the target. So at granularity `element` it keeps exactly the target, and with groups never more.

Nothing is sorted. The score of the last kept gate is found bit by bit, by counting, over order-preserving integer keys.
That is linear in the number of positions. The target is traced, so one compilation serves all rounds.
"""

import functools
import itertools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from pad_jax.partition.masks import group_size, leaf_names

SCOPES = ('global', 'layer')
_ROW = 128  # at most 255: its count must fit a byte


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
    lengths = [mask.size for mask in masks]
    score = jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in scores])
    mask = jnp.concatenate([leaf.ravel() for leaf in masks])
    target, weights = jnp.asarray(target, jnp.int32), None
    if len(set(sizes)) == 1:
        target = target // sizes[0]
    else:
        weights = jnp.concatenate([jnp.full(length, size) for length, size in zip(lengths, sizes, strict=True)])
    threshold, remaining = _find_threshold(score, mask, weights, target)
    key = _recomputed_key(score, mask, threshold)
    tied = (key == threshold) & (threshold > 0)
    # The prefix ends at the first tied gate that doesn't fit: smaller ones behind it stay out too.
    end = _first_beyond(remaining, tied, weights)
    kept = (key > threshold) | (tied & (jnp.arange(key.size) < end))
    ends = list(itertools.accumulate(lengths))
    return tuple(kept[end - leaf.size : end].reshape(leaf.shape) for end, leaf in zip(ends, masks, strict=True))


def _order_preserving_key(score, mask):
    """Return uint32[n] that sorts like the float32 scores. Gates that cannot be kept get 0, below every other key.

    −0.0, whose only bit is the sign, gets the key of 0.0. (XLA would simplify an addition of 0.0 away.)
    """
    bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    key = jnp.where(bits > sign, ~bits, bits | sign)
    return jnp.where(jnp.isnan(score) | ~mask, jnp.uint32(0), key)


def _recomputed_key(score, mask, after):
    """Compute the keys again, behind a barrier: that is cheaper than writing and reading four bytes a gate."""
    score, mask, _ = jax.lax.optimization_barrier((score, mask, after))
    return _order_preserving_key(score, mask)


def _find_threshold(score, mask, weights, target):
    """Return the threshold t, and the target minus the weight of the gates with key > t.

    t is the largest uint32 such that the gates with key >= t weigh at least `target`. It is found a byte at a time,
    highest first. Keys that share the bytes found so far compete for the next byte. So each count streams one byte
    a key.
    """
    threshold, remaining = jnp.uint32(0), target
    for shift in (24, 16, 8, 0):
        key = _recomputed_key(score, mask, threshold)
        # Keys that start with other bytes count as 0, which no candidate below and no `digit > found` ever takes.
        digit = jnp.where(((key ^ threshold) >> shift) < 256, key >> shift, jnp.uint32(0)).astype(jnp.uint8)
        found = _find_digit(digit, weights, remaining)
        remaining -= jnp.sum(_weigh_rows(digit > found, weights))
        threshold |= found.astype(jnp.uint32) << shift
    return threshold, remaining


def _find_digit(digit, weights, target):
    """Return the largest uint8 d such that the gates with digit >= d weigh at least `target`, or 0: bit by bit."""

    def weight_from(byte):
        return jnp.sum(_weigh_rows(digit >= byte, weights))

    def set_bit(step, found):
        candidate = found | (jnp.uint8(128) >> jnp.asarray(step, jnp.uint8))
        return jnp.where(weight_from(candidate) >= target, candidate, found)

    # A zero that varies over mapped axes as the weights do: inside shard_map that is part of the type of the carry.
    nothing = (0 * (weight_from(jnp.uint8(255)) + target)).astype(jnp.uint8)
    return jax.lax.fori_loop(0, 8, set_bit, nothing)


def _in_rows(values):
    return jnp.pad(values, (0, -values.size % _ROW)).reshape(-1, _ROW)


def _weigh_rows(flags, weights):
    """Return int32[ceil(n / _ROW)]: the weight of the True entries in each row of bool[n], or their number."""
    if weights is None:  # byte sums vectorise ten times better than int32 ones
        return jnp.sum(_in_rows(flags), axis=1, dtype=jnp.uint8).astype(jnp.int32)
    return jnp.sum(_in_rows(jnp.where(flags, weights, 0)), axis=1)


def _first_beyond(limit, flags, weights):
    """Return the first index of bool[n] at which the running weight of True entries exceeds `limit`; n or more without.

    It is narrowed from blocks of rows to a row to an entry, so no running sum is long.
    """
    rows = _weigh_rows(flags, weights)
    blocks = _in_rows(rows)
    block, limit, any_block = _bin_beyond(limit, jnp.sum(blocks, axis=1))
    row, limit, _ = _bin_beyond(limit, jax.lax.dynamic_index_in_dim(blocks, block, keepdims=False))
    start = (block * _ROW + row) * _ROW
    places = start + jnp.arange(_ROW)
    entries = flags.at[places].get(mode='fill', fill_value=False).astype(jnp.int32)
    if weights is not None:
        entries *= weights.at[places].get(mode='fill', fill_value=0)
    entry, _, _ = _bin_beyond(limit, entries)
    return jnp.where(any_block, start + entry, flags.size)


def _bin_beyond(limit, weights):
    """Return (first bin where the running weight exceeds `limit`, rest of `limit` before it, True if it exists)."""
    ends = jnp.cumsum(weights)
    beyond = ends > limit
    index = jnp.argmax(beyond)
    return index, limit - (ends[index] - weights[index]), beyond[-1]
