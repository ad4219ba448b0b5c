"""Where the dynamic positions of each parameter lie: by output, by input, and by place.

Legend: K factors, C inputs, F outputs, T places.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pad_jax.partition.packing import NEURONS
from pad_jax.partition.problem import GENERATED

ROWS_OF_NEURONS = ('in', 'bias', 'out')


class Location(NamedTuple):
    """The dynamic fraction of parts of one parameter, [*spatial, C, F].

    Attributes:
      name: of the layer.
      places: what the T places are called: '0,1' of a kernel; of neurons weights in, bias and weights out.
      by_output: float64[T, F].
      by_input: float64[T, C]; of neurons, whose rows are inputs and outputs alike, float64[2, C]: in and out.
      by_place: float64[T].
    """

    name: str
    places: tuple[str, ...]
    by_output: np.ndarray
    by_input: np.ndarray
    by_place: np.ndarray


def locate_masks(masks: Mapping[str, Any], params: Mapping[str, Any]) -> list[Location]:
    """Of every mask but those of generators, which have no inputs.

    Args:
      masks: the collection 'partition', concrete.
      params: what they are of, arrays or shapes.
    """
    return [locate_mask('/'.join(path[:-1]), path[-1], *found) for path, *found in _pairs(masks, params, ())]


def locate_mask(name: str, parameter: str, mask: np.ndarray, shape: tuple[int, ...]) -> Location:
    """Of a mask that broadcasts against that shape.

    >>> mask = np.array([[True, True, False], [True, False, False]])
    >>> found = locate_mask('layer', 'kernel', mask, (2, 3))
    >>> found.by_output.tolist(), found.by_input.round(2).tolist(), found.by_place.tolist()
    ([[1.0, 0.5, 0.0]], [[0.67, 0.33]], [0.5])
    """
    whole = np.broadcast_to(np.asarray(mask, bool), shape)
    if parameter == NEURONS:
        width = shape[0] // 2
        parts = whole[:width], whole[width : width + 1], whole[width + 1 :]
        by_output = np.stack([part.mean(axis=0) for part in parts])
        by_input = np.stack([parts[0].mean(axis=1), parts[2].mean(axis=1)])
        return Location(name, ROWS_OF_NEURONS, by_output, by_input, np.array([part.mean() for part in parts]))
    spatial = shape[:-2]
    places = tuple(','.join(map(str, place)) for place in np.ndindex(*spatial))
    taps = whole.reshape(math.prod(spatial), *shape[-2:])
    return Location(name, places, taps.mean(axis=1), taps.mean(axis=2), taps.mean(axis=(1, 2)))


def _pairs(masks, params, path) -> Iterator[tuple[tuple[str, ...], np.ndarray, tuple[int, ...]]]:
    for name, mask in masks.items():
        if isinstance(mask, Mapping):
            yield from _pairs(mask, params[name], (*path, name))
        elif name != GENERATED:
            yield (*path, name), mask, params[name].shape[1:]
