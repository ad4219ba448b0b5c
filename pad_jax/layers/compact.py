"""Compact storage: the variables of a partially dynamic network without the entries that its masks make dead.

At a dynamic position the static parameter is dead, at a static position the K factors are. Compact parameters hold the
live entries, in their original order:

    granularity     factors [K, *shape]     static [*shape]
    output, layer   [K, ..., C, D]          [..., C, F − D]       a layer has all of its outputs or none
    input           [K, ..., D, F]          [..., C − D, F]
    spatial         [K, D, C, F]            [T − D, C, F]         T taps of the kernel, flattened in C order
    element         [K, D]                  [n − D]               n positions, flattened in C order

Parameters that a record names in `beside` keep their dynamic entries, as a factor does. The collection 'index' replaces
the masks: for each of them int32[D], the dynamic gates, ascending. By element it holds the bits of the mask, uint8, as
numpy.packbits packs the last axis.

Layers read compact variables of whole outputs, inputs, taps and layers. By element compact storage is a file format:
call `expand` before the network.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.kernels.factors import complement_index, put_entries, take_entries
from pad_jax.partition.layout import PartialParameter
from pad_jax.partition.masks import gate_axis, mask_granularity, mask_shape


def compact(variables: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables without dead entries: the network computes the same, with the same gradients of live entries.

    Args:
      variables: collections of a Flax module, among them `params` and `partition`, concrete arrays.
      records: of `find_records`.

    Raises:
      ValueError: if the variables have no masks, or are compact already.

    >>> from pad_jax.layers import DynamicConv, find_records
    >>> layer, x = DynamicConv(8, (3, 3), granularity='output'), jnp.ones((1, 6, 6, 3))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> masks = {'kernel_mask': (jnp.arange(8) < 3).reshape(1, 1, 1, 8)}
    >>> small = compact({**variables, 'partition': masks}, find_records(layer, x))
    >>> small['params']['kernel'].shape, small['params']['static_kernel'].shape
    ((4, 3, 3, 3, 3), (3, 3, 3, 5))
    """
    if 'index' in variables:
        raise ValueError('these variables are compact already')
    masks = variables.get('partition')
    if not masks:
        raise ValueError("the variables have no masks: only partially dynamic layers have a collection 'partition'")
    others = {name: found for name, found in variables.items() if name != 'partition'}
    params = compact_params(variables['params'], masks, records)
    return {**others, 'params': params, 'index': index_masks(masks, with_elements=True)}


