"""A Llama decoder in plain Flax and optax, without any code of pad_jax.

It is the reference for the cost of the package's own dense decoder and train step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState


def rotate(x: jax.Array) -> jax.Array:
    """Rotate pairs of features of [B, T, heads, D] by their positions."""
    half = x.shape[-1] // 2
    angles = jnp.outer(jnp.arange(x.shape[1]), 10_000.0 ** (-jnp.arange(half) / half))[None, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class FlaxDecoder(nn.Module):
    """Llama with as many heads of keys and values as of queries, in float32."""

    vocab_size: int
    num_layers: int
    num_heads: int
    width: int
    ffn_width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, use_bias=False)
        heads = *tokens.shape, self.num_heads, self.width // self.num_heads
        x = nn.Embed(self.vocab_size, self.width)(tokens)
        for _ in range(self.num_layers):
            y = nn.RMSNorm()(x)
            query, key, value = (dense(self.width)(y).reshape(heads) for _ in range(3))
            attended = jax.nn.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
            x += dense(self.width)(attended.reshape(x.shape))
            y = nn.RMSNorm()(x)
            x += dense(self.width)(nn.silu(dense(self.ffn_width)(y)) * dense(self.ffn_width)(y))
        return dense(self.vocab_size)(nn.RMSNorm()(x))


def init_flax_state(model: FlaxDecoder, tokens: jax.Array) -> TrainState:
    """Initialise parameters and AdamW, with clipping, and weight decay on matrices only."""
    decayed = partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    adamw = optax.adamw(3e-3, weight_decay=0.1, mask=decayed)
    params = jax.jit(model.init)(jax.random.key(0), tokens[:1])['params']
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.chain(optax.clip_by_global_norm(1.0), adamw))


@partial(jax.jit, donate_argnums=0)
def flax_train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, jax.Array]:
    """Forward, backward and AdamW on 'tokens' and 'label' int32[B, T]."""

    def loss_fn(params):
        logits = state.apply_fn({'params': params}, batch['tokens'])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss
