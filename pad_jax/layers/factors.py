"""Declaration of the parameters of a dynamic layer: stacked factors, the static parameter beside them, and a record."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from pad_jax.kernels.factors import Factors
from pad_jax.layers.compact import Entries
from pad_jax.partition.criteria import as_gates
from pad_jax.partition.layout import Layout, PartialParameter, Problem
from pad_jax.partition.masks import mask_granularity, mask_shape, scale_factors
from pad_jax.partition.rounds import Partition, iterative_mode_partition

Records = Mapping[str, Any]
"""Nested dict like the masks that holds a `PartialParameter` for each stack of factors."""


def stack_init(init: Initializer) -> Initializer:
    """Make the initializer of a stack [K, *shape] whose factors are K draws of `init`.

    `init` sees the shape of one factor, so its variance does not depend on the stack axis.
    """

    def draw(key, shape, dtype):
        keys = jax.random.split(key, shape[0])
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(keys)

    return draw


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
    creates the static parameter, φ and the mask `NAME_mask`. Storage is compact if the collection 'index' has an entry
    of the mask's name (see `layers.compact`).

    A `PartialParameter` is sown into the collection 'intermediates' under the mask's name. The module itself sows its
    mixing weights float[N, K] there as 'routing', or generated values float[N, *shape] as 'values'.

    Args:
      module: has the fields `granularity`, `scales`, `prune` and `param_dtype`.
      shape: shape of one factor.
      num_factors: K.
      init_factors: initializer of the whole stack.
      init_static: initializer of the static parameter.
      declared: fields of the record, such as `sums_to_one` or `generated`.

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
    # A name of its own: in an NNX module parameters and masks are attributes of one object.
    mask_name = f'{name}_mask'
    module.sow('intermediates', mask_name, record, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    index = module.get_variable('index', mask_name) if is_partial else None
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
    mask = module.variable('partition', mask_name, lambda: jnp.ones(gates, bool)).value
    return Factors(shape, dynamic, static, *scales, mask)


def find_records(model: nn.Module, *inputs, **kwargs) -> dict[str, Any]:
    """Find the records of all dynamic layers of a model; nothing is computed or allocated.

    Args:
      model: a Flax module.
      inputs: what the model is called with, arrays or jax.ShapeDtypeStruct.
      kwargs: passed to the model as they are.

    Returns:
      Nested dict like the masks, with a `PartialParameter` for each stack of factors.

    >>> from pad_jax.layers import DynamicConv
    >>> find_records(DynamicConv(8, (3, 3)), jnp.ones((1, 6, 6, 3)))['kernel_mask'].shape
    (3, 3, 3, 8)
    """
    trace = functools.partial(model.init, mutable=True, **kwargs)
    variables = jax.eval_shape(trace, jax.random.key(0), *inputs)
    return read_records(variables.get('intermediates', {}))


def read_records(intermediates: Mapping) -> dict[str, Any]:
    """Read the records from a collection 'intermediates'."""
    found = {}
    for name, below in intermediates.items():
        below = read_records(below) if isinstance(below, Mapping) else below
        if below and isinstance(below, (dict, PartialParameter)):
            found[name] = below
    return found


def read_routing(intermediates: Mapping) -> dict[str, Any]:
    """Read the `routing` of a `Problem`, with the rows of all calls of a layer, from a collection 'intermediates'."""
    found = {}
    for name, node in intermediates.items():
        if isinstance(node, Mapping):
            below = read_routing(node)
            found |= {name: below} if below else {}
        elif isinstance(node, PartialParameter) and node.granularity is not None:
            found[name] = jnp.concatenate(intermediates['values' if node.generated else 'routing'])
    return found


def partition_flax(
    model: nn.Module,
    variables: Mapping[str, Any],
    loss: Callable,
    batches: Iterable,
    *,
    dynamic_fraction: float,
    **settings,
) -> Partition:
    """Partition a Flax network: `iterative_mode_partition` with all that the records of its layers tell.

    Args:
      model: a Flax module.
      variables: its collections; those of `params` and `partition` are partitioned, the others stay as they are.
      loss: `(apply, batch) -> scalar`. `apply` takes the arguments of `model.apply` without the variables, and applies
        the scored ones. The criteria read its first output.
      batches: the scoring batches, as `loss` takes them; at least one.
      dynamic_fraction, settings: see `iterative_mode_partition`.

    Returns:
      Partition(masks, params).

    >>> from pad_jax.layers import DynamicConv
    >>> layer, x = DynamicConv(8, (3, 3), granularity='output'), jnp.ones((1, 6, 6, 3))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> loss = lambda apply, x: jnp.mean(apply(x) ** 2)
    >>> int(partition_flax(layer, variables, loss, [x], dynamic_fraction=0.5).masks['kernel_mask'].sum())
    4
    """
    others = {name: found for name, found in variables.items() if name not in ('params', 'partition')}

    def run(params, gates, batch):
        """Return (loss, first output of each call, 'intermediates' of each call)."""
        outputs, sown = [], []

        def apply(*args, mutable=(), **kwargs):
            mutable = [mutable] if isinstance(mutable, str) else list(mutable or ())
            scored = {**others, 'params': params, 'partition': gates}
            found, updates = model.apply(scored, *args, mutable=['intermediates', *mutable], **kwargs)
            outputs.append(jax.tree.leaves(found)[0])
            sown.append(updates['intermediates'])
            return (found, updates) if mutable else found

        return loss(apply, batch), outputs, sown

    batches = list(batches)
    if not batches:
        raise ValueError('batches must hold at least one scoring batch, got none')
    params, masks = variables['params'], variables.get('partition', {})
    _, _, sown = jax.eval_shape(run, params, as_gates(masks), batches[0])
    records = read_records(sown[0])

    def routing(params, gates, batch):
        calls = [read_routing(sown) for sown in run(params, gates, batch)[2]]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *calls)

    problem = Problem(
        lambda params, gates, batch: run(params, gates, batch)[0],
        Layout.of(records),
        lambda params, gates, batch: run(params, gates, batch)[1][0],
        routing,
    )
    return iterative_mode_partition(
        problem, params, batches, dynamic_fraction=dynamic_fraction, masks=masks, **settings
    )


def _declare_scales(module, record):
    phi = 0.0
    if record.scale is not None:
        phi = module.param(record.scale, nn.initializers.zeros_init(), (), module.param_dtype)
    return scale_factors(phi, record.scales)


def _declare_compact(module, record, num_factors, index) -> Factors:
    """Read live entries, whose shapes follow from the masks that they were made with."""
    if mask_granularity(mask_shape(record.shape, record.granularity)) == 'element':
        raise ValueError(f'{record.factors} is compact by element: call `expand` on the variables before the layer')
    entries = Entries.read(index, record)
    shapes = (num_factors, *entries.shape(True)), entries.shape(False)
    dynamic, static = module.get_variable('params', record.factors), jnp.zeros(shapes[1], module.param_dtype)
    if record.static is not None:
        static = module.get_variable('params', record.static)
    if (dynamic.shape, static.shape) != shapes:
        raise ValueError(
            f'{record.factors} {dynamic.shape} and its static parameter {static.shape} must have the shapes '
            f'{shapes[0]} and {shapes[1]} for {len(entries.dynamic)} of {entries.view[entries.axis]} dynamic entries'
        )
    return Factors(
        record.shape, dynamic, static, *_declare_scales(module, record), index=entries.dynamic, axis=entries.axis
    )
