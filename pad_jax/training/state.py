"""What a run carries from step to step; all of it is in a checkpoint."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct


@struct.dataclass
class Faults:
    """Steps that made a loss, a gradient or a parameter that is not finite, and so were left out.

    Attributes:
      skipped: int32, how many so far.
      in_a_row: int32, how many of them the last steps were.
      place: int32, of the last of them: the first thing that was not finite, in the order of `finiteness.name_checked`.
      others: int32, of the last of them: how many things besides.
    """

    skipped: jax.Array
    in_a_row: jax.Array
    place: jax.Array
    others: jax.Array

    @classmethod
    def none(cls, skipped: int = 0, in_a_row: int = 0) -> 'Faults':
        return cls(*(jnp.int32(count) for count in (skipped, in_a_row, 0, 0)))


@struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
      step: int32, optimizer steps done.
      params: parameters.
      masks: the collection `partition`: bool masks, {} where no layer is partially dynamic. Not in the optimizer
        state, so no gradient, momentum or decay reaches them.
      columns: the collection `dynamic_columns`: which columns depend on the input, {} where masks alone say it. Follows
        from the masks, and its shapes from their values, so it is in no checkpoint.
      packed: of a compact state, which has no masks: the collection `packed`. Not in a checkpoint either: see
        `training.forms`.
      batch_stats: running statistics of the norms.
      optimizer_state: of optax.
      key: typed key of the run; whatever is random folds the step in.
      round: int32, rounds of the partition done.
      average: of `averaging`: the collections `params` and `batch_stats`, {} where none is kept.
      faults: of the steps done.
    """

    step: jax.Array
    params: Any
    masks: Any
    batch_stats: Any
    optimizer_state: Any
    key: jax.Array
    round: jax.Array
    columns: Any = struct.field(default_factory=dict)
    packed: Any = struct.field(default_factory=dict)
    average: Any = struct.field(default_factory=dict)
    faults: Faults = struct.field(default_factory=Faults.none)

    @property
    def variables(self) -> dict[str, Any]:
        """The collections of the Flax module."""
        collections = {'params': self.params, 'partition': self.masks, 'batch_stats': self.batch_stats}
        derived = {'dynamic_columns': self.columns, 'packed': self.packed}
        return collections | {name: found for name, found in derived.items() if found}

    @property
    def averaged_variables(self) -> dict[str, Any]:
        """The collections that the network is evaluated and handed on with: the average's where one is kept."""
        return {**self.variables, **self.average}


Inputs = tuple[jax.ShapeDtypeStruct, ...]


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, inputs: Inputs, seed: int, averaged: bool = False
) -> TrainState:
    """The state before the first step; depends on the arguments alone.

    Args:
      inputs: shapes of what the model is called with, of `setup.make_inputs`.
      seed: in [0, 2**32), of parameters and everything else that is random in training.
      averaged: keep an average.
    """
    # uint32: as an int a seed from 2**31 on would overflow.
    return _compile_init(jax.default_backend())(model, optimizer, inputs, np.uint32(seed), averaged)


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, inputs: Inputs, averaged: bool = False
) -> TrainState:
    """Shapes and dtypes of `init_state`, as jax.ShapeDtypeStructs; nothing is computed."""
    return jax.eval_shape(lambda: _init_state(model, optimizer, inputs, 0, averaged))


@functools.lru_cache
def _compile_init(backend: str):
    # It runs once, and on CPU optimising the many random draws would take longer than a short training.
    options = {'xla_backend_optimization_level': 0} if backend == 'cpu' else None
    return jax.jit(_init_state, static_argnums=(0, 1, 2, 4), compiler_options=options)


def _init_state(model, optimizer, inputs, seed, averaged):
    init_key, run_key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, *(jnp.zeros(leaf.shape, leaf.dtype) for leaf in inputs))
    learned = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
    return TrainState(
        step=jnp.int32(0),
        **learned,
        masks=variables.get('partition', {}),
        optimizer_state=optimizer.init(variables['params']),
        key=run_key,
        round=jnp.int32(0),
        average=learned if averaged else {},
    )
