"""The one place that knows devices: the same step on every replica, by pmap or by shard_map.

Both strategies split the leading axis of the batch over the devices and keep the state equal on all devices. Steps
average over the axis `AXIS`. They give the same numbers, for devices of several processes too. Each process holds some
rows of the batch, and places the state on its own devices.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pad_jax.errors import check_choice

AXIS = 'batch'
PARALLEL = ('pmap', 'shard_map')


class Replicas:
    """Places state and batches on devices, and maps steps over them.

    Args:
      strategy: one of `PARALLEL`.
      devices: devices to use, equally many of each process and in a row; None: all devices.
    """

    def __init__(self, strategy: str, devices=None):
        check_choice('parallel', strategy, PARALLEL)
        self.strategy = strategy
        # In the order of processes, so that the rows of a process lie together.
        self.devices = tuple(devices or sorted(jax.devices(), key=lambda device: device.process_index))
        here = jax.process_index()
        self.local_devices = tuple(device for device in self.devices if device.process_index == here)

    def rows(self, batch_size: int) -> slice:
        """Rows of a global batch that this process places; `batch_size` is a multiple of the number of devices."""
        share = batch_size // len(self.devices)
        start = self.devices.index(self.local_devices[0]) * share
        return slice(start, start + len(self.local_devices) * share)

    def map_step(self, step: Callable, *, donate: bool, **static: Hashable) -> Callable:
        """Compile `step(state, batch, **static, axis_name=AXIS)` for these devices.

        Equal arguments give the same compiled function. With `donate`, `step` returns (state, metrics) and reuses the
        memory of the old state; otherwise it returns metrics. Metrics are equal on every replica.
        """
        return _map_step(self.strategy, self.devices, step, donate, tuple(sorted(static.items())))

    def place_state(self, state):
        """Copy the state to every device. All processes must hold the same state, see `share`."""
        stacked = self.strategy == 'pmap'
        # The sharding that a mapped step returns: any other, as of flax.jax_utils.replicate, would compile the step
        # twice. pmap returns arrays that are spread over the devices of this process only.
        devices = self.local_devices if stacked else self.devices
        sharding = NamedSharding(_mesh(devices), PartitionSpec(AXIS) if stacked else PartitionSpec())

        def place(leaf):
            # Always a copy: a step that donates its state would otherwise free the caller's arrays.
            source = leaf[None] if stacked else leaf
            copies = [jax.device_put(source, device, may_alias=False) for device in self.local_devices]
            shape = (len(copies), *leaf.shape) if stacked else leaf.shape
            return jax.make_array_from_single_device_arrays(shape, sharding, copies)

        return jax.tree.map(place, state)

    def place_batch(self, batch):
        """Spread this process' rows of arrays [B, ...] over its devices; B is a multiple of the number of devices."""
        if self.strategy == 'pmap':
            return jax.tree.map(lambda leaf: leaf.reshape(len(self.local_devices), -1, *leaf.shape[1:]), batch)
        return jax.make_array_from_process_local_data(NamedSharding(_mesh(self.devices), PartitionSpec(AXIS)), batch)

    def fetch(self, tree) -> Any:
        """One replica's copy of a state or of metrics, on the first device of this process."""
        copies = jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
        return jax.tree.map(lambda leaf: leaf[0], copies) if self.strategy == 'pmap' else copies


def share(state):
    """Return the TrainState of the first process on one device of every process. All must call it.

    Devices may add in different orders, and replicas that differ would stay different without a word.
    """
    if jax.process_count() == 1:
        return state
    words = state.replace(key=jax.random.key_data(state.key))
    shared = jax.tree.map(jnp.asarray, multihost_utils.broadcast_one_to_all(words))
    return shared.replace(key=jax.random.wrap_key_data(shared.key, impl=jax.random.key_impl(state.key)))


def as_global(tree):
    """Turn arrays that are equal on one device of each process into arrays of the whole run."""
    if jax.process_count() == 1:
        return tree
    devices = tuple(jax.local_devices(process_index=process)[0] for process in range(jax.process_count()))
    sharding = NamedSharding(_mesh(devices), PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.make_array_from_single_device_arrays(leaf.shape, sharding, [jnp.asarray(leaf)]), tree
    )


@functools.lru_cache
def _mesh(devices):
    # Auto, not the default Explicit axes: argsort and embedding look-ups fail under those.
    return jax.sharding.Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


@functools.lru_cache
def _map_step(strategy, devices, step, donate, static):
    if strategy == 'shard_map':
        return map_over_mesh(step, _mesh(devices), donate, **dict(static))
    replica = functools.partial(step, **dict(static), axis_name=AXIS)
    return jax.pmap(replica, axis_name=AXIS, devices=devices, donate_argnums=(0,) if donate else ())


def map_over_mesh(step: Callable, mesh, donate: bool, **static: Hashable) -> Callable:
    """Do what `Replicas.map_step` does by shard_map, over a mesh with the one axis `AXIS`; it may be abstract."""
    mapped = jax.shard_map(
        functools.partial(step, **static, axis_name=AXIS),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,  # means over the axis keep the replicas equal; the checker cannot follow that through scan
    )
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())
