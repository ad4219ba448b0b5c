"""Mixtures of experts, fully or partially dynamic: a linear layer, and a transformer's feed-forward network.

PAD-Net (He et al., ACL 2023, arXiv:2211.05528) over the mixture of Shazeer et al. (2017, arXiv:1701.06538).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer

from pad_jax.errors import check_choice
from pad_jax.kernels.dispatch import MIXTURE_PLANS, arrange, dense_gates
from pad_jax.kernels.factors import put_entries, take_entries
from pad_jax.layers.factors import Factors, declare_factors, stack_init
from pad_jax.layers.meshes import on_any_mesh
from pad_jax.layers.router import Gating, Router, check_routing
from pad_jax.partition.masks import SCALES

MIXTURE_GRANULARITIES = (None, 'element', 'output', 'input', 'layer')

ACTIVATIONS = {
    'gelu': (1, functools.partial(jax.nn.gelu, approximate=False)),
    'swiglu': (2, lambda gate, up: jax.nn.silu(gate) * up),
}
"""Activations of a neuron: number of its inputs, each a product with weights of its own, and the function of them."""


class Mixture(nn.Module, kw_only=True):
    """Base of the mixtures: E experts, of which a router chooses k for each token.

    With `granularity=None` the experts are fully dynamic. Otherwise a bool mask (collection 'partition', all True at
    the start, of the granularity's shape) selects the dynamic positions. Static parameters, shared by all experts,
    supply the other positions:

        parameter of expert e = λd·mask·factor_e + λs·(1 − mask)·static

    So the static part of a token is multiplied by the sum of its weights: one for most gatings if k > 1.

    In compact storage the static part is computed once for each token, and the experts compute dynamic entries only.
    In masked storage the experts compute all positions, with the same outputs and gradients; only this path has a
    gradient with respect to the mask.

    Attributes:
      num_experts, num_selected: E and k, k in [1, E].
      granularity: one of the class's `granularities`.
      scales: the scale factors in use, of λd = 2σ(φ) and λs = 2 − λd: 'both', 'static', 'dynamic' or 'none'.
      prune: positions that are not dynamic are zero, without static parameters.
      plan: how tokens reach experts, one of `kernels.dispatch.MIXTURE_PLANS`.
      routing, noisy, gating, axis_name, balance_coefficient, z_coefficient, switch_coefficient: see `Router`.
      use_bias: add biases.
      dtype: dtype of the computation; None: the wider one of the input's and the parameters'.
      kernel_init: draws the matrix of each expert, and the static matrix, one by one.

    Raises:
      ValueError: if a value is not allowed.
    """

    granularities = MIXTURE_GRANULARITIES

    num_experts: int = 8
    num_selected: int = 2
    granularity: str | None = None
    scales: str = 'both'
    prune: bool = False
    plan: str = 'auto'
    routing: str = 'token'
    noisy: bool = True
    balance_coefficient: float = 1e-2
    z_coefficient: float = 0.0
    switch_coefficient: float = 0.0
    gating: Gating = Gating()
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    def __post_init__(self):
        super().__post_init__()
        check_routing(self.num_experts, self.num_selected, self.routing, self.gating)
        check_choice('granularity', self.granularity, self.granularities)
        check_choice('scales', self.scales, SCALES)
        check_choice('plan', self.plan, MIXTURE_PLANS)

    @on_any_mesh
    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Apply the experts to each token.

        Args:
          x: [*batch, T, C].
          valid: bool[*batch, T], False for padding, whose output is zero; None: all are valid.
          train: draw the router's noise, from the stream 'routing'.

        Returns:
          (y [*batch, T, F], aux of the router: float32 `router_loss`, to be added to the loss, and for the log `load`
          [E], `load_cv` and `router_entropy`)
        """
        if x.ndim < 2 or (valid is not None and valid.shape != x.shape[:-1]):
            shape = None if valid is None else valid.shape
            raise ValueError(f'a mixture needs x [*batch, T, C] and valid [*batch, T], got {x.shape} and {shape}')
        if valid is not None:  # no value of padding, NaN included, reaches a gradient
            x = jnp.where(valid[..., None], x, 0)
        fields = {name: getattr(self, name) for name in Router.__dataclass_fields__.keys() - {'parent', 'name'}}
        routing, aux = Router(**fields, name='router')(x, valid, train)
        gates = dense_gates(routing, self.num_experts)
        self.sow('intermediates', 'routing', gates)
        name, shape, init = self._describe(x.shape[-1])
        factors = declare_factors(self, name, shape, self.num_experts, stack_init(init), init, experts=True)
        total = 1.0 if self.gating.sums_to_one(self.num_selected) else jnp.sum(gates, axis=1, keepdims=True)
        y = self._apply(x, factors, arrange(routing, self.num_experts, self.plan), total)
        if self.use_bias:
            bias = self.param('bias', stack_init(self.bias_init), (self.num_experts, y.shape[-1]), self.param_dtype)
            y += jnp.dot(gates.astype(y.dtype), bias.astype(y.dtype), precision=jax.lax.Precision.HIGHEST)
        if valid is not None:
            y = jnp.where(valid.reshape(-1, 1), y, 0)
        return y.reshape(*x.shape[:-1], y.shape[-1]), aux

    def _describe(self, width: int) -> tuple[str, tuple[int, int], Initializer]:
        """Return name, shape and initializer of an expert's parameter for tokens of width C."""
        raise NotImplementedError

    def _apply(self, x: jax.Array, factors: Factors, layout, total: jax.Array | float) -> jax.Array:
        """Apply the experts without their biases: [*batch, T, C] -> [N, F]; `total` [N, 1] sums a token's weights."""
        raise NotImplementedError

    def multiply_adds(self, x_shape, y_shape, count):
        """Count the products of each token's experts; see `models.accounting`."""
        # By element the static part cannot be computed apart: each expert multiplies by a whole matrix.
        static = 0 if self.granularity in (None, 'element') else count.positions - count.dynamic_positions
        tokens, selected = math.prod(x_shape[:-1]), self.num_selected
        masked = tokens * selected * count.positions
        return tokens * count.positions, masked, masked - tokens * (selected - 1) * static


class MixtureLinear(Mixture):
    """y = Σ_e g_e(x)·(W_e x + b_e) over the k selected experts; see `Mixture` for the common fields.

    Parameters: `kernel` [E, C, F], `bias` [E, F] (never masked), `router`; if partially dynamic also `static_kernel`
    [C, F] and `phi`.

    Attributes:
      features: F.

    >>> layer = MixtureLinear(5, num_experts=4, granularity='output')
    >>> (y, aux), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 6)))
    >>> y.shape, variables['params']['kernel'].shape, variables['partition']['kernel_mask'].shape
    ((2, 3, 5), (4, 6, 5), (1, 5))
    """

    features: int

    def _describe(self, width):
        return 'kernel', (width, self.features), self.kernel_init

    def _apply(self, x, kernel, layout, total):
        if kernel.index is None:
            scale, parts, mask = _split_masked(kernel)
            tokens, *parts = _cast(self.dtype, x, *parts)
            return multiply_experts(_scale(scale, tokens), layout, mask, *parts)
        dynamic, static, size = kernel.index, kernel.static_index, kernel.size
        tokens, experts, shared = _cast(self.dtype, x, kernel.dynamic, kernel.static)
        # Scaling the tokens takes fewer products than scaling the parameters.
        for_experts, for_static = _scale(kernel.dynamic_scale, tokens), _scale(kernel.static_scale, tokens)
        if kernel.axis == -2:
            y = multiply_experts(take_entries(for_experts, dynamic, -1), layout, None, experts)
            return y + _scale(total, jnp.dot(take_entries(for_static, static, -1), shared))
        y = put_entries(multiply_experts(for_experts, layout, None, experts), dynamic, size, -1)
        return y + put_entries(_scale(total, jnp.dot(for_static, shared)), static, size, -1)


class MixtureFFN(Mixture):
    """y = Σ_e g_e(x)·(W2_e gelu(W1_e x + b1_e) + b2_e) over the k selected experts; see `Mixture`.

    With activation 'swiglu' the hidden values are silu(W_gate x + b_gate) · (W_up x + b_up). See Shazeer, "GLU Variants
    Improve Transformer", arXiv:2002.05202, equation 6.

    The column of a neuron holds all that is its own: C incoming weights, or 2C of gate and up, then its bias or biases,
    then its C outgoing weights. So granularity 'output' keeps or shares whole neurons; 'input' does not exist.

    Parameters: `neurons` [E, R, F] with R = 2C + 1, for swiglu 3C + 2, less the biases without `use_bias`; `bias`
    [E, C] of the output (never masked); `router`; if partially dynamic also `static_neurons` [R, F] and `phi`.

    Attributes:
      hidden: F.
      activation: a key of ACTIVATIONS.

    >>> layer = MixtureFFN(10, num_experts=4, granularity='output')
    >>> (y, aux), variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 6)))
    >>> y.shape, variables['params']['neurons'].shape, variables['partition']['neurons_mask'].shape
    ((2, 3, 6), (4, 13, 10), (1, 10))
    """

    granularities = (None, 'element', 'output', 'layer')

    hidden: int
    activation: str = 'gelu'

    def __post_init__(self):
        super().__post_init__()
        check_choice('activation', self.activation, ACTIVATIONS)

    def _describe(self, width):
        num_inputs = ACTIVATIONS[self.activation][0]
        return 'neurons', ((num_inputs + 1) * width + num_inputs * self.use_bias, self.hidden), self._draw_neurons

    def _apply(self, x, neurons, layout, total):
        if neurons.index is None:
            # A neuron may act on the sum of both parts, so the experts compute the static part too.
            scale, parts, mask = _split_masked(neurons)
            tokens, *parts = _cast(self.dtype, x, *parts)
            return apply_experts(tokens, layout, scale, mask, *parts, activation=self.activation)
        tokens, experts, shared = _cast(self.dtype, x, neurons.dynamic, neurons.static)
        y = apply_experts(tokens, layout, neurons.dynamic_scale, None, experts, activation=self.activation)
        return y + _scale(total, apply_neurons(tokens, shared, neurons.static_scale, self.activation))

    def multiply_adds(self, x_shape, y_shape, count):
        """Count all positions except the biases of neurons; see `models.accounting`."""
        _, (rows, _), _ = self._describe(x_shape[-1])
        products = (ACTIVATIONS[self.activation][0] + 1) * x_shape[-1]
        positions, dynamic = (n * products // rows for n in (count.positions, count.dynamic_positions))
        return super().multiply_adds(x_shape, y_shape, count._replace(positions=positions, dynamic_positions=dynamic))

    def _draw_neurons(self, key, shape, dtype):
        """Draw [R, F], each matrix by `kernel_init` in the orientation in which it multiplies."""
        num_inputs, hidden = ACTIVATIONS[self.activation][0], shape[1]
        width = shape[0] // (num_inputs + 1)
        num_biases = num_inputs * self.use_bias
        keys = iter(jax.random.split(key, num_inputs + num_biases + 1))
        return join_neurons(
            *(self.kernel_init(next(keys), (width, hidden), dtype) for _ in range(num_inputs)),
            *(self.bias_init(next(keys), (hidden,), dtype) for _ in range(num_biases)),
            self.kernel_init(next(keys), (hidden, width), dtype).T,
        )


def multiply_experts(x: jax.Array, layout, mask: jax.Array | None, kernels: jax.Array, static: jax.Array | None = None):
    """Σ over a token's experts of weight·(x·kernel): x [N, C], kernels [E, C, F] -> [N, F] of x's dtype.

    Where a bool mask [C, F] is False, static [C, F] replaces the kernel of every expert.
    """

    def multiply(products, kernels, static, mask, rows, weights):
        kernels = kernels if mask is None else jnp.where(mask, kernels, static)
        # The product is linear: weights multiply on the side with fewer features.
        if kernels.shape[-2] <= kernels.shape[-1]:
            return products.multiply(rows * weights, kernels)
        return products.multiply(rows, kernels) * weights

    return layout.apply(multiply, kernels, static, mask, x)


def apply_experts(
    x, layout, scale, mask: jax.Array | None, neurons: jax.Array, static: jax.Array | None = None, activation='gelu'
):
    """Σ over a token's experts of weight·apply_neurons: x [N, C], neurons [E, R, F] -> [N, C].

    Where a bool mask [R, F] is False, static [R, F] replaces the neurons of every expert.
    """
    num_inputs, activate = ACTIVATIONS[activation]

    def apply(products, neurons, shared, mask, rows, weights):
        static, scale = shared
        neurons = neurons if mask is None else jnp.where(mask, neurons, static)
        weights_in, biases, weights_out = _group_neurons(neurons, num_inputs)
        inputs = [products.multiply(rows, matrix) for matrix in weights_in]
        for number, bias in enumerate(biases):
            inputs[number] += products.take(bias) * scale
        return products.multiply(activate(*inputs), weights_out, transposed=True) * weights

    return _scale(scale, layout.apply(apply, neurons, (static, jnp.asarray(scale, x.dtype)), mask, _scale(scale, x)))


def apply_neurons(
    x: jax.Array, neurons: jax.Array, scale: jax.Array | float = 1.0, activation: str = 'gelu'
) -> jax.Array:
    """Apply scale·neurons without the output's bias: x [N, C], neurons [R, F] -> [N, C]; see `MixtureFFN`."""
    num_inputs, activate = ACTIVATIONS[activation]
    weights_in, biases, weights_out = _group_neurons(neurons, num_inputs)
    inputs = [jnp.dot(_scale(scale, x), matrix) for matrix in weights_in]
    for number, bias in enumerate(biases):
        inputs[number] += _scale(scale, bias)[None]
    return _scale(scale, jnp.dot(activate(*inputs), weights_out.T))


def _split_masked(factors: Factors) -> tuple[jax.Array | float, list[jax.Array], jax.Array | None]:
    """Return a scale for the tokens, one or two parts of masked storage, and the bool mask that joins two."""
    if factors.mask is None or factors.mask.dtype != bool:  # the gradient of a gate is a score
        return 1.0, [factors.merge()], None
    scale, static = factors.factor_out_scale()
    return scale, [factors.dynamic, static], factors.mask


def split_neurons(neurons: jax.Array, num_inputs: int = 1) -> tuple[jax.Array, ...]:
    """Split [..., R, F] into weights in of each input [..., C, F], biases [..., F], and weights out [..., C, F].

    >>> [part.shape for part in split_neurons(jnp.ones((4, 13, 10)))]  # 2C + 1 = 13
    [(4, 6, 10), (4, 10), (4, 6, 10)]
    >>> [part.shape for part in split_neurons(jnp.ones((4, 18, 10)), num_inputs=2)]  # 3C = 18: gate, up, down
    [(4, 6, 10), (4, 6, 10), (4, 6, 10)]
    """
    width, num_biases = divmod(neurons.shape[-2], num_inputs + 1)
    heads = [neurons[..., number * width : (number + 1) * width, :] for number in range(num_inputs)]
    start = num_inputs * width
    biases = [neurons[..., start + number, :] for number in range(num_biases)]
    return *heads, *biases, neurons[..., start + num_biases :, :]


def join_neurons(*parts: jax.Array) -> jax.Array:
    """Invert `split_neurons`; the last part [..., C, F] is the transpose of a second linear's kernel."""
    is_bias = [part.ndim < parts[-1].ndim for part in parts]
    return jnp.concatenate([part[..., None, :] if bias else part for part, bias in zip(parts, is_bias)], axis=-2)


def _group_neurons(neurons, num_inputs):
    """Split [..., R, F] into (weights in, biases, weights out)."""
    *parts, weights_out = split_neurons(neurons, num_inputs)
    return parts[:num_inputs], parts[num_inputs:], weights_out


def _scale(scale, values):
    """Multiply in the dtype of the values; a plain 1 changes nothing."""
    return values if isinstance(scale, float) and scale == 1 else values * jnp.asarray(scale, values.dtype)


def _cast(dtype, x, *parameters):
    """Return x as [N, C] and the parameters in the dtype of the computation: `dtype`, or the widest of theirs."""
    return dtypes.promote_dtype(x.reshape(-1, x.shape[-1]), *parameters, dtype=dtype)
