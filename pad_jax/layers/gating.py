"""Gating of a mixture: which k of E experts a token gets, with which weights, and what keeps them in use.

Noisy top-k gating and its losses: Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017,
arXiv:1701.06538, section 2.1 and appendix A. Every statistic counts valid tokens alone.

Legend: N tokens, E experts, k selected.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NOISE_FLOOR = 1e-2
"""What is added to softplus for the noise's standard deviation, so that it never vanishes."""


class Assignment(NamedTuple):
    """Who computes a token.

    Attributes:
      experts: int32[N, k], the k best experts, best first; E throughout where a token is not valid: such a token
        routes nowhere.
      weights: float[N, k], at least float32; each row sums to one, and is all zero where a token is not valid.
    """

    experts: jax.Array
    weights: jax.Array


def noise_scale(noise_logits: jax.Array) -> jax.Array:
    """Standard deviation > 0 of the noise on each logit: softplus + 1e-2, float[N, E]."""
    return jax.nn.softplus(noise_logits) + NOISE_FLOOR


def assign_top_k(logits: jax.Array, num_selected: int, valid: jax.Array | None = None) -> Assignment:
    """The k experts of the largest logits, weighted by a softmax over those k logits (equations 3 and 5).

    Ties go to the lower expert.

    Args:
      logits: float[N, E].
      num_selected: k in [1, E].
      valid: bool[N]; None: all are.

    Raises:
      ValueError: where k is not in [1, E].

    >>> experts, weights = assign_top_k(jnp.array([[0., 2., 1., 2.]]), 2)
    >>> experts.tolist(), weights.tolist()
    ([[1, 3]], [[0.5, 0.5]])
    """
    num_experts = logits.shape[-1]
    if not 1 <= num_selected <= num_experts:
        raise ValueError(f'num_selected must be in [1, {num_experts}], got {num_selected}')
    best, experts = jax.lax.top_k(logits, num_selected)
    weights = jax.nn.softmax(best, axis=-1)
    if valid is not None:
        experts = jnp.where(valid[:, None], experts, num_experts)
        weights = jnp.where(valid[:, None], weights, 0)
    return Assignment(experts.astype(jnp.int32), weights)


def dense_gates(assignment: Assignment, num_experts: int) -> jax.Array:
    """The weights spread over all experts, zero where one was not selected: float[N, E]."""
    chosen = assignment.experts[:, :, None] == jnp.arange(num_experts)[None, None]
    return jnp.sum(jnp.where(chosen, assignment.weights[:, :, None], 0), axis=1)


def measure_importance(gates: jax.Array) -> jax.Array:
    """Sum over tokens of their weights (equation 6): float[N, E] -> float[E]."""
    return jnp.sum(gates, axis=0)


def count_load(assignment: Assignment, num_experts: int) -> jax.Array:
    """Tokens that each expert gets, float32[E]. Has no gradient."""
    chosen = assignment.experts[:, :, None] == jnp.arange(num_experts)[None, None]
    return jnp.sum(chosen, axis=(0, 1)).astype(jnp.float32)


def estimate_load(
    clean: jax.Array, noisy: jax.Array, scale: jax.Array, num_selected: int, valid: jax.Array | None = None
) -> jax.Array:
    """Expected tokens of each expert if its own noise were drawn again (equations 8 to 10), differentiable.

    Expert i stays selected if its new noisy logit beats the k-th largest noisy logit among the others:
    P = Φ((clean_i − threshold_i) / scale_i).

    Args:
      clean, noisy: float[N, E], logits without and with the noise that was drawn.
      scale: float[N, E], > 0, its standard deviation.
      num_selected: k in [1, E]; at k = E every expert gets every token.
      valid: bool[N]; None: all are.

    Returns:
      float[E], each in [0, N].
    """
    num_experts = clean.shape[-1]
    if num_selected == num_experts:
        probability = jnp.ones_like(clean)
    else:
        best, _ = jax.lax.top_k(noisy, num_selected + 1)
        inside, outside = best[:, -2:-1], best[:, -1:]
        # Without expert i, the k-th largest is the next one below if i is among the k, else the k-th itself.
        threshold = jnp.where(noisy > outside, outside, inside)
        probability = jax.scipy.stats.norm.cdf((clean - threshold) / scale)
    if valid is not None:
        probability = jnp.where(valid[:, None], probability, 0)
    return jnp.sum(probability, axis=0)


def cv_squared(values: jax.Array) -> jax.Array:
    """Squared coefficient of variation: unbiased variance / (mean² + 1e-10); 0 for one value alone.

    >>> round(float(cv_squared(jnp.array([1., 3.]))), 6)  # variance 2, mean 2
    0.5
    """
    if values.size == 1:
        return jnp.zeros((), values.dtype)
    return jnp.var(values, ddof=1) / (jnp.mean(values) ** 2 + 1e-10)


def sum_z_loss(logits: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Sum over tokens of (log Σ_e exp logit_e)², whose mean keeps logits small.

    Zoph et al., "ST-MoE", arXiv:2202.08906, equation 5.
    """
    return _sum_valid(jax.nn.logsumexp(logits, axis=-1) ** 2, valid)


def sum_entropy(logits: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Sum over tokens of the entropy of softmax(logits) over all experts, in nats: 0 to log E each."""
    log_shares = jax.nn.log_softmax(logits, axis=-1)
    return _sum_valid(-jnp.sum(jnp.exp(log_shares) * log_shares, axis=-1), valid)


def _sum_valid(values, valid):
    return jnp.sum(values if valid is None else jnp.where(valid, values, 0))