def expand(variables: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `compact`, with zeros for dead entries; jittable.

    Raises:
      ValueError: if the variables are not compact.
    """
    if 'index' not in variables:
        raise ValueError('these variables are not compact: there is nothing to expand')
    index = variables['index']
    others = {name: found for name, found in variables.items() if name != 'index'}
    params = expand_params(variables['params'], index, records)
    return {**others, 'params': params, 'partition': read_masks(index, records)}


def expand_elements(variables: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables that layers can read: expanded if they are compact by element, otherwise unchanged."""
    bits = [leaf for leaf in jax.tree.leaves(variables.get('index', {})) if leaf.dtype == np.uint8]
    return expand(variables, records) if bits else dict(variables)


def index_masks(masks: Mapping[str, Any], with_elements: bool = False) -> dict[str, Any]:
    """Return the collection 'index' of the collection 'partition', whose values must be known.

    Layers compute only the entries of their index, so make it again after every round of the partition. Scoring needs
    the gradient of the masks and takes no index.

    Args:
      masks: nested dict of bool arrays.
      with_elements: also index masks by element, as bits.

    >>> index_masks({'ffn': {'kernel': jnp.array([[True, False, True]])}})['ffn']['kernel'].tolist()
    [0, 2]
    """
    index = {}
    for name, mask in masks.items():
        if isinstance(mask, Mapping):
            below = index_masks(mask, with_elements)
            index |= {name: below} if below else {}
        elif mask_granularity(mask.shape) != 'element':
            index[name] = jax.device_put(np.flatnonzero(np.asarray(mask)).astype(np.int32))
        elif with_elements:
            index[name] = jax.device_put(np.packbits(np.asarray(mask), axis=-1))
    return index


def compact_params(params: Mapping[str, Any], index: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """Take the live entries of a tree with the structure of the params: these, their momentum, their average.

    Args:
      params: nested dict of arrays.
      index: the collection 'index' or the masks. Only an index without bits may be traced.
      records: of `find_records`.
    """
    return _change_params(Entries.take, params, index, records)


def expand_params(params: Mapping[str, Any], index: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `compact_params`, with zeros for dead entries; jittable. `index` may also hold masks."""
    return _change_params(Entries.put, params, index, records)


def _change_params(change, params, index, records):
    """Change each parameter that a mask splits: the factors and what is beside them, and the static parameter."""
    changed = dict(params)
    for name, leaf in index.items():
        record = records[name]
        if isinstance(leaf, Mapping):
            changed[name] = _change_params(change, params[name], leaf, record)
            continue
        entries = Entries.read(leaf, record, params[record.factors])
        for own in {record.factors, record.static, *record.beside} & params.keys():
            changed[own] = change(entries, params[own], own != record.static)
    return changed


def read_masks(index: Mapping[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """Return the masks that an index was made of; jittable."""
    return {
        name: read_masks(leaf, records[name])
        if isinstance(leaf, Mapping)
        else jnp.asarray(_read_mask(leaf, records[name]))
        for name, leaf in index.items()
    }


def _read_mask(leaf, record):
    """Return the mask, on the host if it is known: there each shape would be a compilation."""
    array, gates = np if not _any_traced(leaf) else jnp, mask_shape(record.shape, record.granularity)
    leaf = array.asarray(leaf)
    if leaf.dtype == np.uint8:
        leaf = array.unpackbits(leaf, axis=-1, count=gates[-1]).astype(bool)
    if leaf.dtype != bool:
        return array.isin(array.arange(math.prod(gates)), leaf).reshape(gates)
    if leaf.shape != gates:
        raise ValueError(
            f'the mask of {record.factors} must have the shape {gates} of granularity {record.granularity!r}, '
            f'got {leaf.shape}'
        )
    return leaf


class Entries(NamedTuple):
    """Dynamic and static entries of one parameter, along an axis of a view of its shape.

    Attributes:
      dynamic, static: int32[D] and int32[size − D], ascending.
      places: int32[size], place of each entry among the dynamic ones and among the static ones, or None.
    """

    record: PartialParameter
    view: tuple[int, ...]
    axis: int
    dynamic: jax.Array | np.ndarray
    static: jax.Array | np.ndarray
    places: tuple[jax.Array, jax.Array] | None = None

    @classmethod
    def read(cls, leaf, record: PartialParameter, factors=None) -> 'Entries':
        """Read a mask, an index or bits. Traced bits need the compact factors, whose shape tells their number."""
        granularity = mask_granularity(mask_shape(record.shape, record.granularity))
        view, axis = gate_axis(record.shape, granularity)
        size = view[axis]
        if not _any_traced(leaf):
            mask = np.broadcast_to(_read_mask(leaf, record).reshape(-1), size)  # a layer has one gate for all
            return cls(record, view, axis, *(np.flatnonzero(one).astype(np.int32) for one in (mask, ~mask)))
        if leaf.dtype == np.uint8:
            return cls(record, view, axis, *_locate_bits(leaf, record.shape, factors.shape[-1]))
        if granularity == 'layer':
            leaf = jnp.arange(size * leaf.shape[0], dtype=jnp.int32)
        return cls(record, view, axis, leaf, complement_index(leaf, size))

    def shape(self, is_dynamic: bool) -> tuple[int, ...]:
        """Return the shape of the dynamic entries of one factor, or of the static ones."""
        count = (self.dynamic if is_dynamic else self.static).shape[0]
        return (*self.view[: self.axis], count, *self.view[self.axis :][1:])

    def take(self, values, is_dynamic: bool):
        """Take live entries: [*stack, *shape] -> [*stack, *entries]."""
        index = self.dynamic if is_dynamic else self.static
        whole = values.reshape(*values.shape[: values.ndim - len(self.record.shape)], *self.view)
        if _any_traced(values, index):
            return take_entries(whole, index, self.axis)
        # On the host in NumPy: every shape would be a compilation.
        return jax.device_put(np.take(np.asarray(whole), np.asarray(index), self.axis))

    def put(self, values, is_dynamic: bool):
        """Put live entries where they belong, with zeros elsewhere: [*stack, *entries] -> [*stack, *shape]."""
        index = self.dynamic if is_dynamic else self.static
        stack, size = values.shape[: values.ndim - len(self.view)], self.view[self.axis]
        if _any_traced(values, index):
            places = None if self.places is None else self.places[not is_dynamic]
            whole = put_entries(values, index, size, self.axis, places)
        else:
            whole = np.zeros((*stack, *self.view), values.dtype)
            whole[(..., np.asarray(index), *(slice(None),) * (-self.axis - 1))] = np.asarray(values)
            whole = jax.device_put(whole)
        return whole.reshape(*stack, *self.record.shape)


def _any_traced(*arrays):
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def _locate_bits(bits, shape, num_dynamic):
    """Return (dynamic, static, places) of traced bits uint8[*shape[:-1], ceil(shape[-1] / 8)], D of them set."""
    mask = jnp.unpackbits(bits, axis=-1, count=shape[-1]).astype(bool).reshape(-1)
    # Set bits before each byte, and before each bit inside it. XLA on CPU sums slowly over millions of bits.
    octets = bits.reshape(-1, 1)
    counts = jax.lax.population_count(octets).astype(jnp.int32)
    heads = jnp.asarray([[256 - (1 << (8 - bit)) for bit in range(8)]], jnp.uint8)
    inside = jax.lax.population_count(octets & heads).astype(jnp.int32)
    ranks = jnp.cumsum(counts, axis=0, dtype=jnp.int32) - counts + inside
    ranks = ranks.reshape(*bits.shape[:-1], -1)[..., : shape[-1]].reshape(-1)
    positions = jnp.arange(mask.shape[0], dtype=jnp.int32)
    places = jnp.where(mask, ranks, num_dynamic), jnp.where(mask, mask.shape[0] - num_dynamic, positions - ranks)
    # One scatter of integers for both: it takes about as long as reading the K factors.
    order = jnp.where(mask, places[0], num_dynamic + places[1])
    index = jnp.zeros_like(positions).at[order].set(positions, unique_indices=True)
    return index[:num_dynamic], index[num_dynamic:], places
