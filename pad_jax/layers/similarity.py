"""How much the experts of a mixture differ.

Legend: E experts, `*shape` one position tensor.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pad_jax.partition.masks import merge, scale_factors


def expert_similarity(
    factors: jax.Array,
    static: jax.Array | None = None,
    mask: jax.Array | None = None,
    dynamic_scale: jax.Array | float = 1.0,
    static_scale: jax.Array | float = 1.0,
) -> jax.Array:
    """Mean over pairs of experts of the cosine of their effective parameters, float32 in [−1, 1].

    1 where they are copies of one another, near 0 where they were drawn independently; 1 for one expert alone.

    Args:
      factors: float[E, *shape].
      static, mask: float[*shape] and its mask, or None for a fully dynamic layer.
      dynamic_scale, static_scale: λd and λs.

    >>> round(float(expert_similarity(jnp.array([[1., 0.], [1., 0.], [0., 1.]]))), 6)  # pairs: 1, 0, 0
    0.333333
    """
    num_experts = factors.shape[0]
    if num_experts == 1:
        return jnp.ones((), jnp.float32)
    if mask is not None:
        factors = merge(factors, static, mask, dynamic_scale, static_scale)
    flat = factors.reshape(num_experts, -1).astype(jnp.float32)
    products = jnp.dot(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(products), jnp.finfo(jnp.float32).tiny))
    cosines = products / lengths[:, None] / lengths[None, :]
    off_diagonal = 1 - jnp.eye(num_experts)
    return jnp.sum(cosines * off_diagonal) / (num_experts * (num_experts - 1))


def measure_similarity(params: Mapping, masks: Mapping, scales: str = 'both') -> dict[str, jax.Array]:
    """`expert_similarity` of every mixture of a network, by its path joined with '/'.

    Args:
      params: nested dict; a mixture is a module with a `router`.
      masks: the collection 'partition'; {} where nothing is partially dynamic.
      scales: which scale factors the network uses, one of `partition.masks.SCALES`.
    """
    found = {}
    for name, below in params.items():
        if not isinstance(below, Mapping):
            continue
        inside = masks.get(name, {})
        if 'router' in below:
            factors = 'neurons' if 'neurons' in below else 'kernel'
            # Where what is not dynamic is zero there are no static parameters.
            static = below.get(f'static_{factors}', jnp.zeros(below[factors].shape[1:]))
            partial = (static, inside[factors]) if factors in inside else ()
            factors_scales = scale_factors(below['phi'], scales) if partial and 'phi' in below else (1.0, 1.0)
            found[name] = expert_similarity(below[factors], *(partial or (None, None)), *factors_scales)
        else:
            deeper = measure_similarity(below, inside, scales)
            found |= {f'{name}/{path}': value for path, value in deeper.items()}
    return found
