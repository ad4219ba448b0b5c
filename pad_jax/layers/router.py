"""Routers of mixtures: which k of E experts a token gets, with which weights, and the losses that keep experts in use.

Noisy top-k gating and its losses: Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017, arXiv:1701.06538,
section 2.1 and appendix A. Every statistic counts valid tokens only.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.errors import check_choice
from pad_jax.kernels.dispatch import Routing, dense_gates

ROUTINGS = ('token', 'sentence')
NOISE_FLOOR = 1e-2
"""Added to the softplus that is the standard deviation of the noise, so that it never vanishes."""


def route_top_k(logits: jax.Array, num_selected: int, valid: jax.Array | None = None) -> Routing:
    """Select the k experts with the largest logits, weighted by a softmax over these k logits (equations 3 and 5).

    A softmax over a single logit is always 1, and the task would not train the router. So for k = 1 the weight is a
    share in the softmax over all logits, as in "Switch Transformers" (arXiv:2101.03961, equation 2). Ties go to the
    lower expert.

    Args:
      logits: float[N, E].
      num_selected: k in [1, E].
      valid: bool[N]; None: all are.

    >>> experts, weights = route_top_k(jnp.array([[0., 2., 1., 2.]]), 2)
    >>> experts.tolist(), weights.tolist()
    ([[1, 3]], [[0.5, 0.5]])
    """
    best, experts = jax.lax.top_k(logits, num_selected)
    normalizer = jax.nn.logsumexp(logits if num_selected == 1 else best, axis=-1, keepdims=True)
    return _mask_routing(Routing(experts.astype(jnp.int32), jnp.exp(best - normalizer)), valid, logits.shape[-1])


def count_load(routing: Routing, num_experts: int) -> jax.Array:
    """Tokens that each expert gets, float32[E]. Has no gradient."""
    chosen = routing.experts[:, :, None] == jnp.arange(num_experts)[None, None]
    return jnp.sum(chosen, axis=(0, 1)).astype(jnp.float32)


def estimate_load(
    clean: jax.Array, noisy: jax.Array, scale: jax.Array, num_selected: int, valid: jax.Array | None = None
) -> jax.Array:
    """Expected tokens of each expert if its own noise were drawn again (equations 8 to 10), differentiable.

    Expert i stays selected if its new noisy logit exceeds the k-th largest noisy logit of the other experts:
    P = Φ((clean_i − threshold_i) / scale_i).

    Args:
      clean, noisy: float[N, E], logits without and with the noise that was drawn.
      scale: float[N, E], > 0, standard deviation of the noise.
      num_selected: k in [1, E]; at k = E every expert gets every token.
      valid: bool[N]; None: all are.

    Returns:
      float[E], each in [0, N].
    """
    if num_selected == clean.shape[-1]:
        probability = jnp.ones_like(clean)
    else:
        best, _ = jax.lax.top_k(noisy, num_selected + 1)
        inside, outside = best[:, -2:-1], best[:, -1:]
        # Without an expert among the k, the k-th largest is the next lower one, otherwise the k-th itself.
        threshold = jnp.where(noisy > outside, outside, inside)
        probability = jax.scipy.stats.norm.cdf((clean - threshold) / scale)
    return _sum_valid(probability, valid)


def cv_squared(values: jax.Array) -> jax.Array:
    """Squared coefficient of variation: unbiased variance / (mean² + 1e-10); 0 for a single value.

    >>> round(float(cv_squared(jnp.array([1., 3.]))), 6)  # variance 2, mean 2
    0.5
    """
    if values.size == 1:
        return jnp.zeros((), values.dtype)
    return jnp.var(values, ddof=1) / (jnp.mean(values) ** 2 + 1e-10)


def check_routing(num_experts: int, num_selected: int, routing: str) -> None:
    """Raise ValueError for a router that cannot exist."""
    if num_experts < 1:
        raise ValueError(f'num_experts must be at least 1, got {num_experts}')
    if not 1 <= num_selected <= num_experts:
        raise ValueError(f'num_selected must be in [1, {num_experts}], got {num_selected}')
    check_choice('routing', routing, ROUTINGS)


class Router(nn.Module):
    """Noisy top-k gating, in float32 at least.

    Both parameters, `gate` and `noise` [C, E], start at zero: all experts are alike, and in training only the noise
    chooses. It is drawn from the stream 'routing'.

    Attributes:
      num_experts, num_selected: E and k.
      routing: 'token', or 'sentence': all tokens share one choice, made by the mean over the sentence's valid tokens.
        The losses then count sentences.
      noisy: add noise in training.
      balance_coefficient: factor of CV²(importance) + CV²(load).
      z_coefficient: factor of the z-loss, the mean of (log Σ_e exp logit_e)². It keeps logits small (Zoph et al.,
        "ST-MoE", arXiv:2202.08906, equation 5).
      axis_name: mapped axis over which tokens are divided. Losses and statistics then count the tokens of all replicas
        and are equal on each. The mean of the replicas' gradients is the gradient of one device with all tokens.

    Raises:
      ValueError: if k is not in [1, E], or routing is not one of ROUTINGS.
    """

    num_experts: int
    num_selected: int
    routing: str = 'token'
    noisy: bool = True
    balance_coefficient: float = 1e-2
    z_coefficient: float = 0.0
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_routing(self.num_experts, self.num_selected, self.routing)

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None = None, train: bool = False
    ) -> tuple[Routing, dict[str, jax.Array]]:
        """Route each token.

        Args:
          x: [*batch, T, C].
          valid: bool[*batch, T], False for padding; None: all are valid.
          train: draw noise.

        Returns:
          (routing of the N flattened tokens, aux): aux holds float32 `router_loss`, to be added to the loss as it is.
          For the log it holds `load` [E] (shares of the valid slots), `load_cv` (their standard deviation / mean) and
          `router_entropy` (nats).
        """
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        valid = jnp.ones(x.shape[:-1], bool) if valid is None else valid
        units, used = jnp.where(valid[..., None], x, 0).astype(dtype), valid  # so NaN in padding reaches no gradient
        if self.routing == 'sentence':
            units = jnp.sum(units, axis=-2) / jnp.maximum(jnp.sum(valid, axis=-1), 1)[..., None]
            used = jnp.any(valid, axis=-1)
        units, used = units.reshape(-1, x.shape[-1]), used.reshape(-1)

        clean = noisy = _project(units, self._matrix('gate', x.shape[-1]))
        noise = self._matrix('noise', x.shape[-1]) if self.noisy else None
        if self.noisy and train:
            scale = jax.nn.softplus(_project(units, noise)) + NOISE_FLOOR
            noisy = clean + scale * jax.random.normal(self.make_rng('routing'), clean.shape, dtype)
        chosen = routing = route_top_k(noisy, self.num_selected, used)
        if self.noisy and train:
            load = estimate_load(clean, noisy, scale, self.num_selected, used)
        else:
            load = count_load(chosen, self.num_experts)
        if self.routing == 'sentence':
            for_tokens = Routing(*(jnp.repeat(array, x.shape[-2], axis=0) for array in chosen))
            routing = _mask_routing(for_tokens, valid, self.num_experts)
        log_shares = jax.nn.log_softmax(clean, axis=-1)
        entropy = -jnp.sum(jnp.exp(log_shares) * log_shares, axis=-1)
        sums = {
            'units': jnp.sum(used).astype(dtype),
            'importance': jnp.sum(dense_gates(chosen, self.num_experts), axis=0),  # equation 6
            'load': load,
            'slots': count_load(routing, self.num_experts),
            'z_loss': _sum_valid(jax.nn.logsumexp(clean, axis=-1) ** 2, used),
            'entropy': jax.lax.stop_gradient(_sum_valid(entropy, used)),
        }
        return routing, self._report(sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name))

    def multiply_adds(self, x_shape, y_shape, count):
        """Count the scores of each token, or sentence, for each expert; see `models.accounting`."""
        units = math.prod(x_shape[:-1] if self.routing == 'token' else x_shape[:-2])
        return 0, *[units * x_shape[-1] * self.num_experts] * 2

    def _matrix(self, name, features):
        return self.param(name, nn.initializers.zeros_init(), (features, self.num_experts), self.param_dtype)

    def _report(self, sums: dict[str, Any]) -> dict[str, jax.Array]:
        num_units = jnp.maximum(sums['units'], 1)
        loss = self.balance_coefficient * (cv_squared(sums['importance']) + cv_squared(sums['load']))
        aux = {
            'router_loss': loss + self.z_coefficient * sums['z_loss'] / num_units,
            'load': sums['slots'] / jnp.maximum(jnp.sum(sums['slots']), 1),
            'load_cv': jnp.sqrt(cv_squared(sums['slots'])),
            'router_entropy': sums['entropy'] / num_units,
        }
        return {name: value.astype(jnp.float32) for name, value in aux.items()}


def _project(units, matrix):
    return jnp.dot(units, matrix.astype(units.dtype), precision=jax.lax.Precision.HIGHEST)


def _mask_routing(routing, valid, num_experts):
    """Replace the experts of tokens that are not valid by E, and their weights by zero."""
    if valid is None:
        return routing
    used = valid.reshape(-1, 1)
    return Routing(jnp.where(used, routing.experts, num_experts), jnp.where(used, routing.weights, 0))


def _sum_valid(values, valid):
    """Sum over valid rows: [N] -> [], or [N, E] -> [E]."""
    return jnp.sum(values if valid is None else jnp.where(valid.reshape(-1, *(1,) * (values.ndim - 1)), values, 0), 0)
