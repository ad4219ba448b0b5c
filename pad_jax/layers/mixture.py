"""What the mixtures share: their fields, their router, and the declaration of a partially dynamic parameter.

Legend: N tokens, T sequence length, C input features, E experts, k selected, D dynamic columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer

from pad_jax.layers.dispatch import DISPATCHER_NAMES, DISPATCHERS, choose_dispatcher
from pad_jax.layers.dynamic_columns import Columns, split_columns, take_columns
from pad_jax.layers.gating import Assignment, dense_gates
from pad_jax.layers.router import ROUTINGS, Router
from pad_jax.partition.masks import SCALES, mask_shape, merge, scale_factors, split

MIXTURE_GRANULARITIES = (None, 'element', 'output', 'input', 'layer')


class Parts(NamedTuple):
    """A partially dynamic parameter as its layer computes with it.

    Attributes:
      experts: float[E, *shape], effective factors; of the dynamic columns alone where `dynamic_columns` is given.
      static: what all tokens share and the experts leave out, or None where they hold all of it.
      dynamic_columns, static_columns: where the columns of both belong; None where both are whole.
      dynamic_scale, static_scale: what is still to be multiplied with: λd and λs, or 1 where the parts have them.
    """

    experts: jax.Array
    static: jax.Array | None = None
    dynamic_columns: Columns | None = None
    static_columns: Columns | None = None
    dynamic_scale: jax.Array | float = 1.0
    static_scale: jax.Array | float = 1.0


class Mixture(nn.Module, kw_only=True):
    """Base of the mixtures: E experts, of which a router chooses k for each token.

    With `granularity=None` the experts are fully dynamic. Otherwise a boolean mask (collection 'partition', all True
    at the start, of the granularity's shape) says which positions are; the rest comes from static parameters that
    all experts share:

        parameter of expert e = λd·mask·factor_e + λs·(1 − mask)·static

    At granularity 'output' or 'input' what is static is computed once for each token where the collection
    'dynamic_columns' (see `layers.index_dynamic_columns`) says which columns or rows are dynamic; without it the
    experts compute them all, with the same outputs and gradients.

    Attributes:
      num_experts, num_selected: E and k, k in [1, E].
      granularity: one of MIXTURE_GRANULARITIES.
      scales: which of λd = 2σ(φ) and λs = 2 − λd are used: 'both', 'static', 'dynamic' or 'none'.
      dispatcher: how tokens reach experts, one of `dispatch.DISPATCHER_NAMES`.
      capacity_factor: > 0, for the dispatcher 'capacity'.
      routing, noisy, balance_coefficient, z_coefficient: see `Router`.
      dtype: to compute in; None: the wider one of the input's and the parameters'.
      kernel_init: draws each expert's matrix, and the static one, by itself.

    Raises:
      ValueError: where a value is not one of those.
    """

    num_experts: int = 8
    num_selected: int = 2
    granularity: str | None = None
    scales: str = 'both'
    dispatcher: str = 'auto'
    capacity_factor: float = 1.25
    routing: str = 'token'
    noisy: bool = True
    balance_coefficient: float = 1e-2
    z_coefficient: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    def __post_init__(self):
        super().__post_init__()
        if self.num_experts < 1:
            raise ValueError(f'num_experts must be at least 1, got {self.num_experts}')
        if not 1 <= self.num_selected <= self.num_experts:
            raise ValueError(f'num_selected must be in [1, {self.num_experts}], got {self.num_selected}')
        if not self.capacity_factor > 0:
            raise ValueError(f'capacity_factor must be above 0, got {self.capacity_factor}')
        for name, allowed in (
            ('granularity', MIXTURE_GRANULARITIES),
            ('scales', SCALES),
            ('dispatcher', DISPATCHER_NAMES),
            ('routing', ROUTINGS),
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
            name='router',
        )
        assignment, aux = router(x, valid, train)
        self.sow('intermediates', 'routing', dense_gates(assignment, self.num_experts))
        dispatcher = DISPATCHERS[self._dispatcher_name(assignment)]
        layout = dispatcher.arrange(assignment, self.num_experts, self.capacity_factor)
        return dispatcher, layout, aux | {'dropped_fraction': dispatcher.dropped(layout)}

    def _dispatcher_name(self, assignment):
        if self.dispatcher != 'auto':
            return self.dispatcher
        return choose_dispatcher(assignment.experts.shape[0], self.num_experts, self.num_selected)

    def _parts(self, name: str, law: Initializer, shape: tuple[int, int], merged: bool) -> Parts:
        """Declares the parameter [E, *shape], what makes it partially dynamic, and puts both parts together.

        `merged`: the experts may hold the static part too: every token gets all of its experts, whose weights sum to
        one, so each of them may add it.
        """
        factors = self._stack(name, law, shape)
        if self.granularity is None:
            return Parts(factors)
        static = self.param(f'static_{name}', law, shape, self.param_dtype)
        phi = 0.0
        if self.scales != 'none':
            phi = self.param('phi', nn.initializers.zeros_init(), (), self.param_dtype)
        gates = mask_shape(shape, self.granularity)
        mask = self.variable('partition', name, lambda: jnp.ones(gates, bool)).value
        scales = scale_factors(phi, self.scales)
        if self.has_variable('dynamic_columns', name):
            return self._indexed(self.get_variable('dynamic_columns', name), factors, static, mask, scales)
        if merged:
            return Parts(merge(factors, static, mask, *scales))
        return Parts(*split(factors, static, mask, *scales))

    def _indexed(self, index, factors, static, mask, scales) -> Parts:
        axis = {'output': -1, 'input': -2}[self.granularity]
        dynamic_columns, static_columns = split_columns(index, static.shape[axis])

        def split_at(columns):
            # The mask goes along: what it says counts, the index only says where it has to be asked.
            taken = (take_columns(array, columns, axis) for array in (factors, static))
            return split(*taken, jnp.take(mask, columns.indices, axis=axis))

        # The scales are left to the tokens, which are fewer numbers than the parameters.
        experts, shared = split_at(dynamic_columns)[0], split_at(static_columns)[1]
        return Parts(experts, shared, dynamic_columns, static_columns, *scales)

    def _stack(self, name: str, law: Initializer, shape: tuple[int, ...]) -> jax.Array:
        """A parameter [E, *shape] whose factors are E draws of the law: it must not count the stack axis."""

        def draw(key, shape, dtype):
            keys = jax.random.split(key, self.num_experts)
            return jax.vmap(lambda key: law(key, shape[1:], dtype))(keys)

        return self.param(name, draw, (self.num_experts, *shape), self.param_dtype)


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


def finish_tokens(y: jax.Array, x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Zero for tokens that are not valid, whatever part they got; [N, F] -> [*batch, T, F] as x has them."""
    if valid is not None:
        y = jnp.where(valid.reshape(-1, 1), y, 0)
    return y.reshape(*x.shape[:-1], y.shape[-1])


