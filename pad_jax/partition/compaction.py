"""Compaction: a partially dynamic Flax network stored without what its masks make dead, and back again.

At a dynamic position the static parameter is dead, at a static one the K factors are. Stored compactly, the parameters
beside a mask are live entries alone, in the order in which they stood:

    granularity     factors [K, *shape]     static [*shape]
    output, layer   [K, ..., C, D]          [..., C, F − D]       a layer is all of its outputs or none
    input           [K, ..., D, F]          [..., C − D, F]
    spatial         [K, D, C, F]            [T − D, C, F]         places of the kernel flattened in C order
    element         [K, D]                  [n − D]               positions flattened in C order

Where there are no static parameters (see `masks.RESTS`) their compact form is an empty stack of these entries,
[0, ...], whose shape is all that it says: without it the mask could not be unpacked.

The bias [*shape] of a generator keeps its dynamic entries, as a factor does. The collection 'packed' takes the place
of 'partition': for each mask its bits, eight in a byte along the last axis, as numpy.packbits puts them; where that
axis has one gate, the mask itself. For a mask of the rows of `neurons` [2C + 1, F] it holds the indices of those that
are dynamic, among the weights `in`, the `bias` and the weights `out`: a layer needs to know how many of each there are
before it knows their values.

Everything here runs on the host, in NumPy (every shape would be a compilation of its own), on concrete arrays: shapes
follow from the values of masks.

Legend: K stacked factors, `*shape` one position tensor of n positions, C inputs, F outputs, T places of a kernel, D
gates that are dynamic.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from pad_jax.partition.masks import gate_axis, group_size, mask_granularity
from pad_jax.partition.packing import NEURONS, open_rows, pack_mask
from pad_jax.partition.problem import GENERATED


def compact(model, variables: Mapping[str, Any], allow_dynamic: bool = False):
    """(model, variables without dead entries): the same outputs, and the same gradients of what is live.

    The model is the one that was given: its layers find out from their variables how these are stored. Those of this
    package have gradients of any order then, but no forward derivatives (jax.jvp).

    Args:
      model: a Flax module.
      variables: its collections, among them `params` and `partition`, concrete arrays.
      allow_dynamic: whether all positions may be dynamic still.

    Raises:
      ValueError: where nothing is static yet, or where they are compact already.

    >>> params = {'kernel': np.ones((4, 3, 5)), 'static_kernel': np.ones((3, 5))}
    >>> masks = {'kernel': np.array([[True, False, True, False, False]])}
    >>> _, found = compact(None, {'params': params, 'partition': masks})
    >>> {name: leaf.shape for name, leaf in found['params'].items()}
    {'kernel': (4, 3, 2), 'static_kernel': (3, 3)}
    """
    if 'packed' in variables:
        raise ValueError('these variables are compact already')
    masks = variables.get('partition', {})
    if not jax.tree.leaves(masks) or (
        not allow_dynamic and all(np.asarray(mask).all() for mask in jax.tree.leaves(masks))
    ):
        raise ValueError(
            'nothing is static yet: compact comes after the partition'
            + (' (allow_dynamic=True lets a network pass in which all is dynamic)' if jax.tree.leaves(masks) else '')
        )
    others = {name: of for name, of in variables.items() if name not in ('params', 'partition', 'dynamic_columns')}
    return model, {**others, 'params': compact_params(variables['params'], masks), 'packed': pack_masks(masks)}


def expand(model, variables: Mapping[str, Any]):
    """The inverse of `compact`: masked again, with zero for every entry that is dead.

    Raises:
      ValueError: where the variables are not compact.
    """
    if 'packed' not in variables:
        raise ValueError('these variables are not compact: there is nothing to expand')
    params, packed = variables['params'], variables['packed']
    others = {name: of for name, of in variables.items() if name not in ('params', 'packed')}
    return model, {**others, 'params': expand_params(params, packed), 'partition': unpack_masks(packed, params)}


def compact_params(params: Mapping[str, Any], masks: Mapping[str, Any]) -> dict[str, Any]:
    """The live entries of anything of the structure of params: these, their momentum, their average.

    Args:
      params: nested dict of arrays.
      masks: the collection `partition`.

    Raises:
      ValueError: for a mask that is of no granularity.
    """
    compacted = dict(params)
    for name, mask in masks.items():
        if isinstance(mask, Mapping):
            compacted[name] = compact_params(params[name], mask)
            continue
        mask, shape = np.asarray(mask), params[name].shape[1:]
        whole = {f'static_{name}': np.zeros((0, *shape), params[name].dtype), **params}
        for part, is_dynamic in _parts(whole, name):
            compacted[part] = _take_live(whole[part], mask if is_dynamic else ~mask, shape)
    return compacted


def expand_params(params: Mapping[str, Any], packed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `compact_params`, with zero for every entry that is dead."""
    expanded = dict(params)
    for name, bits in packed.items():
        if _is_module(name, bits):
            expanded[name] = expand_params(params[name], bits)
            continue
        mask, shape = _unpack(bits, params, name)
        for part, is_dynamic in _parts(params, name):
            expanded[part] = _put_live(params[part], mask if is_dynamic else ~mask, shape)
        if params[f'static_{name}'].ndim == params[name].ndim:  # an empty stack
            del expanded[f'static_{name}']
    return expanded


