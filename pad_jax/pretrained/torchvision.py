"""Weights of ResNets and MobileNetV2 under the names of torchvision, as params and batch statistics.

Dynamic convolutions are upcycled from the static ones.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pad_jax.pretrained.upcycling import upcycle
from pad_jax.pretrained.weights import check_tensors, read_weights

PyTree = Any
ModulePath = tuple[str, ...]
CLASSIFIER = 'classifier'
# Torch's batch norms count their batches. Nothing here needs the count.
_COUNTER = 'num_batches_tracked'
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}


class LoadedNetwork(NamedTuple):
    """Result of `load_torchvision`."""

    params: PyTree  # with the structure of the initial params
    batch_stats: PyTree
    notes: tuple[str, ...]  # one line if the classifier keeps its initial values, with the reason; otherwise empty


def load_torchvision(
    path: str | Path, name: str, static: Mapping[str, PyTree], params: Mapping[str, PyTree], records: Mapping[str, Any]
) -> LoadedNetwork:
    """Fill a network with weights in torchvision's layout. Dynamic convolutions are upcycled from static ones.

    If the file has another number of classes or no classifier, the classifier keeps its initial values.

    Args:
      path: a .safetensors file, or a folder that contains one or its shards.
      name: network, a key of `LAYOUTS`.
      static: shapes of `params` and `batch_stats` of the network with static convolutions.
      params: initial params of the network to fill.
      records: of `find_records`, of that network.

    Raises:
      ValueError: if torchvision does not have this network.
      BadInput: if the file cannot be read, or with a list of all tensors that do not fit.
    """
    modules = find_layout(name)(static['params'])
    wanted = {
        (collection, *location): (f'{modules[location[:-1]]}.{_LEAVES[location[-1]]}', shape)
        for collection in ('params', 'batch_stats')
        for location, shape in flatten_dict(static[collection]).items()
    }
    tensors = {key: tensor for key, tensor in read_weights(path).items() if not key.endswith(f'.{_COUNTER}')}
    heads = dict(row for location, row in wanted.items() if location[:2] == ('params', CLASSIFIER))
    note = _compare_classes(tensors, heads)
    if note:
        tensors = {key: tensor for key, tensor in tensors.items() if key not in heads}
        wanted = {location: row for location, row in wanted.items() if row[0] not in heads}
    check_tensors(path, tensors, {key: _stored_shape(shape.shape) for key, shape in wanted.values()})
    loaded = unflatten_dict(
        {location: jnp.asarray(_to_flax(tensors[key]), shape.dtype) for location, (key, shape) in wanted.items()}
    )
    if note:
        loaded['params'][CLASSIFIER] = params[CLASSIFIER]
    filled = upcycle(loaded['params'], params, records)
    return LoadedNetwork(filled, loaded['batch_stats'], (note,) if note else ())


def find_layout(name: str) -> Callable[[Mapping[str, PyTree]], dict[ModulePath, str]]:
    """Find the function that maps the modules of a network to torchvision's names, or raise ValueError."""
    if name not in LAYOUTS:
        raise ValueError(
            f'model.pretrained must be empty for model.name={name}: torchvision has weights of {", ".join(LAYOUTS)} '
            'only. --config.model.pretrained= trains from scratch'
        )
    return LAYOUTS[name]


def _name_resnet(params: Mapping[str, PyTree]) -> dict[ModulePath, str]:
    found = {('stem_conv',): 'conv1', ('stem_norm',): 'bn1', (CLASSIFIER,): 'fc'}
    for block, (stage, index) in _number_blocks(params):
        for part in params[block]:
            own = {'shortcut_conv': 'downsample.0', 'shortcut_norm': 'downsample.1'}.get(part)
            found[block, part] = f'layer{stage}.{index - 1}.{own or part.replace("norm", "bn")}'
    return found


def _name_mobilenet(params: Mapping[str, PyTree]) -> dict[ModulePath, str]:
    blocks = _number_blocks(params)
    last = f'features.{len(blocks) + 1}'
    found = {('stem_conv',): 'features.0.0', ('stem_norm',): 'features.0.1', (CLASSIFIER,): 'classifier.1'}
    found |= {('last_conv',): f'{last}.0', ('last_norm',): f'{last}.1'}
    for number, (block, _) in enumerate(blocks, start=1):
        # A convolution, its norm and its ReLU are one module. The last convolution has no ReLU and its own module.
        inner = [part for part in ('expand', 'depthwise') if f'{part}_conv' in params[block]]
        for index, part in enumerate(inner):
            found[block, f'{part}_conv'] = f'features.{number}.conv.{index}.0'
            found[block, f'{part}_norm'] = f'features.{number}.conv.{index}.1'
        found[block, 'project_conv'] = f'features.{number}.conv.{len(inner)}'
        found[block, 'project_norm'] = f'features.{number}.conv.{len(inner) + 1}'
    return found


LAYOUTS = {
    **dict.fromkeys(('resnet18', 'resnet34', 'resnet50', 'resnet101'), _name_resnet),
    'mobilenet_v2': _name_mobilenet,
}


def _number_blocks(params) -> list[tuple[str, tuple[int, int]]]:
    """List (name, (stage, block)) of all blocks in the network's order; both numbers count from 1."""
    matches = [re.fullmatch(r'stage(\d+)_block(\d+)', name) for name in params]
    numbered = [(match[0], (int(match[1]), int(match[2]))) for match in matches if match]
    return sorted(numbered, key=lambda row: row[1])


def _compare_classes(tensors: Mapping[str, np.ndarray], heads: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """Explain why the classifier cannot be loaded; '' if the file has one of as many classes."""
    (num_classes,) = min((shape.shape for shape in heads.values()), key=len)
    found = {len(tensors[name]) for name in heads if name in tensors and tensors[name].ndim}
    if not found:
        return 'they have no classifier: it keeps its initial values'
    if found == {num_classes}:
        return ''
    return f'they have {max(found)} classes, the model {num_classes}: the classifier keeps its initial values'


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    # Torch stores [H, W, C, F] as [F, C, H, W], and [C, F] as [F, C].
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _to_flax(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
