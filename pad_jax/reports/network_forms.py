"""One network in the forms that it can be stored and run in, and what XLA says of each."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from pad_jax.partition import LayerCount, compact, group_size
from pad_jax.training.config import is_partial, is_text
from pad_jax.training.setup import abstract_variables, make_inputs, make_model

# Of what the compiler does only the passes that come after the count are left out.
_COUNTED_ONLY = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


class Form(NamedTuple):
    """A network and the shapes of its variables."""

    model: nn.Module
    variables: Mapping[str, Any]

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables['params']))


class XlaCost(NamedTuple):
    """What XLA's cost analysis counts of a program: half of its floating point operations, and bytes moved."""

    multiply_adds: float
    bytes: float


def make_forms(config, layers: Iterable[LayerCount]) -> dict[str, Form]:
    """The network of a config as shapes: static, and fully dynamic, or masked and compact; nothing is trained or drawn.

    Args:
      layers: how many positions of each layer are dynamic; in the compact form these are the first ones.
    """
    static = config.copy_and_resolve_references()
    if is_text(config):
        static.model.ffn = 'dense'
    else:
        static.model.conv = 'static'
    forms = {'static': _make_form(static)}
    if is_partial(config):
        masked = forms['masked'] = _make_form(config)
        forms['compact'] = Form(masked.model, _compact_shapes(masked, {layer.name: layer for layer in layers}))
    elif make_model(config) != forms['static'].model:
        forms['fully dynamic'] = _make_form(config)
    return forms


def measure_cost(form: Form, inputs: Iterable[Any]) -> XlaCost | None:
    """Of the way forward, compiled for the default device; None where its compiler doesn't count.

    Args:
      inputs: arrays or shapes that the network is called with.
    """
    inputs = tuple(inputs)
    program = jax.jit(lambda variables, *inputs: form.model.apply(variables, *inputs)).lower(form.variables, *inputs)
    found = program.compile(_COUNTED_ONLY).cost_analysis()
    if not found or 'flops' not in found:
        return None
    return XlaCost(found['flops'] / 2, found.get('bytes accessed', float('nan')))


def _make_form(config) -> Form:
    model = make_model(config)
    variables = abstract_variables(model, make_inputs(config))
    return Form(model, {name: tree for name, tree in variables.items() if name != 'intermediates'})


def _compact_shapes(masked: Form, layers: Mapping[str, LayerCount]) -> Mapping[str, Any]:
    # One byte that stands for all entries of an array: what is compacted is a fourth of the network, and soon gone.
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), dict(masked.variables))
    variables['partition'] = _open_first(masked.variables['partition'], masked.variables['params'], layers, ())
    _, found = compact(masked.model, variables, allow_dynamic=True)
    dtypes = {name: tree for name, tree in masked.variables.items() if name != 'partition'}
    shapes = {'packed': jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found['packed'])}
    for name, like in dtypes.items():
        of_path = {path: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
        shapes[name] = jax.tree_util.tree_map_with_path(
            # The masked form has no static parameters where the compact one has an empty stack of them.
            lambda path, leaf, of_path=of_path: jax.ShapeDtypeStruct(leaf.shape, of_path.get(path, np.float32)),
            found[name],
        )
    return shapes


def _open_first(masks, params, layers, path):
    """Masks whose first gates are open, as many as a layer has dynamic positions for."""
    opened = {}
    for name, mask in masks.items():
        if isinstance(mask, Mapping):
            opened[name] = _open_first(mask, params[name], layers, (*path, name))
            continue
        positions = jax.ShapeDtypeStruct(params[name].shape[1:], params[name].dtype)
        count = layers['/'.join(path)].dynamic_positions // group_size(mask, positions)
        opened[name] = (np.arange(mask.size) < count).reshape(mask.shape)
    return opened