def pack_masks(masks: Mapping[str, Any]) -> dict[str, Any]:
    """The collection `packed` that belongs to a collection `partition`: see the top of this file."""
    return {
        name: pack_masks(mask) if isinstance(mask, Mapping) else pack_mask(name, mask) for name, mask in masks.items()
    }


def unpack_masks(packed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `pack_masks`; what the bits can't say, the compact params can."""
    return {
        name: unpack_masks(bits, params[name])
        if _is_module(name, bits)
        else jax.device_put(_unpack(bits, params, name)[0])
        for name, bits in packed.items()
    }


def _is_module(name, bits) -> bool:
    """Whether what the collection 'packed' has of that name is another level of it."""
    return isinstance(bits, Mapping) and name != NEURONS


def _parts(params, name) -> Iterator[tuple[str, bool]]:
    """The parameters that a mask of that name splits, and whether what it calls dynamic is what is alive in them."""
    yield name, True
    yield f'static_{name}', False
    if name == GENERATED and 'bias' in params:
        yield 'bias', True


def _gates(mask: np.ndarray, shape: tuple[int, ...]):
    """(view of the shape, its axis of gates, the gates along it as bool vector)."""
    granularity = mask_granularity(mask.shape)
    if granularity == 'element' and mask.shape != tuple(shape):
        raise ValueError(f'no granularity has a mask of shape {mask.shape} for positions of shape {tuple(shape)}')
    group_size(mask, jax.ShapeDtypeStruct(shape, bool))  # raises where they don't broadcast
    view, axis = gate_axis(shape, granularity)
    return view, axis, np.broadcast_to(mask.reshape(-1), (view[axis],))


def _take_live(values, mask, shape):
    view, axis, gates = _gates(mask, shape)
    stack = values.shape[: values.ndim - len(shape)]
    return jax.device_put(np.compress(gates, np.asarray(values).reshape(*stack, *view), axis))


def _put_live(values, mask, shape):
    view, axis, gates = _gates(mask, shape)
    values = np.asarray(values)
    stack = values.shape[: values.ndim - len(view)]
    whole = np.zeros((*stack, *view), values.dtype)
    whole[(..., gates, *(slice(None),) * (-axis - 1))] = values
    return jax.device_put(whole.reshape(*stack, *shape))


def _unpack(bits, params, name) -> tuple[np.ndarray, tuple[int, ...]]:
    """(mask, shape of one position tensor)."""
    factors = params[name].shape[1:]
    static = params[f'static_{name}'].shape[-len(factors) :]
    if isinstance(bits, Mapping):
        num_rows = factors[0] + static[0]
        return open_rows(bits, num_rows), (num_rows, static[-1])
    bits = np.asarray(bits)
    if len(static) == 1 < bits.ndim:
        # Positions by themselves: the last axis is what the others leave of their number.
        shape = (*bits.shape[:-1], (factors[0] + static[0]) // math.prod(bits.shape[:-1]))
        return bits if bits.dtype == bool else _unpack_bits(bits, shape[-1]), shape
    if bits.dtype != bool:
        shape = (*static[:-1], factors[-1] + static[-1])
        return _unpack_bits(bits, shape[-1]), shape
    granularity = mask_granularity(bits.shape)
    if granularity == 'spatial':
        return bits, (*bits.shape[:-2], *static[-2:])
    axis = -2 if granularity == 'input' else -1
    shape = list(static)
    shape[axis] += factors[axis]
    return bits, tuple(shape)


def _unpack_bits(bits, size):
    return np.unpackbits(bits, axis=-1, count=size).astype(bool)
