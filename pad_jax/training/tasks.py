"""What a network is asked, and what its answers are worth: where the steps on images and on texts differ.

Axis letters: B examples, O outputs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Task:
    """How a batch goes through a network; a value, so that it can be a static argument.

    Attributes:
      inputs: keys of a batch that the network is called with, in order.
      heated: whether it takes a temperature as well.
      regression: labels are numbers, float32[B], and the network has one output; else classes, int32[B].
      scored_in_training_mode: whether the partition scores it with `train=True`. A norm's running statistics say
        nothing before training, so batch statistics are to be used; dropout and a router's noise are not.
      collects: whether evaluation needs the outputs of all examples, for metrics that are no mean over them.
    """

    inputs: tuple[str, ...]
    heated: bool = False
    regression: bool = False
    scored_in_training_mode: bool = False
    collects: bool = False

    def apply(self, model: nn.Module, variables, batch, temperature=None, *, train: bool, **options):
        """model.apply on the batch; `temperature` is read where `heated`."""
        inputs = [batch[name] for name in self.inputs]
        heat = [temperature] if self.heated else []
        return model.apply(variables, *inputs, *heat, train=train, **options)

    def losses(self, outputs: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
        """float32[B]: cross entropy in nats, or squared error.

        With `smoothing` in [0, 1), which numbers have no use for, that share of a label is spread over all classes
        (Szegedy et al., CVPR 2016, arXiv:1512.00567, section 7).
        """
        if self.regression:
            return jnp.square(outputs[:, 0] - labels)
        if smoothing:
            targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), smoothing)
            return optax.softmax_cross_entropy(outputs, targets)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

    def hits(self, outputs: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """`accuracy` of each example, bool[B]; nothing for numbers."""
        return {} if self.regression else {'accuracy': outputs.argmax(-1) == labels}


IMAGES = Task(('image',), heated=True, scored_in_training_mode=True)
TEXTS = Task(('tokens', 'segments', 'valid'), collects=True)


def image_inputs(image_shape) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a network of images is initialised with."""
    return (jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),)


def text_inputs(length: int = 8) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a network of texts is initialised with; no parameter depends on the length."""
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return tokens, tokens, jax.ShapeDtypeStruct((1, length), bool)


def summarize_routers(aux: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the mixtures of a network report, in one: (loss to be added, values to log).

    The losses are summed; `load_cv`, `router_entropy` and the share of each expert, `load_0` and so
    on, are means over the mixtures. `load_cv_max` is that of the worst: a mean would hide an expert that is dead in one
    of many. Nothing for a network without any.
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
