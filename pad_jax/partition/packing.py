"""Masks as they are stored in compact form: bits, and indices where a layer needs counts before it knows values.

Legend: C features, F neurons.
"""

from typing import Any

import jax
import numpy as np

from pad_jax.partition.masks import mask_granularity

NEURONS = 'neurons'
"""The parameter [2C + 1, F] whose rows are three things: C weights in, a bias, C weights out."""
ROWS = ('in', 'bias', 'out')


def holds_rows(name: str, mask) -> bool:
    """Whether that is a mask of the rows of `neurons`."""
    return name == NEURONS and mask_granularity(mask.shape) == 'input'


def index_open(mask) -> jax.Array:
    """int32[D], the gates that are open, ascending."""
    return jax.device_put(np.flatnonzero(np.asarray(mask)).astype(np.int32))


def index_rows(mask) -> dict[str, jax.Array]:
    """The open rows of `neurons`, counted among the weights in, the bias and the weights out by themselves."""
    return {part: index_open(rows) for part, rows in zip(ROWS, _split_rows(np.asarray(mask)))}


def pack_mask(name: str, mask) -> Any:
    """What the collection 'packed' has for the mask of that name."""
    if holds_rows(name, mask):
        return index_rows(mask)
    mask = np.asarray(mask)
    return jax.device_put(mask if mask.shape[-1] == 1 else np.packbits(mask, axis=-1))


def open_rows(index, num_rows: int) -> np.ndarray:
    """The mask [num_rows, 1] of which `index_rows` is the index."""
    mask = np.zeros((num_rows, 1), bool)
    for part, rows in zip(ROWS, _split_rows(mask)):
        rows[np.asarray(index[part])] = True
    return mask


def _split_rows(mask):
    width = mask.shape[0] // 2
    return mask[:width], mask[width : width + 1], mask[width + 1 :]
