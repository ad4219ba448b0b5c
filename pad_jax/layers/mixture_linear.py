"""A linear layer as a mixture of experts, fully or partially dynamic.

y = Σ_{e in top k} g_e·[(mask·λd·W_e + (1 − mask)·λs·W_s) x + b_e]: PAD-Net (He et al., ACL 2023, arXiv:2211.05528)
over the mixture of Shazeer et al. (2017, arXiv:1701.06538).

Legend: N tokens, T sequence length, C input features, F output features, E experts.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from pad_jax.layers.dispatch import Dispatcher
from pad_jax.layers.dynamic_columns import put_columns, take_columns
from pad_jax.layers.factors import Factors
from pad_jax.layers.mixture import (
    Mixture,
    cast_all,
    finish_tokens,
    flatten_tokens,
    mix_bias,
    scale_tokens,
)


def multiply_experts(x: jax.Array, kernels: jax.Array, dispatcher: Dispatcher, layout) -> jax.Array:
    """Σ over a token's experts of weight·(x·kernel): x [N, C], kernels [E, C, F] -> [N, F] of x's dtype."""
    # The product is linear: weights multiply on the side with fewer features, and only there rows are written out.
    if kernels.shape[1] <= kernels.shape[2]:
        return dispatcher.multiply(dispatcher.spread(x, layout, weighted=True), kernels, layout, combine=True)
    return dispatcher.combine(dispatcher.multiply(x, kernels, layout, spread=True), layout)


class MixtureLinear(Mixture):
    """y = Σ_e g_e(x)·(W_e x + b_e) over the k chosen experts; see `Mixture` for what it shares.

    Parameters: `kernel` [E, C, F], `bias` [E, F] (never masked), `router`; partially dynamic also `static_kernel`
    [C, F] and `phi`.

    Attributes:
      features: F.
      use_bias: whether there is a bias.

    >>> layer = MixtureLinear(5, num_experts=4, granularity='output')
    >>> (y, aux), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 6)))
    >>> y.shape, variables['params']['kernel'].shape, variables['partition']['kernel'].shape
    ((2, 3, 5), (4, 6, 5), (1, 5))
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Outputs and what the router has to say.

        Args:
          x: [*batch, T, C].
          valid: bool[*batch, T], False for padding, whose output is zero; None: all are valid.
          train: draw the router's noise, from the stream 'routing'.

        Returns:
          (y [*batch, T, F], aux): float32 `router_loss`, to be added to the loss, and for the log `load` [E],
          `load_cv`, `dropped_fraction`, `router_entropy`.
        """
        dispatcher, layout, aux = self._route(x, valid, train)
        kernel = self._declare('kernel', self.kernel_init, (x.shape[-1], self.features))
        bias = self._stack('bias', self.bias_init, (self.features,)) if self.use_bias else None
        if kernel.structured:
            y = self._apply_columns(x, kernel, dispatcher, layout)
        else:
            # Where every token gets all of its experts, whose weights sum to one, each may add the static part.
            experts, static = (kernel.merge(), None) if dispatcher.dropless else kernel.split()
            tokens, experts, static = cast_all(self.dtype, flatten_tokens(x), experts, static)
            y = multiply_experts(tokens, experts, dispatcher, layout)
            y = y if static is None else y + jnp.dot(tokens, static)
        if bias is not None:
            y += mix_bias(bias.astype(y.dtype), layout)
        return finish_tokens(y, x, valid), aux

    def _apply_columns(self, x, kernel: Factors, dispatcher: Dispatcher, layout) -> jax.Array:
        """x·kernel where the experts compute their dynamic columns or rows alone: [*batch, T, C] -> [N, F]."""
        dynamic, static = kernel.columns
        tokens, experts, shared = cast_all(self.dtype, flatten_tokens(x), kernel.dynamic, kernel.static)
        # Scaling the tokens takes fewer products than scaling the parameters.
        for_experts, for_static = scale_tokens(kernel.dynamic_scale, tokens), scale_tokens(kernel.static_scale, tokens)
        if kernel.granularity == 'input':
            y = multiply_experts(take_columns(for_experts, dynamic, -1), experts, dispatcher, layout)
            return y + jnp.dot(take_columns(for_static, static, -1), shared)
        y = put_columns(multiply_experts(for_experts, experts, dispatcher, layout), dynamic, -1)
        return y + put_columns(jnp.dot(for_static, shared), static, -1)
