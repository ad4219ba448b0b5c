"""Declaring what a partially dynamic layer holds: stacked factors, and the static parameters beside them."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from pad_jax.partition.masks import mask_shape, scale_factors


def stack_law(law: Initializer) -> Initializer:
    """The law of a stack [K, *shape] whose factors are K draws of `law`: it must not count the stack axis."""

    def draw(key, shape, dtype):
        keys = jax.random.split(key, shape[0])
        return jax.vmap(lambda key: law(key, shape[1:], dtype))(keys)

    return draw


def declare_static(module: nn.Module, name: str, law: Initializer, shape: tuple[int, ...]):
    """What makes the parameter `name` of a module partially dynamic: (static [*shape], mask, λd, λs).

    To be called inside the module's compact method; these are the last four arguments of `partition.masks.merge` and
    `split`. The mask starts all True.

    Args:
      module: has the fields `granularity` (not None), `scales` and `param_dtype`.
      law: draws the static parameters.
      shape: of one factor.
    """
    static = module.param(f'static_{name}', law, shape, module.param_dtype)
    phi = 0.0
    if module.scales != 'none':
        phi = module.param('phi', nn.initializers.zeros_init(), (), module.param_dtype)
    gates = mask_shape(shape, module.granularity)
    mask = module.variable('partition', name, lambda: jnp.ones(gates, bool)).value
    return static, mask, *scale_factors(phi, module.scales)
