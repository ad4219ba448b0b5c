"""The network of a run as it is served: constants folded, without dead entries, in float32.

Whatever a network was trained in, it is served in float32: its parameters are, and what folding rounds could not be
told from an error among sums in bfloat16. And it is planned for a batch of any size: what can't be is not taken.

Legend: B batch, O outputs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import linen as nn
from flax import traverse_util

from pad_jax.deploy.folding import fold_norms, fold_scales
from pad_jax.partition import compact
from pad_jax.training.config import is_text
from pad_jax.training.evaluate import RestoredRun
from pad_jax.training.setup import make_model, make_task, make_temperature, measure_lengths
from pad_jax.training.tasks import Task

# Of these all that a mask splits is a kernel. ODConv and DCD generate tensors as well, whose scales stay.
_LINEAR = ('static', 'dynamic', 'condconv')


class Network(NamedTuple):
    """A network that is no longer trained.

    Attributes:
      model: the module.
      variables: its collections, as NumPy arrays.
      task: how a batch goes through it.
      temperature: of its attention, > 0; None for a network that takes none.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    task: Task
    temperature: float | None

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The variables by 'COLLECTION/PATH'."""
        return traverse_util.flatten_dict(self.variables, sep='/')

    def apply(self, weights: Mapping[str, jax.Array], *inputs: jax.Array) -> jax.Array:
        """Logits float32[B, O]; the weights are those above, given as an argument."""
        variables = traverse_util.unflatten_dict(weights, sep='/')
        batch = dict(zip(self.task.inputs, inputs, strict=True))
        return self.task.apply(self.model, variables, batch, self.temperature, train=False)[0]


def read_network(run: RestoredRun) -> Network:
    """The network as it was trained, in float32: what an export has to compute.

    With the averaged parameters where the run keeps an average, and the temperature of its step.
    """
    state, config = run.state, run.config
    temperature = make_temperature(config, measure_lengths(config, run.record.num_train))
    variables = {name: jax.device_get(found) for name, found in state.averaged_variables.items() if found}
    model = make_model(_serving(config))
    return Network(model, variables, make_task(config), float(temperature(state.step)) if temperature else None)


def shrink_network(network: Network, config: ml_collections.ConfigDict) -> Network:
    """The same network as it is exported."""
    variables, served = dict(network.variables), _serving(config)
    variables['params'] = fold_norms(variables['params'], variables.pop('batch_stats', {}))
    if is_text(config) or config.model.conv in _LINEAR:
        variables['params'] = fold_scales(variables['params'], config.partition.scales)
        served.partition.scales = 'none'
    model = make_model(served)
    if not is_text(config):
        model = model.clone(norms_folded=True)
    if jax.tree.leaves(variables.get('partition', {})):
        model, variables = compact(model, variables, allow_dynamic=True)
    return network._replace(model=model, variables=jax.device_get(variables))


def _serving(config):
    served = config.copy_and_resolve_references()
    served.model.dtype, served.model.plan = 'float32', 'auto'
    return served
