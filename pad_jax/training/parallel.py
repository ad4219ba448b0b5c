"""The one place that knows devices: the same step on every replica, by pmap or by shard_map.

Axis letters: R replicas (devices), B global batch, b = B / R.

Both forms map the leading axis of the batch over the devices and keep the state the same on all of them; steps average
over the axis `AXIS`. They give the same numbers, also where the devices are those of several processes. Each of these
has rows of the batch, and places the state on devices of its own.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = 'batch'
PARALLEL = ('pmap', 'shard_map')


class Replicas:
    """Places state and batches on devices, and maps steps over them.

    Args:
      form: one of `PARALLEL`.
      devices: those to use, of each process as many in a row; all there are if None.
    """

    def __init__(self, form: str, devices=None):
        if form not in PARALLEL:
            raise ValueError(f'parallel must be one of {", ".join(PARALLEL)}, got {form!r}')
        self.form = form
        # In the order of processes, so that each has rows of the batch that lie together.
        self.devices = tuple(devices or sorted(jax.devices(), key=lambda device: device.process_index))
        here = jax.process_index()
        self.local_devices = tuple(device for device in self.devices if device.process_index == here)
        self.num_processes = len({device.process_index for device in self.devices})

    def rows(self, batch_size: int) -> slice:
        """The rows of a global batch that this process places; `batch_size` is a multiple of the devices."""
        share = batch_size // len(self.devices)
        start = self.devices.index(self.local_devices[0]) * share
        return slice(start, start + len(self.local_devices) * share)

    def map_step(self, step: Callable, *, donate: bool, **static: Hashable) -> Callable:
        """`step(state, batch, **static, axis_name=AXIS)` compiled for these devices.

        Equal arguments give the same compiled function. With `donate`, `step` returns (state, metrics) and the old
        state's memory is given to the new one; without, it returns metrics. Metrics are the same on every replica.
        """
        return _map_step(self.form, self.devices, step, donate, tuple(sorted(static.items())))

    def place_state(self, state):
        """A copy of the state on every device; of several processes all have to hold the same, as `share` gives it."""
        stacked = self.form == 'pmap'
        # The very sharding that a mapped step returns: with any other, as of flax.jax_utils.replicate, the second call
        # of the step would compile it once more. What pmap returns is spread over the devices of the process alone.
        devices = self.local_devices if stacked else self.devices
        sharding = NamedSharding(_mesh(devices), PartitionSpec(AXIS) if stacked else PartitionSpec())

        def place(leaf):
            # Copies even where the leaf is there already: a step that donates its state would take the caller's away.
            source = leaf[None] if stacked else leaf
            copies = [jax.device_put(source, device, may_alias=False) for device in self.local_devices]
            shape = (len(copies), *leaf.shape) if stacked else leaf.shape
            return jax.make_array_from_single_device_arrays(shape, sharding, copies)

        return jax.tree.map(place, state)

    def place_batch(self, batch):
        """This process' rows of arrays [B, ...] spread over its devices; B is a multiple of the number of all."""
        if self.form == 'pmap':
            return jax.tree.map(lambda leaf: leaf.reshape(len(self.local_devices), -1, *leaf.shape[1:]), batch)
        sharding = NamedSharding(_mesh(self.devices), PartitionSpec(AXIS))
        if self.num_processes == 1:
            return jax.device_put(batch, sharding)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)

    def fetch(self, tree) -> Any:
        """One replica's copy of a state or of metrics, on the first device of this process."""
        if self.form == 'pmap':
            return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], tree)
        if self.num_processes == 1:
            return jax.device_put(tree, self.devices[0])
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def share(self, state):
        """The state of the first process, on one device of each. All have to call it, with states of the same shapes.

        Processes that each compute a state from the same numbers may still differ: not every device adds up in the same
        order each time. Replicas that differ would go on differing, and none would say so.
        """
        if self.num_processes == 1:
            return state
        step = self.map_step(_take_first, donate=True)
        return self.fetch(step(self.place_state(state), {}))


def as_global(tree):
    """Arrays on one device of each process, the same on all, as arrays of the whole run; themselves if there is one."""
    if jax.process_count() == 1:
        return tree
    devices = tuple(jax.local_devices(process_index=process)[0] for process in range(jax.process_count()))
    sharding = NamedSharding(_mesh(devices), PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.make_array_from_single_device_arrays(leaf.shape, sharding, [jnp.asarray(leaf)]), tree
    )


def _take_first(state, batch, *, axis_name):
    """The first replica's state, on all."""
    is_first = jax.lax.axis_index(axis_name) == 0

    def take(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(take(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if leaf.dtype == bool:
            return take(leaf.astype(jnp.uint8)).astype(bool)
        return jax.lax.psum(jnp.where(is_first, leaf, jnp.zeros_like(leaf)), axis_name)

    return jax.tree.map(take, state)


@functools.lru_cache
def _mesh(devices):
    # Auto, not the default Explicit axes: argsort and embedding look-ups fail under those.
    return jax.sharding.Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


@functools.lru_cache
def _map_step(form, devices, step, donate, static):
    if form == 'pmap':
        replica = functools.partial(step, **dict(static), axis_name=AXIS)
        return jax.pmap(replica, axis_name=AXIS, devices=devices, donate_argnums=(0,) if donate else ())
    return map_over_mesh(step, _mesh(devices), donate, **dict(static))


def map_over_mesh(step: Callable, mesh, donate: bool, **static: Hashable) -> Callable:
    """`Replicas.map_step` by shard_map over a mesh of one axis, `AXIS`; an abstract one lowers for what isn't there."""
    mapped = jax.shard_map(
        functools.partial(step, **static, axis_name=AXIS),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        # What the replicas hold is equal by the means over the axis; the checker can't follow it through scan.
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())
