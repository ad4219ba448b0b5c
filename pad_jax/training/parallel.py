"""The one place that knows devices: the same step on every replica, by pmap or by shard_map.

Axis letters: R replicas (devices), B global batch, b = B / R.

Both forms map the leading axis of the batch over the devices and keep the state the same on all of them; steps average
over the axis `AXIS`. They give the same numbers.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = 'batch'
PARALLEL = ('pmap', 'shard_map')


class Replicas:
    """Places state and batches on devices, and maps steps over them.

    Args:
      form: one of `PARALLEL`.
      devices: those to use; all local ones if None.
    """

    def __init__(self, form: str, devices=None):
        if form not in PARALLEL:
            raise ValueError(f'parallel must be one of {", ".join(PARALLEL)}, got {form!r}')
        self.form = form
        self.devices = tuple(devices or jax.local_devices())

    def map_step(self, step: Callable, *, donate: bool, **static: Hashable) -> Callable:
        """`step(state, batch, **static, axis_name=AXIS)` compiled for these devices.

        Equal arguments give the same compiled function. With `donate`, `step` returns (state, metrics) and the old
        state's memory is given to the new one; without, it returns metrics. Metrics are the same on every replica.
        """
        return _map_step(self.form, self.devices, step, donate, tuple(sorted(static.items())))

    def place_state(self, state):
        """A copy of the state on every device."""
        stacked = self.form == 'pmap'
        # The very sharding that a mapped step returns: with any other, as of flax.jax_utils.replicate, the second call
        # of the step would compile it once more.
        sharding = NamedSharding(_mesh(self.devices), PartitionSpec(AXIS) if stacked else PartitionSpec())

        def place(leaf):
            # Copies even where the leaf is there already: a step that donates its state would take the caller's away.
            source = leaf[None] if stacked else leaf
            copies = [jax.device_put(source, device, may_alias=False) for device in self.devices]
            shape = (len(copies), *leaf.shape) if stacked else leaf.shape
            return jax.make_array_from_single_device_arrays(shape, sharding, copies)

        return jax.tree.map(place, state)

    def place_batch(self, batch):
        """The rows of arrays [B, ...] spread over the devices; B is a multiple of their number."""
        if self.form == 'pmap':
            return jax.tree.map(lambda leaf: leaf.reshape(len(self.devices), -1, *leaf.shape[1:]), batch)
        return jax.device_put(batch, NamedSharding(_mesh(self.devices), PartitionSpec(AXIS)))

    def fetch(self, tree) -> Any:
        """One replica's copy of a state or of metrics, on its first device."""
        if self.form == 'pmap':
            return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], tree)
        return jax.device_put(tree, self.devices[0])


@functools.lru_cache
def _mesh(devices):
    # Auto, not the default Explicit axes: argsort and embedding look-ups fail under those.
    return jax.sharding.Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


@functools.lru_cache
def _map_step(form, devices, step, donate, static):
    replica = functools.partial(step, **dict(static), axis_name=AXIS)
    donated = (0,) if donate else ()
    if form == 'pmap':
        return jax.pmap(replica, axis_name=AXIS, devices=devices, donate_argnums=donated)
    mapped = jax.shard_map(
        replica,
        mesh=_mesh(devices),
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        # What the replicas hold is equal by the means over the axis; the checker can't follow it through scan.
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donated)
