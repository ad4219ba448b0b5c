"""Declaration of the parameters of a dynamic layer: stacked factors, the static parameter beside them, and a record."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from pad_jax.kernels.factors import Factors, take_entries
from pad_jax.partition.layout import PartialParameter
from pad_jax.partition.masks import gate_axis, mask_granularity, mask_shape, scale_factors

Records = Mapping[str, Any]
"""Nested dict like the params that holds a `PartialParameter` for each stack of factors."""


def stack_init(init: Initializer) -> Initializer:
    """Make the initializer of a stack [K, *shape] whose factors are K draws of `init`.

    `init` sees the shape of one factor, so its variance does not depend on the stack axis.
    """

    def draw(key, shape, dtype):
        keys = jax.random.split(key, shape[0])
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(keys)

    return draw


stack_law = stack_init  # until all layers use the new name


def declare_factors(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    num_factors: int,
    init_factors: Callable,
    init_static: Initializer,
    **declared,
) -> Factors:
    """Declare the parameter `name` [K, *shape] of a module, with all that makes it partially dynamic.

    Call it inside the module's compact method. It creates the stack of factors. If the module has a granularity it also
    creates the static parameter, φ and the mask. Storage is compact if the collection 'index' has an entry of that name
    (see `layers.compact`).

    A `PartialParameter` is sown into the collection 'intermediates' under the same name. The module itself sows its
    mixing weights float[N, K] there as 'routing', or generated values float[N, *shape] as 'values'.

    Args:
      module: has the fields `granularity`, `scales`, `prune` and `param_dtype`.
      shape: shape of one factor.
      num_factors: K.
      init_factors: initializer of the whole stack.
      init_static: initializer of the static parameter.
      declared: fields of the record, such as `copies_at` or `generated`.

    Raises:
      ValueError: if compact parameters don't have the shapes that the layer needs.
    """
    is_partial = module.granularity is not None
    record = PartialParameter(
        name,
        tuple(shape),
        module.granularity,
        static=f'static_{name}' if is_partial and not module.prune else None,
        scale='phi' if is_partial and module.scales != 'none' else None,
        scales=module.scales if is_partial else 'none',
        **declared,
    )
    module.sow('intermediates', name, record, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    index = module.get_variable('index', name) if is_partial else None
    if is_partial and module.has_variable('packed', name):
        return _declare_packed(module, record, num_factors)
    if index is not None:
        return _declare_compact(module, record, num_factors, index)
    dynamic = module.param(name, init_factors, (num_factors, *shape), module.param_dtype)
    if not is_partial:
        return Factors(shape, dynamic)
    if record.static is None:
        static = jnp.zeros(shape, module.param_dtype)
    else:
        static = module.param(record.static, init_static, shape, module.param_dtype)
    scales = _declare_scales(module, record)
    gates = mask_shape(shape, module.granularity)
    mask = module.variable('partition', name, lambda: jnp.ones(gates, bool)).value
    columns = module.get_variable('dynamic_columns', name)
    if columns is not None and module.granularity != 'element':
        return _take(Factors(shape, dynamic, static, *scales), columns, gates)
    return Factors(shape, dynamic, static, *scales, mask)


def declare_dynamic(module: nn.Module, name: str, init: Initializer, factors: Factors) -> jax.Array:
    """Declare a parameter [*shape] beside the factors that is dead at static positions; compact as they are."""
    packed = module.granularity is not None and module.has_variable('packed', 'tensor')
    if packed and factors.index is None:
        bits = module.get_variable('packed', 'tensor')
        return _put_bits(module.get_variable('params', name), bits, factors.shape, False)
    return module.param(name, init, factors.dynamic.shape[1:], module.param_dtype)


def find_records(model: nn.Module, *inputs, **kwargs) -> dict[str, Any]:
    """Find the records of all dynamic layers of a model; nothing is computed or allocated.

    Args:
      model: a Flax module.
      inputs: what the model is called with, arrays or jax.ShapeDtypeStruct.
      kwargs: passed to the model as they are.

    Returns:
      Nested dict like the params, with a `PartialParameter` for each stack of factors.

    >>> from pad_jax.layers import DynamicConv
    >>> find_records(DynamicConv(8, (3, 3)), jnp.ones((1, 6, 6, 3)))['kernel'].shape
    (3, 3, 3, 8)
    """
    trace = functools.partial(model.init, mutable=True, **kwargs)
    variables = jax.eval_shape(trace, jax.random.key(0), *inputs)
    return _keep_records(variables.get('intermediates', {}))


def _keep_records(sown: Mapping) -> dict[str, Any]:
    found = {name: _keep_records(below) if isinstance(below, Mapping) else below for name, below in sown.items()}
    return {name: below for name, below in found.items() if below and isinstance(below, (dict, PartialParameter))}


def _declare_scales(module, record):
    phi = 0.0
    if record.scale is not None:
        phi = module.param(record.scale, nn.initializers.zeros_init(), (), module.param_dtype)
    return scale_factors(phi, record.scales)


def _declare_compact(module, record, num_factors, index) -> Factors:
    """Read live entries, whose shapes follow from the masks that they were made with."""
    view, axis = gate_axis(record.shape, mask_granularity(mask_shape(record.shape, record.granularity)))
    if len(view) == 1 < len(record.shape):
        raise ValueError(f'{record.factors} is compact by element: call `expand` on the variables before the layer')
    if mask_granularity(mask_shape(record.shape, record.granularity)) == 'layer':
        index = jnp.arange(view[axis] * index.shape[0], dtype=jnp.int32)

    def entries(count):
        return tuple(count if number == len(view) + axis else size for number, size in enumerate(view))

    num_dynamic = index.shape[0]
    dynamic = module.get_variable('params', record.factors)
    static_shape = entries(view[axis] - num_dynamic)
    static = jnp.zeros(static_shape, module.param_dtype)
    if record.static is not None:
        static = module.get_variable('params', record.static)
    expected = (num_factors, *entries(num_dynamic)), static_shape
    if (dynamic.shape, static.shape) != expected:
        raise ValueError(
            f'{record.factors} {dynamic.shape} and its static parameter {static.shape} must have the shapes '
            f'{expected[0]} and {expected[1]} for {num_dynamic} of {view[axis]} dynamic entries'
        )
    return Factors(record.shape, dynamic, static, *_declare_scales(module, record), index=index, axis=axis)


# --- Until the collections 'packed' and 'dynamic_columns' are gone. ---


def _take(whole: Factors, index, gates) -> Factors:
    view, axis = gate_axis(whole.shape, mask_granularity(gates))
    if mask_granularity(gates) == 'layer':
        index = jnp.arange(view[axis] * index.shape[0], dtype=jnp.int32)
    compact = whole._replace(index=index, axis=axis)
    is_static = jnp.ones(view[axis], bool).at[index].set(False)
    others = jnp.nonzero(is_static, size=view[axis] - index.shape[0])[0].astype(jnp.int32)
    return compact._replace(
        dynamic=take_entries(whole.dynamic.reshape(-1, *view), index, axis),
        static=take_entries(whole.static.reshape(view), others, axis),
    )


def _declare_packed(module, record, num_factors) -> Factors:
    bits = module.get_variable('packed', record.factors)
    dynamic = module.get_variable('params', record.factors)
    gates = mask_shape(record.shape, record.granularity)
    granularity = mask_granularity(gates)
    view, axis = gate_axis(record.shape, granularity)
    if granularity == 'element':
        static = jnp.zeros((view[axis] - dynamic.shape[-1],), module.param_dtype)
        if record.static is not None:
            static = module.get_variable('params', record.static)
        scales = _declare_scales(module, record)
        mask = jnp.unpackbits(bits, axis=-1, count=record.shape[-1]).astype(bool) if bits.dtype != bool else bits
        return Factors(
            record.shape,
            _put_bits(dynamic, bits, record.shape, False),
            _put_bits(static, bits, record.shape, True),
            *scales,
            mask,
        )
    num_dynamic = dynamic.shape[axis]
    if granularity == 'layer':
        index = jnp.arange(min(num_dynamic, 1), dtype=jnp.int32)
    else:
        mask = bits if bits.dtype == bool else jnp.unpackbits(bits, axis=-1, count=view[axis]).astype(bool)
        index = jnp.nonzero(mask.reshape(-1), size=num_dynamic)[0].astype(jnp.int32)
    return _declare_compact(module, record, num_factors, index)


def _put_bits(entries, bits, shape, is_static):
    mask = jnp.unpackbits(bits, axis=-1, count=shape[-1]).astype(bool) if bits.dtype != bool else bits
    mask = (~mask if is_static else mask).reshape(-1)
    places = jnp.clip(jnp.cumsum(mask) - 1, 0, max(entries.shape[-1] - 1, 0))
    if entries.shape[-1] == 0:
        return jnp.zeros((*entries.shape[:-1], *shape), entries.dtype)
    return jnp.where(mask, jnp.take(entries, places, axis=-1), 0).reshape(*entries.shape[:-1], *shape)
