"""Routers of mixtures: which k of E experts a token gets, with which weights, and the losses that keep experts in use.

Noisy top-k gating and its losses: Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017, arXiv:1701.06538,
section 2.1 and appendix A. Every statistic counts valid tokens only. Language models differ in a few rules of the
choice and its weights: they are the fields of `Gating`, and `GATINGS` is their table.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.errors import check_choice
from pad_jax.kernels.dispatch import Routing, dense_gates

ROUTINGS = ('token', 'sentence')
SCORES = ('softmax', 'sigmoid')
BIASES = ('none', 'logits', 'choice')
GROUP_SCORES = ('max', 'top2')
NOISE_FLOOR = 1e-2
"""Added to the softplus that is the standard deviation of the noise, so that it never vanishes."""


@dataclasses.dataclass(frozen=True)
class Gating:
    """Rules that turn the logits of a token into k experts and their weights.

    Experts are chosen by their scores, plus a bias for the choice if there is one. Ties go to the lower expert. The
    weights are the scores of the chosen experts.

    Attributes:
      score: 'softmax' over all experts, or 'sigmoid' of each logit.
      renormalize: divide the weights by their sum. For softmax this equals a softmax over the k chosen logits. A single
        weight would always be 1, and the task would not train the router. So for k = 1 it is left as it is ("Switch
        Transformers", arXiv:2101.03961, equation 2).
      bias: 'none', or the router's parameter: 'logits' adds `bias` [E] to the logits. 'choice' adds `choice_bias` [E]
        to the scores for the choice only, so no loss trains it (arXiv:2408.15664).
      num_groups, kept_groups: experts stand in equal groups, and a token only chooses from its best groups.
      group_score: of a group, the 'max' of its experts' scores, or 'top2', the sum of the best two.
      scaling: > 0, factor of the weights.

    Raises:
      ValueError: if a value is not allowed.
    """

    score: str = 'softmax'
    renormalize: bool = True
    bias: str = 'none'
    num_groups: int = 1
    kept_groups: int = 1
    group_score: str = 'max'
    scaling: float = 1.0

    def __post_init__(self):
        check_choice('score', self.score, SCORES)
        check_choice('bias', self.bias, BIASES)
        check_choice('group_score', self.group_score, GROUP_SCORES)
        if not 1 <= self.kept_groups <= self.num_groups:
            raise ValueError(f'kept_groups must be in [1, num_groups = {self.num_groups}], got {self.kept_groups}')
        if not 0 < self.scaling < math.inf:
            raise ValueError(f'scaling must be above 0, got {self.scaling}')

    @property
    def follows_logits(self) -> bool:
        """True if a token gets the experts with its k largest logits."""
        return self.bias != 'choice' and self.num_groups == 1

    def sums_to_one(self, num_selected: int) -> bool:
        """Return True if the weights of a token always add up to one."""
        return self.renormalize and num_selected > 1 and self.scaling == 1

    def check(self, num_experts: int, num_selected: int) -> None:
        """Raise ValueError if the experts cannot stand in groups, or kept groups have fewer than k experts."""
        size, rest = divmod(num_experts, self.num_groups)
        if rest:
            raise ValueError(f'num_groups must divide num_experts = {num_experts}, got {self.num_groups}')
        if self.num_groups > 1 and self.group_score == 'top2' and size < 2:
            raise ValueError(
                f"group_score 'top2' needs groups of at least 2 experts, got {self.num_groups} groups of 1"
            )
        if self.kept_groups * size < num_selected:
            kept = f'{self.kept_groups} groups of {size}'
            raise ValueError(f'kept_groups must hold at least num_selected = {num_selected} experts, got {kept}')

    def route(
        self,
        logits: jax.Array,
        num_selected: int,
        valid: jax.Array | None = None,
        choice_bias: jax.Array | None = None,
    ) -> Routing:
        """Choose the experts of each token.

        Args:
          logits: float[N, E].
          num_selected: k in [1, E].
          valid: bool[N]; None: all are.
          choice_bias: float[E], for the bias 'choice'.

        >>> experts, weights = Gating('sigmoid', renormalize=False).route(jnp.array([[0., -1., 0.]]), 2)
        >>> experts.tolist(), weights.tolist()
        ([[0, 2]], [[0.5, 0.5]])
        """
        if self.follows_logits:
            best, experts = jax.lax.top_k(logits, num_selected)
        else:
            scores = self.score_experts(logits)
            scores = scores if choice_bias is None else scores + choice_bias[None]
            _, experts = jax.lax.top_k(self._limit_groups(scores), num_selected)
            best = jnp.take_along_axis(logits, experts, axis=-1)
        normalizes = self.renormalize and num_selected > 1
        if self.score == 'softmax':
            weights = jnp.exp(best - jax.nn.logsumexp(best if normalizes else logits, axis=-1, keepdims=True))
        else:
            weights = jax.nn.sigmoid(best)
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20) if normalizes else weights
        weights = weights if self.scaling == 1 else weights * self.scaling
        return _mask_routing(Routing(experts.astype(jnp.int32), weights), valid, logits.shape[-1])

    def score_experts(self, logits: jax.Array) -> jax.Array:
        """Return the scores of all experts: float[N, E]."""
        return jax.nn.softmax(logits, axis=-1) if self.score == 'softmax' else jax.nn.sigmoid(logits)

    def _limit_groups(self, scores):
        """Set the scores of experts outside the best groups to −inf."""
        if self.num_groups == 1:
            return scores
        groups = scores.reshape(*scores.shape[:-1], self.num_groups, -1)
        best, _ = jax.lax.top_k(groups, 1 if self.group_score == 'max' else 2)
        _, kept = jax.lax.top_k(jnp.sum(best, axis=-1), self.kept_groups)
        is_kept = jnp.any(kept[..., None] == jnp.arange(self.num_groups)[None, None], axis=-2)
        return jnp.where(is_kept[..., None], groups, -jnp.inf).reshape(scores.shape)


GATINGS = {
    'mixtral': Gating(),
    'olmoe': Gating(renormalize=False),
    'qwen2_moe': Gating(renormalize=False),
    'qwen3_moe': Gating(),
    'granite_moe': Gating(),
    'gpt_oss': Gating(bias='logits'),
    'deepseek_v2': Gating(renormalize=False, num_groups=8, kept_groups=3, scaling=16.0),
    'deepseek_v3': Gating('sigmoid', bias='choice', num_groups=8, kept_groups=4, group_score='top2', scaling=2.5),
}
"""The gatings of published models. Those of DeepSeek are of the largest models: others have no groups (V2-Lite), or
another scaling."""


def route_top_k(logits: jax.Array, num_selected: int, valid: jax.Array | None = None) -> Routing:
    """Select the k experts with the largest logits, weighted by a softmax over these k logits (equations 3 and 5).

    For k = 1 the weight is a share in the softmax over all logits; see `Gating`.

    >>> experts, weights = route_top_k(jnp.array([[0., 2., 1., 2.]]), 2)
    >>> experts.tolist(), weights.tolist()
    ([[1, 3]], [[0.5, 0.5]])
    """
    return Gating().route(logits, num_selected, valid)


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
        if jax.default_backend() == 'cpu':
            best = jax.lax.optimization_barrier(
                best
            )  # otherwise XLA turns slices of a top-k into a sort of all experts
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


def check_routing(num_experts: int, num_selected: int, routing: str, gating: Gating) -> None:
    """Raise ValueError for a router that cannot exist."""
    if num_experts < 1:
        raise ValueError(f'num_experts must be at least 1, got {num_experts}')
    if not 1 <= num_selected <= num_experts:
        raise ValueError(f'num_selected must be in [1, {num_experts}], got {num_selected}')
    check_choice('routing', routing, ROUTINGS)
    gating.check(num_experts, num_selected)


class Router(nn.Module):
    """Noisy top-k gating, in float32 at least.

    Its parameters, `gate` and `noise` [C, E] and the biases of the gating, start at zero: all experts are alike, and in
    training only the noise chooses. It is drawn from the stream 'routing'.

    Attributes:
      num_experts, num_selected: E and k.
      gating: rules of the choice and its weights.
      routing: 'token', or 'sentence': all tokens share one choice, made by the mean over the sentence's valid tokens.
        The losses then count sentences.
      noisy: add noise in training.
      balance_coefficient: factor of CV²(importance) + CV²(load).
      z_coefficient: factor of the z-loss, the mean of (log Σ_e exp logit_e)². It keeps logits small (Zoph et al.,
        "ST-MoE", arXiv:2202.08906, equation 5).
      switch_coefficient: factor of the load-balancing loss E · Σ_e f_e · P_e, which is 1 for a uniform router (Switch
        Transformers, equations 4 to 6). f_e is the share of expert e in the choices, P_e its mean share in the scores.
      axis_name: mapped axis over which tokens are divided. Losses and statistics then count the tokens of all replicas
        and are equal on each. The mean of the replicas' gradients is the gradient of one device with all tokens.

    Raises:
      ValueError: if k is not in [1, E], or routing is not one of ROUTINGS. Also if the gating does not fit E and k.
    """

    num_experts: int
    num_selected: int
    routing: str = 'token'
    noisy: bool = True
    balance_coefficient: float = 1e-2
    z_coefficient: float = 0.0
    switch_coefficient: float = 0.0
    gating: Gating = Gating()
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_routing(self.num_experts, self.num_selected, self.routing, self.gating)

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

        clean = _project(units, self._matrix('gate', x.shape[-1]))
        choice_bias = None
        if self.gating.bias == 'logits':
            clean += self._vector('bias', dtype)[None]
        elif self.gating.bias == 'choice':
            choice_bias = jax.lax.stop_gradient(self._vector('choice_bias', dtype))
        noisy = clean
        noise = self._matrix('noise', x.shape[-1]) if self.noisy else None
        if self.noisy and train:
            scale = jax.nn.softplus(_project(units, noise)) + NOISE_FLOOR
            noisy = clean + scale * jax.random.normal(self.make_rng('routing'), clean.shape, dtype)
        chosen = routing = self.gating.route(noisy, self.num_selected, used, choice_bias)
        if self.noisy and train and self.gating.follows_logits:
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
        if self.switch_coefficient:
            scores = self.gating.score_experts(clean)
            sums['shares'] = _sum_valid(scores / jnp.sum(scores, axis=-1, keepdims=True), used)
            sums['choices'] = count_load(chosen, self.num_experts)
        return routing, self._report(sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name))

    def multiply_adds(self, x_shape, y_shape, count):
        """Count the scores of each token, or sentence, for each expert; see `models.accounting`."""
        units = math.prod(x_shape[:-1] if self.routing == 'token' else x_shape[:-2])
        return 0, *[units * x_shape[-1] * self.num_experts] * 2

    def _matrix(self, name, features):
        return self.param(name, nn.initializers.zeros_init(), (features, self.num_experts), self.param_dtype)

    def _vector(self, name, dtype):
        return self.param(name, nn.initializers.zeros_init(), (self.num_experts,), self.param_dtype).astype(dtype)

    def _report(self, sums: dict[str, Any]) -> dict[str, jax.Array]:
        num_units = jnp.maximum(sums['units'], 1)
        loss = self.balance_coefficient * (cv_squared(sums['importance']) + cv_squared(sums['load']))
        loss += self.z_coefficient * sums['z_loss'] / num_units
        if self.switch_coefficient:
            products = jnp.sum(sums['choices'] * sums['shares']) / (self.num_selected * num_units**2)
            loss += self.switch_coefficient * self.num_experts * products
        aux = {
            'router_loss': loss,
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
