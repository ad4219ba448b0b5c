"""BERT, an encoder of text, with its feed-forward parts as a field.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019,
arXiv:1810.04805. Layer norms follow each sum, gelu is exact, and epsilon is 1e-12, as in the authors' code.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.errors import check_choice
from pad_jax.models.feed_forward import WEIGHT_INIT, Aux, FeedForward, LayerSpec

HEADS = ('classes', 'words')


def widen(dtype: Dtype) -> jnp.dtype:
    """Dtype of sums of many terms: float32, or float64 if the model is."""
    return jnp.promote_types(dtype, jnp.float32)


class TiedLogits(nn.Module):
    """Logits of all words, by the table of their embeddings: [B, T, C], float[V, C] -> float[B, T, V] of the table."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        logits = jnp.dot(x.astype(table.dtype), table.T)
        if self.use_bias:
            logits += self.param('bias', nn.initializers.zeros_init(), table.shape[:1])[None, None]
        return logits

    @nn.nowrap
    def multiply_adds(self, x_shape, y_shape, count):
        """Count the product of every token with every word; see `models.accounting`."""
        return (math.prod(x_shape) * y_shape[-1],) * 3


def _norm(dtype: Dtype, name: str) -> nn.Module:
    # Not the fast variance: E[x²] − E[x]² loses its digits if a token's features lie far from zero.
    return nn.LayerNorm(epsilon=1e-12, dtype=widen(dtype), use_fast_variance=False, name=name)


