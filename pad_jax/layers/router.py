"""The router of a mixture: parameters around `layers.gating`.

Legend: N tokens, B sentences, T sequence length, C input features, E experts, k selected.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.layers.gating import (
    Assignment,
    assign_top_k,
    count_load,
    cv_squared,
    dense_gates,
    estimate_load,
    measure_importance,
    noise_scale,
    sum_entropy,
    sum_z_loss,
)

ROUTINGS = ('token', 'sentence')


def check_routing(num_experts: int, num_selected: int, routing: str) -> None:
    """ValueError for what no router can do."""
    if num_experts < 1:
        raise ValueError(f'num_experts must be at least 1, got {num_experts}')
    if not 1 <= num_selected <= num_experts:
        raise ValueError(f'num_selected must be in [1, {num_experts}], got {num_selected}')
    if routing not in ROUTINGS:
        raise ValueError(f'routing must be one of {", ".join(ROUTINGS)}, got {routing!r}')


def sum_replicas(sums: Any, axis_name: str | None) -> Any:
    """Sums over a replica's tokens -> over those of all replicas; the same where there is no such axis."""
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


class Router(nn.Module):
    """Noisy top-k gating (Shazeer et al. 2017, arXiv:1701.06538), in float32 at least.

    Both parameters, `gate` and `noise` [C, E], start at zero: all experts are alike and, in training, the noise
    alone chooses. It is drawn from the stream 'routing'.

    Attributes:
      num_experts, num_selected: E and k.
      routing: 'token', or 'sentence': one choice by the mean over the sentence's valid tokens, for all of them. The
        losses then count sentences.
      noisy: whether there is noise in training.
      balance_coefficient: of CV²(importance) + CV²(load).
      z_coefficient: of the z-loss.
      axis_name: mapped axis over which tokens are spread; losses and statistics are then those of the tokens of all
        replicas, the same on each, and the mean of the replicas' gradients is that of one device with all tokens.

    Raises:
      ValueError: where k is not in [1, E], or routing is not one of ROUTINGS.
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
    ) -> tuple[Assignment, dict[str, jax.Array]]:
        """Who computes each token.

        Args:
          x: [*batch, T, C].
          valid: bool[*batch, T], False for padding; None: all are.
          train: draw noise.

        Returns:
          (assignment of the N flattened tokens, aux): aux holds float32 `router_loss`, to be added to the loss as it
          is, and for the log `load` [E] (shares of the valid slots), `load_cv` (their standard deviation / mean) and
          `router_entropy` (nats).
        """
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        shape = x.shape[:-1]
        units, used = x.astype(dtype), valid
        if self.routing == 'sentence':
            units, used = _mean_sentences(units, valid)
        units = units.reshape(-1, x.shape[-1])
        if used is not None:
            used = used.reshape(-1)
            units = jnp.where(used[:, None], units, 0)  # whatever padding holds, NaN included, reaches no gradient

        gate = self._matrix('gate', x.shape[-1])
        clean = noisy = jnp.dot(units, gate.astype(dtype), precision=jax.lax.Precision.HIGHEST)
        if self.noisy:
            noise = self._matrix('noise', x.shape[-1])
            if train:
                scale = noise_scale(jnp.dot(units, noise.astype(dtype), precision=jax.lax.Precision.HIGHEST))
                noisy = clean + scale * jax.random.normal(self.make_rng('routing'), clean.shape, dtype)
        chosen = assign_top_k(noisy, self.num_selected, used)
        assignment = chosen
        if self.routing == 'sentence':
            assignment = _give_to_tokens(chosen, shape[-1], valid, self.num_experts)
        if self.noisy and train:
            load = estimate_load(clean, noisy, scale, self.num_selected, used)
        else:
            load = count_load(chosen, self.num_experts)
        sums = {
            'units': jnp.asarray(units.shape[0] if used is None else jnp.sum(used), dtype),
            'importance': measure_importance(dense_gates(chosen, self.num_experts)),
            'load': load,
            'slots': count_load(assignment, self.num_experts),
            'z_loss': sum_z_loss(clean, used),
            'entropy': jax.lax.stop_gradient(sum_entropy(clean, used)),
        }
        sums = sum_replicas(sums, self.axis_name)
        num_units = jnp.maximum(sums['units'], 1)
        loss = self.balance_coefficient * (cv_squared(sums['importance']) + cv_squared(sums['load']))
        aux = {
            'router_loss': loss + self.z_coefficient * sums['z_loss'] / num_units,
            'load': sums['slots'] / jnp.maximum(jnp.sum(sums['slots']), 1),
            'load_cv': jnp.sqrt(cv_squared(sums['slots'])),
            'router_entropy': sums['entropy'] / num_units,
        }
        return assignment, {name: value.astype(jnp.float32) for name, value in aux.items()}

    def _matrix(self, name, features):
        return self.param(name, nn.initializers.zeros_init(), (features, self.num_experts), self.param_dtype)


def _mean_sentences(x, valid):
    """Mean over valid tokens: [*batch, T, C] -> [*batch, C], and which sentences have any, bool[*batch] or None."""
    if valid is None:
        return jnp.mean(x, axis=-2), None
    total = jnp.sum(jnp.where(valid[..., None], x, 0), axis=-2)
    return total / jnp.maximum(jnp.sum(valid, axis=-1), 1)[..., None], jnp.any(valid, axis=-1)


def _give_to_tokens(chosen, length, valid, num_experts):
    """The choice of each of B sentences for its T tokens: [B, k] -> [B·T, k]; padding routes nowhere."""
    experts, weights = (jnp.repeat(array, length, axis=0) for array in chosen)
    if valid is not None:
        used = valid.reshape(-1, 1)
        experts, weights = jnp.where(used, experts, num_experts), jnp.where(used, weights, 0)
    return Assignment(experts, weights)
