"""A transformer's feed-forward network as a mixture of experts, fully or partially dynamic.

Legend: N tokens, T sequence length, C input features, F hidden width, E experts, D dynamic neurons.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from pad_jax.layers.dispatch import Dispatcher
from pad_jax.layers.mixture import Mixture, cast_all, finish_tokens, mix_bias, scale_tokens

_gelu = functools.partial(jax.nn.gelu, approximate=False)


def split_neurons(neurons: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[..., 2C + 1, F] -> weights in [..., C, F], bias [..., F], weights out [..., C, F]."""
    width = neurons.shape[-2] // 2
    return neurons[..., :width, :], neurons[..., width, :], neurons[..., width + 1 :, :]


def join_neurons(weights_in: jax.Array, bias: jax.Array, weights_out: jax.Array) -> jax.Array:
    """The inverse of `split_neurons`; `weights_out` [..., C, F], the transpose of a second linear's kernel."""
    return jnp.concatenate([weights_in, bias[..., None, :], weights_out], axis=-2)


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

    Parameters: `neurons` [E, 2C + 1, F]: the column of a neuron is its C incoming weights, its bias and its C
    outgoing weights, so that granularity 'output' keeps or shares whole neurons, and 'input' what a feature does to
    or gets from all of them; `bias` [E, C] of the output (never masked); `router`; partially dynamic also
    `static_neurons` [2C + 1, F] and `phi`. Only whole neurons can be computed apart from the experts: at any other
    granularity a neuron that is static in part acts on what its other part makes of the token.

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
        merged = dispatcher.dropless or self.granularity != 'output'
        parts = self._parts('neurons', self._draw_neurons, (2 * width + 1, self.hidden), merged)
        bias = self._stack('bias', self.bias_init, (width,))
        tokens, experts, static, bias = cast_all(self.dtype, x, parts.experts, parts.static, bias)
        tokens = tokens.reshape(-1, width)
        y = apply_experts(tokens, experts, dispatcher, layout, parts.dynamic_scale) + mix_bias(bias, layout)
        if static is not None:
            y += apply_neurons(tokens, static, parts.static_scale)
        return finish_tokens(y, x, valid), aux

    def _draw_neurons(self, key, shape, dtype):
        """One draw of [2C + 1, F]: both matrices by the law of kernels in the orientation they multiply in."""
        width, hidden = shape[0] // 2, shape[1]
        keys = jax.random.split(key, 3)
        return join_neurons(
            self.kernel_init(keys[0], (width, hidden), dtype),
            self.bias_init(keys[1], (hidden,), dtype),
            self.kernel_init(keys[2], (hidden, width), dtype).T,
        )