class Embeddings(nn.Module):
    """Sum of token, position and segment vectors, normalised: int32[B, T] twice -> [B, T, C]."""

    vocab_size: int
    width: int
    max_length: int
    num_segments: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array, train: bool) -> jax.Array:
        # Looked up in the wide dtype: casting the result is less work than casting the whole table.
        embed = partial(nn.Embed, features=self.width, embedding_init=WEIGHT_INIT, dtype=widen(self.dtype))
        positions = jnp.arange(tokens.shape[1])[None]
        x = embed(self.vocab_size, name='tokens')(tokens)
        x = x + embed(self.max_length, name='positions')(positions)
        x = x + embed(self.num_segments, name='segments')(segments)
        x = _norm(self.dtype, 'norm')(x).astype(self.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class SelfAttention(nn.Module):
    """Attention of every token to all valid tokens: [B, T, C] -> [B, T, C]."""

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        width = x.shape[-1]
        dense = partial(nn.Dense, width, dtype=self.dtype, kernel_init=WEIGHT_INIT)
        by_head = (*x.shape[:-1], self.num_heads, width // self.num_heads)
        query, key, value = (dense(name=name)(x).reshape(by_head) for name in ('query', 'key', 'value'))
        attended = jax.nn.dot_product_attention(query, key, value, mask=valid[:, None, None, :])
        return dense(name='output')(attended.reshape(x.shape))

    @nn.nowrap
    def multiply_adds(self, x_shape, y_shape, count):
        """Count the products of every token with every token: for the weights, and for the weighted sum."""
        return (2 * math.prod(x_shape) * x_shape[-2],) * 3


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward part, each added to its input and normalised."""

    num_heads: int
    ffn_width: int
    ffn: LayerSpec
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> tuple[jax.Array, Aux]:
        attended = SelfAttention(self.num_heads, self.dtype, name='attention')(x, valid)
        x = self._add_and_normalize(x, attended, train, 'attention_norm')
        y, aux = FeedForward(self.ffn_width, self.ffn, self.dtype, name='ffn')(x, valid, train)
        return self._add_and_normalize(x, y, train, 'ffn_norm'), aux

    def _add_and_normalize(self, x, y, train, name):
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return _norm(self.dtype, name)(x + y).astype(self.dtype)


class Bert(nn.Module):
    """A BERT encoder with a head.

    The head 'classes' is a pooler and one dense layer on it, for classification or regression. The head 'words' scores
    all words at each token, to train on masked ones: a dense layer with gelu, a norm, the table of the embeddings, and
    a bias.

    Dropout applies to the embeddings, to the outputs of attention and feed-forward parts, and to the pooled vector. It
    does not apply to the attention weights, which `jax.nn.dot_product_attention` does not expose.

    Attributes:
      vocab_size: token ids are in [0, vocab_size).
      num_layers, width, num_heads, ffn_width: sizes of the encoder; num_heads divides width.
      max_length: number of positions, the longest T.
      num_outputs: classes, or 1 for regression; without effect on the head 'words'.
      num_segments: segment ids are in [0, num_segments).
      ffn: layer of the feed-forward parts; `make_ffn_spec` makes one.
      dropout: fraction in [0, 1) that is dropped in training.
      dtype: dtype of the computation; parameters, layer norms, attention weights and logits are float32.
      remat: recompute the layers' activations for the gradient, to store one [B, T, C] a layer.
      head: one of HEADS.

    Raises:
      ValueError: if a value is not allowed.

    >>> model = Bert(vocab_size=99, num_layers=2, width=8, num_heads=2, ffn_width=16, max_length=32, num_outputs=3)
    >>> tokens, valid = jnp.ones((4, 7), jnp.int32), jnp.ones((4, 7), bool)
    >>> (logits, aux), variables = model.init_with_output(jax.random.key(0), tokens, 0 * tokens, valid)
    >>> logits.shape, aux, list(variables['params'])
    ((4, 3), {}, ['embeddings', 'layer_0', 'layer_1', 'pooler', 'classifier'])
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    ffn_width: int
    max_length: int
    num_outputs: int
    num_segments: int = 2
    ffn: LayerSpec = LayerSpec(nn.Dense)
    dropout: float = 0.1
    dtype: Dtype = 'float32'
    remat: bool = False
    head: str = 'classes'

    def __post_init__(self):
        super().__post_init__()
        check_choice('head', self.head, HEADS)
        counts = ('vocab_size', 'num_layers', 'width', 'num_heads', 'ffn_width', 'max_length')
        for name in (*counts, 'num_outputs', 'num_segments'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
        if self.width % self.num_heads:
            raise ValueError(f'num_heads must divide width {self.width}, got {self.num_heads}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout must be in [0, 1), got {self.dropout}')

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        self.embeddings = Embeddings(
            self.vocab_size, self.width, self.max_length, self.num_segments, self.dropout, dtype
        )
        # Argument 3 of the call, counted from self, is `train`.
        layer = nn.remat(EncoderLayer, static_argnums=(3,)) if self.remat else EncoderLayer
        self.layer = [
            layer(self.num_heads, self.ffn_width, self.ffn, self.dropout, dtype) for _ in range(self.num_layers)
        ]
        if self.head == 'words':
            self.transform = nn.Dense(self.width, dtype=dtype, kernel_init=WEIGHT_INIT)
            self.transform_norm = _norm(dtype, None)
            self.words = TiedLogits(use_bias=True)
            return
        self.pooler = nn.Dense(self.width, dtype=dtype, kernel_init=WEIGHT_INIT)
        self.pooled_dropout = nn.Dropout(self.dropout)
        self.classifier = nn.Dense(self.num_outputs, dtype=widen(dtype), kernel_init=WEIGHT_INIT)

    def encode(
        self, tokens: jax.Array, segments: jax.Array, valid: jax.Array, train: bool = False
    ) -> tuple[jax.Array, Aux]:
        """Compute the hidden states of the last layer, [B, T, C] in `dtype`, and aux; arguments as below."""
        if tokens.shape[1] > self.max_length:
            raise ValueError(f'the model has {self.max_length} positions, got texts of length {tokens.shape[1]}')
        x, aux = self.embeddings(tokens, segments, train), {}
        for index, layer in enumerate(self.layer):
            x, layer_aux = layer(x, valid, train)
            aux |= {f'layer_{index}/ffn/{name}': values for name, values in layer_aux.items()}
        return x, aux

    def __call__(
        self, tokens: jax.Array, segments: jax.Array, valid: jax.Array, train: bool = False
    ) -> tuple[jax.Array, Aux]:
        """Compute the logits of a batch of texts.

        Args:
          tokens: int32[B, T], T at most max_length; the first token ([CLS]) is pooled.
          segments: int32[B, T], 0 for the first text of a pair and 1 for the second.
          valid: bool[B, T], False for padding: no other token attends to it, and mixtures do not route it.
          train: with dropout (rng 'dropout') and the routers' noise (rng 'routing').

        Returns:
          (logits, aux). Logits are float32[B, num_outputs], with the head 'words' float32[B, T, vocab_size]; aux maps
          the path of each mixture of experts to its aux dict.

        Raises:
          ValueError: if the texts are longer than the model has positions.
        """
        x, aux = self.encode(tokens, segments, valid, train)
        if self.head == 'words':
            x = self.transform_norm(jax.nn.gelu(self.transform(x), approximate=False))
            return self.words(x, self.embeddings.variables['params']['tokens']['embedding']), aux
        pooled = jnp.tanh(self.pooler(x[:, 0]))
        return self.classifier(self.pooled_dropout(pooled, deterministic=not train)), aux
