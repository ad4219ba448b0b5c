"""A transformer's feed-forward network as a mixture of experts, fully or partially dynamic.

Legend: N tokens, T sequence length, C input features, F hidden width, E experts.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from pad_jax.layers.dispatch import Dispatcher
from pad_jax.layers.dynamic_columns import put_columns, split_columns, take_columns
from pad_jax.layers.factors import Factors
from pad_jax.layers.mixture import (
    Mixture,
    cast_all,
    finish_tokens,
    flatten_tokens,
    mix_bias,
    scale_tokens,
)
from pad_jax.layers.neurons import join_neurons, split_neurons

_gelu = functools.partial(jax.nn.gelu, approximate=False)


def apply_neurons(x: jax.Array, neurons: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
    """gelu(x·in + bias)·outᵀ for scale·neurons, gelu in its exact form: x [N, C], neurons [2C + 1, F] -> [N, C]."""
    weights_in, bias, weights_out = split_neurons(neurons)
    hidden = jnp.dot(scale_tokens(scale, x), weights_in) + scale_tokens(scale, bias)[None]
    return scale_tokens(scale, jnp.dot(_gelu(hidden), weights_out.T))


def apply_experts(
    x: jax.Array, neurons: jax.Array, dispatcher: Dispatcher, layout, scale: jax.Array | float = 1.0
) -> jax.Array:
    """Σ over a token's experts of weight·apply_neurons: x [N, C], neurons [E, 2C + 1, F] -> [N, C]."""
    weights_in, bias, weights_out = split_neurons(neurons)
    hidden = dispatcher.multiply(scale_tokens(scale, x), weights_in, layout, spread=True)
    hidden = _gelu(hidden + dispatcher.take(scale_tokens(scale, bias), layout))
    y = dispatcher.combine(dispatcher.multiply(hidden, weights_out, layout, transposed=True), layout)
    return scale_tokens(scale, y)


class MixtureFFN(Mixture):
    """y = Σ_e g_e(x)·(W2_e gelu(W1_e x + b1_e) + b2_e) over the k chosen experts; see `Mixture` for what it shares.

    Parameters: `neurons` [E, 2C + 1, F] as in `layers.neurons`, so that granularity 'output' keeps or shares whole
    neurons, and 'input' what a feature does to all of them or gets from them; `bias` [E, C] of the output (never
    masked); `router`; partially dynamic also `static_neurons` [2C + 1, F] and `phi`.

    Attributes:
      hidden: F.

    >>> layer = MixtureFFN(10, num_experts=4, granularity='output')
    >>> (y, aux), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 6)))
    >>> y.shape, variables['params']['neurons'].shape, variables['partition']['neurons'].shape
    ((2, 3, 6), (4, 13, 10), (1, 10))
    """

    hidden: int

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `MixtureLinear`, with y [*batch, T, C]."""
        dispatcher, layout, aux = self._route(x, valid, train)
        width = x.shape[-1]
        neurons = self._declare('neurons', self._draw_neurons, (2 * width + 1, self.hidden))
        bias = self._stack('bias', self.bias_init, (width,))
        if not neurons.structured:
            # In whole neurons each is of one part; else a neuron acts on what both parts make of a token.
            apart = neurons.granularity in ('output', 'layer') and not dispatcher.dropless
            experts, static = neurons.split() if apart else (neurons.merge(), None)
            tokens, experts, static = cast_all(self.dtype, flatten_tokens(x), experts, static)
            y = apply_experts(tokens, experts, dispatcher, layout)
            y = y if static is None else y + apply_neurons(tokens, static)
        elif neurons.granularity != 'input':
            y = self._apply_whole_neurons(x, neurons, dispatcher, layout)
        else:
            y = self._apply_parts_of_neurons(x, neurons, dispatcher, layout)
        return finish_tokens(y + mix_bias(bias.astype(y.dtype), layout), x, valid), aux

    def _apply_whole_neurons(self, x, neurons: Factors, dispatcher: Dispatcher, layout) -> jax.Array:
        """The experts compute their dynamic neurons alone: [*batch, T, C] -> [N, C]."""
        tokens, experts, shared = cast_all(self.dtype, flatten_tokens(x), neurons.dynamic, neurons.static)
        y = apply_experts(tokens, experts, dispatcher, layout, neurons.dynamic_scale)
        return y + apply_neurons(tokens, shared, neurons.static_scale)

    def _apply_parts_of_neurons(self, x, neurons: Factors, dispatcher: Dispatcher, layout) -> jax.Array:
        """The experts see and make their dynamic features alone; what a neuron gets from the others is shared."""
        width, (num_in, num_bias, _) = x.shape[-1], neurons.num_rows
        rows = neurons.columns[0].indices
        dynamic_in, static_in = split_columns(rows[:num_in], width)
        dynamic_out, static_out = split_columns(rows[num_in + num_bias :] - (width + 1), width)
        weights_in, bias, weights_out = jnp.split(neurons.dynamic, (num_in, num_in + num_bias), axis=-2)
        shared_in, shared_bias, shared_out = jnp.split(
            neurons.static, (width - num_in, width - num_in + 1 - num_bias), axis=-2
        )
        if num_bias:
            bias = scale_tokens(neurons.dynamic_scale, bias[:, 0])
        else:
            bias = jnp.tile(scale_tokens(neurons.static_scale, shared_bias), (self.num_experts, 1))
        tokens, bias, weights_in, weights_out, shared_in, shared_out = cast_all(
            self.dtype, flatten_tokens(x), bias, weights_in, weights_out, shared_in, shared_out
        )
        for_experts = take_columns(scale_tokens(neurons.dynamic_scale, tokens), dynamic_in, -1)
        for_static = take_columns(scale_tokens(neurons.static_scale, tokens), static_in, -1)
        hidden = dispatcher.multiply(for_experts, weights_in, layout, spread=True)
        hidden += dispatcher.spread(jnp.dot(for_static, shared_in), layout)
        hidden = _gelu(hidden + dispatcher.take(bias, layout))
        y = dispatcher.combine(dispatcher.multiply(hidden, weights_out, layout, transposed=True), layout)
        shared = jnp.dot(dispatcher.combine(hidden, layout), shared_out.T)
        y = put_columns(scale_tokens(neurons.dynamic_scale, y), dynamic_out, -1)
        return y + put_columns(scale_tokens(neurons.static_scale, shared), static_out, -1)

    def _draw_neurons(self, key, shape, dtype):
        """One draw of [2C + 1, F]: both matrices by the law of kernels in the orientation they multiply in."""
        width, hidden = shape[0] // 2, shape[1]
        keys = jax.random.split(key, 3)
        return join_neurons(
            self.kernel_init(keys[0], (width, hidden), dtype),
            self.bias_init(keys[1], (hidden,), dtype),
            self.kernel_init(keys[2], (hidden, width), dtype).T,
        )
