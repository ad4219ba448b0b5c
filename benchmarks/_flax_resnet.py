"""A static ResNet for ImageNet in plain Flax and optax, without any code of pad_jax.

It is the reference for the cost of the package's own static network and train step.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState


class FlaxBlock(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1 to four times the features, and a shortcut."""

    features: int
    strides: int
    bottleneck: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sides = (1, 3, 1) if self.bottleneck else (3, 3)
        first_of_side_three, y = sides.index(3), x
        for index, side in enumerate(sides):
            last = index == len(sides) - 1
            features = self.features * (4 if last and self.bottleneck else 1)
            strides = self.strides if index == first_of_side_three else 1
            y = self.conv(features, (side, side), strides=(strides, strides))(y)
            y = self.norm(scale_init=nn.initializers.zeros)(y) if last else nn.relu(self.norm()(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(y.shape[-1], (1, 1), strides=(self.strides, self.strides))(x))
        return nn.relu(x + y)


class FlaxResNet(nn.Module):
    """A residual network; parameters and statistics are float32, `dtype` is what it computes in."""

    stage_sizes: Sequence[int]
    bottleneck: bool
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = nn.relu(norm()(conv(64, (7, 7), strides=(2, 2))(images.astype(self.dtype))))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding='SAME')
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                strides = 2 if stage and not index else 1
                x = FlaxBlock(64 * 2**stage, strides, self.bottleneck, conv, norm)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean(axis=(1, 2)))


class FlaxState(TrainState):
    """Flax's own state, with the norms' running statistics."""

    batch_stats: dict


def init_flax_state(model: FlaxResNet, images: jax.Array) -> FlaxState:
    """Parameters, statistics and the momentum of SGD with weight decay on kernels."""
    decayed = partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4, mask=decayed), optax.sgd(0.1, momentum=0.9, nesterov=True))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:1])
    return FlaxState.create(
        apply_fn=model.apply, params=variables['params'], tx=optimizer, batch_stats=variables['batch_stats']
    )


@partial(jax.jit, donate_argnums=0)
def flax_train_step(state: FlaxState, batch: dict[str, jax.Array]) -> tuple[FlaxState, dict[str, jax.Array]]:
    """Forward, backward and SGD on 'image' [B, H, W, C] and 'label' int[B]."""

    def loss_fn(params):
        variables = {'params': params, 'batch_stats': state.batch_stats}
        logits, updates = state.apply_fn(variables, batch['image'], train=True, mutable=['batch_stats'])
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        return losses.mean(), (logits, updates['batch_stats'])

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(logits.argmax(-1) == batch['label'])
    return state.apply_gradients(grads=gradients, batch_stats=batch_stats), {'loss': loss, 'accuracy': accuracy}
