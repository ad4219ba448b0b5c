"""A causal decoder of text, with its feed-forward parts as a field.

The body is that of Llama (Touvron et al., arXiv:2302.13971): norms before each part (RMSNorm, arXiv:1910.07467), rotary
positions (RoFormer, arXiv:2104.09864), attention in groups (GQA, arXiv:2305.13245), SwiGLU. Llama, OLMoE, Mixtral,
Qwen2-MoE, Qwen3-MoE and GraniteMoe differ in values of `Architecture` only.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.errors import check_choice
from pad_jax.layers.router import Gating
from pad_jax.models.bert import TiedLogits, widen
from pad_jax.models.feed_forward import Aux, FeedForward, LayerSpec

QK_NORMS = ('none', 'whole', 'head')
# Standard deviation 1/√C: the usual 0.02 at a width of 2500, and more in narrow networks.
KERNEL_INIT = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Values that tell families of decoders apart.

    Attributes:
      num_kv_heads: heads of keys and values, a divisor of the number of heads; 0: as many as heads.
      head_size: even, features of a head; 0: width / number of heads.
      qk_norm: RMSNorm of queries and keys before their rotation: 'none', over the 'whole' projection, or by 'head'.
      qkv_bias: add biases to queries, keys and values.
      rope_theta: base of the wavelengths of the rotary positions.
      tied: the table of the embeddings also makes the logits.
      norm_epsilon: added to the mean square in every norm.
      embedding_multiplier, residual_multiplier: factors of the embeddings, and of each part's output.
      attention_multiplier: factor of the products of queries and keys; 0: 1 / √head_size.
      logits_scaling: divisor of the logits.
      shared_gate: gate the shared feed-forward part, if there is one, by a sigmoid.
      gating: rules of the routers.
    """

    num_kv_heads: int = 0
    head_size: int = 0
    qk_norm: str = 'none'
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    tied: bool = False
    norm_epsilon: float = 1e-5
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 0.0
    logits_scaling: float = 1.0
    shared_gate: bool = False
    gating: Gating = dataclasses.field(default=Gating())


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotate features i and i + D/2 of each head by position · theta^(−2i/D): [B, T, heads, D], int32[T]."""
    half = x.shape[-1] // 2
    dtype = widen(x.dtype)
    angles = positions[:, None].astype(dtype) * theta ** (-jnp.arange(half, dtype=dtype) / half)[None]
    cos, sin = (turn[None, :, None] for turn in (jnp.cos(angles), jnp.sin(angles)))
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class CausalAttention(nn.Module):
    """Attention of every token to the valid tokens up to itself: [B, T, C] -> [B, T, C].

    Attributes:
      capacity: tokens that the cache of keys and values holds; 0: no cache.
    """

    num_heads: int
    head_size: int
    architecture: Architecture
    dtype: Dtype
    capacity: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Attend; `positions` int32[T], `mask` bool[B, T, S] is True where a token sees one of the S keys."""
        family = self.architecture
        kv_heads = family.num_kv_heads or self.num_heads
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=KERNEL_INIT)

        def project(name, heads):
            y = dense(heads * self.head_size, use_bias=family.qkv_bias, name=name)(x)
            return y.reshape(*x.shape[:-1], heads, self.head_size)

        def turn(name, y):
            if family.qk_norm != 'none':
                features = y if family.qk_norm == 'head' else y.reshape(*x.shape[:-1], -1)
                y = _norm(family, self.dtype, f'{name}_norm')(features).reshape(y.shape)
            return rotate(y, positions, family.rope_theta)

        query, key, value = project('query', self.num_heads), project('key', kv_heads), project('value', kv_heads)
        query, key = turn('query', query), turn('key', key)
        if self.capacity:
            key, value = self._remember('keys', key, positions[0]), self._remember('values', value, positions[0])
        scale = family.attention_multiplier or self.head_size**-0.5
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], scale=scale)
        return dense(x.shape[-1], use_bias=False, name='output')(attended.reshape(*x.shape[:-1], -1))

    def _remember(self, name, values, start):
        """Write values [B, T, heads, D] into the cache and return all of it: [B, capacity, heads, D]."""
        shape = (values.shape[0], self.capacity, *values.shape[2:])
        cache = self.variable('cache', name, jnp.zeros, shape, values.dtype)
        cache.value = jax.lax.dynamic_update_slice_in_dim(cache.value, values, start, axis=1)
        return cache.value

    @nn.nowrap
    def multiply_adds(self, x_shape, y_shape, count):
        """Count the products of every token with every token: for the weights, and for the weighted sum."""
        return (2 * math.prod(x_shape[:-1]) * x_shape[-2] * self.num_heads * self.head_size,) * 3


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward part, each of the normalised input and added to it."""

    num_heads: int
    head_size: int
    ffn_width: int
    ffn: LayerSpec
    shared_width: int
    architecture: Architecture
    dtype: Dtype
    capacity: int = 0

    @nn.compact
    def __call__(self, x, positions, mask, valid, train: bool) -> tuple[jax.Array, Aux]:
        family = self.architecture
        attend = CausalAttention(self.num_heads, self.head_size, family, self.dtype, self.capacity, name='attention')
        feed_forward = FeedForward(
            *(self.ffn_width, self.ffn, self.dtype, 'swiglu'),
            use_bias=False,
            kernel_init=KERNEL_INIT,
            shared=self.shared_width,
            shared_gate=family.shared_gate,
            name='ffn',
        )
        y = attend(_norm(family, self.dtype, 'attention_norm')(x), positions, mask)
        x += _multiply(y, family.residual_multiplier)
        y, aux = feed_forward(_norm(family, self.dtype, 'ffn_norm')(x), valid, train)
        return x + _multiply(y, family.residual_multiplier), aux


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
      vocab_size: token ids are in [0, vocab_size).
      num_layers, width, num_heads, ffn_width: sizes; ffn_width is that of one expert.
      max_length: longest T, and the most tokens that a cache may hold.
      architecture: the family, a row of `models.DECODERS`.
      ffn: layer of the feed-forward parts; `make_ffn_spec` makes one.
      shared_width: hidden width of a dense feed-forward part beside the experts, or 0.
      dtype: dtype of the computation; parameters, norms, attention weights and logits are float32.
      remat: recompute the layers' activations for the gradient, to store one [B, T, C] a layer.

    Raises:
      ValueError: if a value is not allowed.

    >>> model = Decoder(vocab_size=99, num_layers=2, width=8, num_heads=2, ffn_width=16, max_length=32)
    >>> tokens, valid = jnp.ones((4, 7), jnp.int32), jnp.ones((4, 7), bool)
    >>> (logits, aux), variables = model.init_with_output(jax.random.key(0), tokens, valid)
    >>> logits.shape, aux, list(variables['params'])
    ((4, 7, 99), {}, ['tokens', 'layer_0', 'layer_1', 'norm', 'logits'])
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    ffn_width: int
    max_length: int
    architecture: Architecture = Architecture()
    ffn: LayerSpec = LayerSpec(nn.Dense)
    shared_width: int = 0
    dtype: Dtype = 'float32'
    remat: bool = False

    def __post_init__(self):
        super().__post_init__()
        least = dict.fromkeys(('vocab_size', 'num_layers', 'width', 'num_heads', 'ffn_width', 'max_length'), 1)
        for name, limit in {**least, 'shared_width': 0}.items():
            if getattr(self, name) < limit:
                raise ValueError(f'{name} must be at least {limit}, got {getattr(self, name)}')
        family = self.architecture
        check_choice('qk_norm', family.qk_norm, QK_NORMS)
        if not family.head_size and self.width % self.num_heads:
            raise ValueError(f'num_heads must divide width {self.width}, got {self.num_heads}')
        if self.head_size % 2:
            raise ValueError(f'the size of a head must be even for rotary positions, got {self.head_size}')
        if family.num_kv_heads < 0 or self.num_heads % (family.num_kv_heads or self.num_heads):
            raise ValueError(f'num_kv_heads must divide num_heads {self.num_heads}, got {family.num_kv_heads}')
        if dict(self.ffn.arguments).get('routing', 'token') != 'token':
            raise ValueError("routing must be 'token': the mean over a text would show a token those after it")

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.architecture.head_size or self.width // self.num_heads

    @nn.compact
    def __call__(
        self, tokens: jax.Array, valid: jax.Array, train: bool = False, capacity: int = 0
    ) -> tuple[jax.Array, Aux]:
        """Compute the logits of the next token at every token.

        Args:
          tokens: int32[B, T], T at most max_length.
          valid: bool[B, T], False for padding: no other token attends to it, and mixtures do not route it.
          train: with the routers' noise (rng 'routing').
          capacity: 0, or the number of tokens that the collection 'cache' holds. The tokens then follow those in the
            cache; it must be mutable, and is empty in the first call.

        Returns:
          (logits float32[B, T, vocab_size], aux); aux maps the path of each mixture of experts to its aux dict.

        Raises:
          ValueError: if the texts are longer than the model has positions.
        """
        length = tokens.shape[1]
        if max(length, capacity) > self.max_length:
            raise ValueError(f'the model has {self.max_length} positions, got texts of length {max(length, capacity)}')
        family, dtype = self.architecture, jnp.dtype(self.dtype)
        positions, keys_valid = jnp.arange(length), valid
        if capacity:
            past = self.variable('cache', 'length', jnp.zeros, (), jnp.int32)
            seen = self.variable('cache', 'valid', jnp.zeros, (tokens.shape[0], capacity), bool)
            positions += past.value
            seen.value = keys_valid = jax.lax.dynamic_update_slice_in_dim(seen.value, valid, past.value, axis=1)
            past.value += length
        mask = (jnp.arange(keys_valid.shape[1])[None] <= positions[:, None])[None] & keys_valid[:, None]

        embed = nn.Embed(self.vocab_size, self.width, dtype=widen(dtype), name='tokens')
        x, aux = _multiply(embed(tokens), family.embedding_multiplier).astype(dtype), {}
        # Argument 5 of the call, counted from self, is `train`.
        layer = nn.remat(DecoderLayer, static_argnums=(5,)) if self.remat else DecoderLayer
        sizes = self.num_heads, self.head_size, self.ffn_width, self.ffn, self.shared_width
        for index in range(self.num_layers):
            name = f'layer_{index}'
            x, layer_aux = layer(*sizes, family, dtype, capacity, name=name)(x, positions, mask, valid, train)
            aux |= {f'{name}/ffn/{part}': values for part, values in layer_aux.items()}
        x = _norm(family, widen(dtype), 'norm')(x)
        if family.tied:
            logits = TiedLogits(name='logits')(x, embed.embedding)
        else:
            fields = {'dtype': widen(dtype), 'kernel_init': KERNEL_INIT}
            logits = nn.Dense(self.vocab_size, use_bias=False, **fields, name='logits')(x)
        return _multiply(logits, 1 / family.logits_scaling), aux


def generate(
    model: Decoder,
    variables: Mapping[str, Any],
    tokens: jax.Array,
    num_tokens: int,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continue texts, token by token, with a cache of keys and values.

    Args:
      model: the decoder.
      variables: its collections.
      tokens: int32[B, T], the texts so far, T at least 1.
      num_tokens: number of new tokens, at least 1; T + num_tokens is at most max_length.
      temperature: 0 takes the most likely token, ties to the lower id. Above 0 a token is drawn from
        softmax(logits / temperature).
      key: of the draws; equal keys give equal texts.

    Returns:
      int32[B, num_tokens], the new tokens.

    Raises:
      ValueError: if a value is not allowed, or there are more tokens than positions.
    """
    length = tokens.shape[1]
    if min(length, num_tokens) < 1 or length + num_tokens > model.max_length:
        raise ValueError(
            f'the prompt and the new tokens must be at least 1 each, together at most {model.max_length} (max_length), '
            f'got {length} and {num_tokens}'
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(f'temperature must be at least 0, got {temperature}')
    if temperature and key is None:
        raise ValueError('key must be given for a temperature above 0, got None')
    key = jax.random.key(0) if key is None else key
    variables = {name: found for name, found in variables.items() if name != 'cache'}
    return _generate(model, num_tokens, bool(temperature), variables, tokens, jnp.float32(temperature), key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(model, num_tokens, draws, variables, tokens, temperature, key):
    capacity = tokens.shape[1] + num_tokens

    def step(tokens, cache, number):
        """Return (the token after these [B], the cache)."""
        inputs = {**variables, **cache}, tokens, jnp.ones(tokens.shape, bool)
        (logits, _), cache = model.apply(*inputs, capacity=capacity, mutable=['cache'])
        logits = logits[:, -1]
        if draws:
            found = jax.random.categorical(jax.random.fold_in(key, number), logits / temperature)
        else:
            found = jnp.argmax(logits, axis=-1)
        return found.astype(jnp.int32), cache

    def advance(carry, number):
        token, cache = carry
        return step(token[:, None], cache, number), token

    last, found = jax.lax.scan(advance, step(tokens, {}, 0), jnp.arange(1, num_tokens))
    return jnp.concatenate([found.T, last[0][:, None]], axis=1)


def _norm(family: Architecture, dtype: Dtype, name: str) -> nn.Module:
    return nn.RMSNorm(epsilon=family.norm_epsilon, dtype=dtype, name=name)  # computes in float32 at least


def _multiply(values, factor):
    return values if factor == 1 else values * factor
