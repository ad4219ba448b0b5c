"""Tasks: how a batch goes through a network and how its outputs are judged."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from pad_jax.training.state import Inputs


@dataclasses.dataclass(frozen=True)
class Task:
    """A hashable value, so that it can be a static argument of a step.

    Attributes:
      inputs: keys of a batch that the network is called with, in order.
      regression: labels are numbers, float32[B], and the network has one output; otherwise classes, int32[B].
      scored_in_training_mode: if the partition scores with `train=True`. Norms need batch statistics before training,
        while dropout and a router's noise would only disturb.
      collects: if evaluation needs the outputs of all examples, for metrics that are not means over them.
      by_token: labels are tokens, int32[B, T], −1 where none is to be predicted; the network has outputs [B, T, V].
    """

    inputs: tuple[str, ...]
    regression: bool = False
    scored_in_training_mode: bool = False
    collects: bool = False
    by_token: bool = False

    def apply(self, model: nn.Module, variables, batch, temperature=None, *, train: bool, **options):
        """Apply the model to the batch, with a temperature if one is given."""
        inputs = [batch[name] for name in self.inputs]
        inputs += [] if temperature is None else [temperature]
        return model.apply(variables, *inputs, train=train, **options)

    def losses(self, outputs: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
        """Loss of each example, float32[B]: cross entropy in nats, a mean if it has several labels, or squared error.

        `smoothing` in [0, 1) spreads that share of a class label over all classes (arXiv:1512.00567, section 7).
        """
        if self.regression:
            return jnp.square(outputs[:, 0] - labels)
        if self.by_token:
            found = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(labels, 0))
            return jnp.mean(found, axis=-1, where=labels >= 0)
        if smoothing:
            targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), smoothing)
            return optax.softmax_cross_entropy(outputs, targets)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

    def hits(self, outputs: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """`accuracy` of each example, bool[B]; {} for regression and for tokens."""
        return {} if self.regression or self.by_token else {'accuracy': outputs.argmax(-1) == labels}


IMAGES = Task(('image',), scored_in_training_mode=True)
TEXTS = Task(('tokens', 'segments', 'valid'), collects=True)
CAUSAL = Task(('tokens', 'valid'), by_token=True)
MASKED = Task(('tokens', 'segments', 'valid'), by_token=True)


def image_inputs(image_shape) -> Inputs:
    """Shapes that a network of images is initialised with."""
    return (jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),)


def text_inputs(task: Task, length: int = 8) -> Inputs:
    """Shapes that a network of texts is initialised with; its parameters do not depend on the length."""
    return tuple(jax.ShapeDtypeStruct((1, length), bool if name == 'valid' else jnp.int32) for name in task.inputs)


def summarize_routers(aux: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Summarise the reports of a network's mixtures: (loss to be added, values to log).

    Losses are summed. `load_cv`, `router_entropy` and the share of each expert, `load_0` and so on, are means over the
    mixtures. `load_cv_max` is that of the worst mixture: a mean would hide a single dead expert.
    Without mixtures the result is (0, {}).
    """
    rows = [row for row in aux.values() if row]
    if not rows:
        return jnp.float32(0), {}
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    loads = {f'load_{expert}': mean['load'][expert] for expert in range(mean['load'].size)}
    names = ('load_cv', 'router_entropy')
    loss = sum(row['router_loss'] for row in rows)
    worst = jnp.max(jnp.stack([row['load_cv'] for row in rows]))
    return loss, {'router_loss': loss, 'load_cv_max': worst, **{name: mean[name] for name in names}, **loads}
