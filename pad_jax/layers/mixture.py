"""What the mixtures share: their fields, their router, and the declaration of their parameters.

Legend: N tokens, T sequence length, C input features, E experts, k selected.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer

from pad_jax.layers.dispatch import DISPATCHER_NAMES, DISPATCHERS, choose_dispatcher
from pad_jax.layers.factors import Factors, declare_factors, stack_law
from pad_jax.layers.gating import Assignment, dense_gates
from pad_jax.layers.router import Router, check_routing, sum_replicas
from pad_jax.partition.masks import RESTS, SCALES

MIXTURE_GRANULARITIES = (None, 'element', 'output', 'input', 'layer')


class Mixture(nn.Module, kw_only=True):
    """Base of the mixtures: E experts, of which a router chooses k for each token.

    With `granularity=None` the experts are fully dynamic. Otherwise a boolean mask (collection 'partition', all True
    at the start, of the granularity's shape) says which positions are; the rest comes from static parameters that
    all experts share:

        parameter of expert e = λd·mask·factor_e + λs·(1 − mask)·static

    But at granularity 'element', what is static is computed once for each token where the variables are compact (see
    `partition.compact`) or the collection 'dynamic_columns' (see `layers.index_dynamic_columns`) says which columns or
    rows are dynamic; otherwise the experts compute them all, with the same outputs and gradients but for those of the
    mask.

    Attributes:
      num_experts, num_selected: E and k, k in [1, E].
      granularity: one of MIXTURE_GRANULARITIES.
      scales: which of λd = 2σ(φ) and λs = 2 − λd are used: 'both', 'static', 'dynamic' or 'none'.
      rest: what a position is that is not dynamic: 'static', a parameter that all inputs share, or 'zero', no parameter
        at all; λs then has no object.
      dispatcher: how tokens reach experts, one of `dispatch.DISPATCHER_NAMES`.
      capacity_factor: > 0, for the dispatcher 'capacity'.
      routing, noisy, balance_coefficient, z_coefficient, axis_name: see `Router`.
      dtype: to compute in; None: the wider one of the input's and the parameters'.
      kernel_init: draws each expert's matrix, and the static one, by itself.

    Raises:
      ValueError: where a value is not one of those.
    """

    num_experts: int = 8
    num_selected: int = 2
    granularity: str | None = None
    scales: str = 'both'
    rest: str = 'static'
    dispatcher: str = 'auto'
    capacity_factor: float = 1.25
    routing: str = 'token'
    noisy: bool = True
    balance_coefficient: float = 1e-2
    z_coefficient: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    axis_name: str | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    def __post_init__(self):
        super().__post_init__()
        check_routing(self.num_experts, self.num_selected, self.routing)
        if not 0 < self.capacity_factor < math.inf:
            raise ValueError(f'capacity_factor must be above 0 and finite, got {self.capacity_factor}')
        for name, allowed in (
            ('granularity', MIXTURE_GRANULARITIES),
            ('scales', SCALES),
            ('rest', RESTS),
            ('dispatcher', DISPATCHER_NAMES),
        ):
            if getattr(self, name) not in allowed:
                names = ', '.join(map(str, allowed))
                raise ValueError(f'{name} must be one of {names}, got {getattr(self, name)!r}')

    def _route(self, x: jax.Array, valid: jax.Array | None, train: bool):
        """(dispatcher, its layout, aux) for x [*batch, T, C]; sows the routing weights."""
        if x.ndim < 2 or (valid is not None and valid.shape != x.shape[:-1]):
            shape = None if valid is None else valid.shape
            raise ValueError(f'a mixture needs x [*batch, T, C] and valid [*batch, T], got {x.shape} and {shape}')
        router = Router(
            self.num_experts,
            self.num_selected,
            self.routing,
            self.noisy,
            self.balance_coefficient,
            self.z_coefficient,
            self.param_dtype,
            self.axis_name,
            name='router',
        )
        assignment, aux = router(x, valid, train)
        self.sow('intermediates', 'routing', dense_gates(assignment, self.num_experts))
        dispatcher = DISPATCHERS[self._dispatcher_name(assignment)]
        layout = dispatcher.arrange(assignment, self.num_experts, self.capacity_factor)
        slots = jnp.sum(assignment.experts < self.num_experts)
        dropped, slots = sum_replicas((dispatcher.dropped(layout), slots), self.axis_name)
        return dispatcher, layout, aux | {'dropped_fraction': dropped.astype(jnp.float32) / jnp.maximum(slots, 1)}

    def _dispatcher_name(self, assignment):
        num_tokens = assignment.experts.shape[0]
        if isinstance(num_tokens, int) and num_tokens == 0:
            return 'dense'  # the others would read rows that aren't there
        if self.dispatcher != 'auto':
            return self.dispatcher
        return choose_dispatcher(num_tokens, self.num_experts, self.num_selected)

    def _declare(self, name: str, law: Initializer, shape: tuple[int, int]) -> Factors:
        """The parameter [E, *shape], and what makes it partially dynamic."""
        return declare_factors(self, name, shape, self.num_experts, stack_law(law), law)

    def _stack(self, name: str, law: Initializer, shape: tuple[int, ...]) -> jax.Array:
        """A parameter [E, *shape], each expert's its own draw of the law."""
        return self.param(name, stack_law(law), (self.num_experts, *shape), self.param_dtype)


def mix_bias(bias: jax.Array, layout: NamedTuple) -> jax.Array:
    """Σ over a token's experts of weight·bias: [E, F] -> [N, F]; a dropped slot adds nothing."""
    gates = dense_gates(Assignment(layout.experts, layout.weights), bias.shape[0])
    return jnp.dot(gates.astype(bias.dtype), bias, precision=jax.lax.Precision.HIGHEST)


def scale_tokens(scale: jax.Array | float, values: jax.Array) -> jax.Array:
    """scale·values in the dtype of the values; nothing where the scale is a plain 1."""
    return values if isinstance(scale, float) and scale == 1 else values * jnp.asarray(scale, values.dtype)


def cast_all(dtype: Dtype | None, x: jax.Array, *parameters: jax.Array | None):
    """x and parameters in the dtype to compute in: `dtype`, else the widest of theirs. None stays None."""
    return dtypes.promote_dtype(x, *parameters, dtype=dtype)


def flatten_tokens(x: jax.Array) -> jax.Array:
    """[*batch, T, C] -> [N, C]."""
    return x.reshape(-1, x.shape[-1])


def finish_tokens(y: jax.Array, x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Zero for tokens that are not valid, whatever part they got; [N, F] -> [*batch, T, F] as x has them."""
    if valid is not None:
        y = jnp.where(valid.reshape(-1, 1), y, 0)
    return y.reshape(*x.shape[:-1], y.shape[-1])
