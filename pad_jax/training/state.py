"""The state that a run carries from step to step; all of it is in a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from pad_jax.layers.compact import compact_params, expand_elements
from pad_jax.layers.factors import read_records

Inputs = tuple[jax.ShapeDtypeStruct, ...]
"""Shapes of the arguments that a network is initialised with."""


@struct.dataclass
class Faults:
    """Counts of steps whose loss, gradient or running statistics were not finite.

    Attributes:
      skipped: int32, number of such steps so far.
      in_a_row: int32, number of such steps at the end.
      first: int32, index into `steps.check_finite` of the first value that was not finite, at the last such step.
    """

    skipped: jax.Array
    in_a_row: jax.Array
    first: jax.Array

    @classmethod
    def none(cls, skipped: int = 0, in_a_row: int = 0) -> 'Faults':
        return cls(*(jnp.int32(count) for count in (skipped, in_a_row, 0)))


@struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
      step: int32, optimizer steps done.
      params: parameters.
      masks: the collection `partition`: bool masks, {} if no layer is partially dynamic. They are not in the optimizer
        state, so no gradient, momentum or decay reaches them.
      index: the collection `index` of `layers.compact`, {} before the first round. If the masks are {}, storage is
        compact. It follows from the masks, and its shapes from their values, so no checkpoint holds it.
      records: what the layers declare: a pytree without leaves.
      batch_stats: running statistics of the norms.
      optimizer_state: of optax.
      key: typed key of the run; random numbers of a step come from this key with the step folded in.
      round: int32, rounds of the partition done.
      average: the collections `params` and `batch_stats`, averaged by `update_average`; {} if no average is kept.
      faults: of the steps done.
      sums: of `steps.add_metrics` since the last row of metrics, in a checkpoint only; {} in training.
    """

    step: jax.Array
    params: Any
    masks: Any
    batch_stats: Any
    optimizer_state: Any
    key: jax.Array
    round: jax.Array
    index: Any = struct.field(default_factory=dict)
    records: Any = struct.field(default_factory=dict)
    average: Any = struct.field(default_factory=dict)
    faults: Faults = struct.field(default_factory=Faults.none)
    sums: Any = struct.field(default_factory=dict)

    @property
    def learned(self) -> dict[str, Any]:
        """Fields that a step learns, and that a step which is not finite leaves unchanged."""
        return {name: getattr(self, name) for name in ('params', 'batch_stats', 'optimizer_state', 'average')}

    @property
    def variables(self) -> dict[str, Any]:
        """Collections of the Flax module, in a storage that its layers read."""
        variables = {'params': self.params, 'partition': self.masks, 'batch_stats': self.batch_stats}
        if not self.index:
            return variables
        variables['index'] = self.index
        if self.masks:  # the dead entries stay in the state, for later rounds
            return variables | {'params': compact_params(self.params, self.index, self.records)}
        return expand_elements(variables, self.records)

    @property
    def averaged_variables(self) -> dict[str, Any]:
        """Collections to evaluate and to export: the average where one is kept."""
        return self.replace(**self.average).variables


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, inputs: Inputs, seed: int, averaged: bool = False
) -> TrainState:
    """Make the state before the first step; it depends on the arguments only.

    Args:
      seed: in [0, 2**32), of parameters and of all random numbers in training.
      averaged: keep an average.
    """
    # It runs once; on CPU, optimising its many random draws would take longer than a short training.
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    compiled = jax.jit(_init_state, static_argnums=(0, 1, 2, 4), compiler_options=options)
    return compiled(model, optimizer, inputs, np.uint32(seed), averaged)  # as an int, 2**31 would overflow


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, inputs: Inputs, averaged: bool = False
) -> TrainState:
    """Shapes and dtypes of `init_state` as jax.ShapeDtypeStructs; nothing is computed."""
    return jax.eval_shape(lambda: _init_state(model, optimizer, inputs, 0, averaged))


def _init_state(model, optimizer, inputs, seed, averaged):
    init_key, run_key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, *(jnp.zeros(leaf.shape, leaf.dtype) for leaf in inputs), mutable=True)
    learned = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
    return TrainState(
        step=jnp.int32(0),
        **learned,
        masks=variables.get('partition', {}),
        optimizer_state=optimizer.init(variables['params']),
        key=run_key,
        round=jnp.int32(0),
        average=learned if averaged else {},
        records=read_records(variables.get('intermediates', {})),
    )
