"""Weights of ResNets and MobileNetV2, under the names of torchvision, as params and batch statistics.

A network whose convolutions are dynamic is upcycled from the static ones.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pad_jax.pretrained.safetensors_folder import read_weights
from pad_jax.pretrained.tensor_check import check_tensors
from pad_jax.pretrained.upcycling_convolutions import upcycle_convolutions

PyTree = Any
ModulePath = tuple[str, ...]
CLASSIFIER = 'classifier'
# Of torch's batch norms: how many batches have been seen, of which nothing here depends.
_COUNTER = 'num_batches_tracked'
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}


class LoadedNetwork(NamedTuple):
    """What came of loading.

    Attributes:
      params: of the structure of the initial ones.
      batch_stats: running statistics.
      notes: what there is to say, one line each: that the classifier keeps its initial values, and why.
    """

    params: PyTree
    batch_stats: PyTree
    notes: tuple[str, ...]


def load_torchvision(
    path: str | Path, name: str, static: Mapping[str, PyTree], params: Mapping[str, PyTree]
) -> LoadedNetwork:
    """Fills a network with weights in torchvision's layout; dynamic convolutions are upcycled from static ones.

    Where the file has another number of classes, or no classifier, the network's keeps its initial values.

    Args:
      path: a .safetensors file, or a folder that holds one or its shards.
      name: of the network, a key of LAYOUTS.
      static: `params` and `batch_stats` of the network with static convolutions, as shapes.
      params: initial params of the network to fill.

    Raises:
      ValueError: for a network that torchvision doesn't have.
      BadInput: if the file can't be read, or lacks tensors, holds ones that it shouldn't or that have another shape;
        all of them are listed.
    """
    modules = find_layout(name)(static['params'])
    wanted = {
        (collection, *place): (f'{modules[place[:-1]]}.{_LEAVES[place[-1]]}', shape)
        for collection in ('params', 'batch_stats')
        for place, shape in flatten_dict(static[collection]).items()
    }
    tensors = {key: tensor for key, tensor in read_weights(path).items() if not key.endswith(f'.{_COUNTER}')}
    heads = {place: row for place, row in wanted.items() if place[:2] == ('params', CLASSIFIER)}
    note = _compare_classes(tensors, dict(heads.values()))
    if note:
        tensors = {key: tensor for key, tensor in tensors.items() if key not in dict(heads.values())}
        wanted = {place: row for place, row in wanted.items() if place not in heads}
    check_tensors(path, tensors, {key: _stored_shape(shape.shape) for key, shape in wanted.values()})
    loaded = unflatten_dict(
        {place: jnp.asarray(_to_flax(tensors[key]), shape.dtype) for place, (key, shape) in wanted.items()}
    )
    if note:
        loaded['params'][CLASSIFIER] = params[CLASSIFIER]
    return LoadedNetwork(upcycle_convolutions(loaded['params'], params), loaded['batch_stats'], (note,) if note else ())


def find_layout(name: str) -> Callable[[Mapping[str, PyTree]], dict[ModulePath, str]]:
    """How torchvision names the modules of a network.

    Raises:
      ValueError: for a network that it doesn't have.
    """
    if name not in LAYOUTS:
        raise ValueError(
            f'model.pretrained: torchvision has no weights of {name}, only of {", ".join(LAYOUTS)}; '
            '--config.model.pretrained= trains from scratch'
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
        # A convolution with its norm and its ReLU is one module; the last of a block, which has no ReLU, is two.
        inner = [part for part in ('expand', 'depthwise') if f'{part}_conv' in params[block]]
        for place, part in enumerate(inner):
            found[block, f'{part}_conv'] = f'features.{number}.conv.{place}.0'
            found[block, f'{part}_norm'] = f'features.{number}.conv.{place}.1'
        found[block, 'project_conv'] = f'features.{number}.conv.{len(inner)}'
        found[block, 'project_norm'] = f'features.{number}.conv.{len(inner) + 1}'
    return found


LAYOUTS = {
    'resnet18': _name_resnet,
    'resnet34': _name_resnet,
    'resnet50': _name_resnet,
    'resnet101': _name_resnet,
    'mobilenet_v2': _name_mobilenet,
}


def _number_blocks(params) -> list[tuple[str, tuple[int, int]]]:
    """(name, (stage, block)) of every block, both counted from 1, in the network's order."""
    matches = [re.fullmatch(r'stage(\d+)_block(\d+)', name) for name in params]
    numbered = [(match[0], (int(match[1]), int(match[2]))) for match in matches if match]
    return sorted(numbered, key=lambda row: row[1])


def _compare_classes(tensors: Mapping[str, np.ndarray], heads: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """Why the classifier can't be taken, '' if it can; heads that fit in nothing are left to be listed."""
    kernel = next(name for name in heads if name.endswith('weight'))
    num_inputs, num_classes = heads[kernel].shape
    if not heads.keys() & tensors.keys():
        return 'they have no classifier: it keeps its initial values'
    if heads.keys() - tensors.keys() or tensors[kernel].ndim != 2:
        return ''
    found = len(tensors[kernel])
    if found == num_classes or {tensors[name].shape for name in heads} != {(found,), (found, num_inputs)}:
        return ''
    return f'they have {found} classes, the model {num_classes}: the classifier keeps its initial values'


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    # [kh, kw, C, F] is stored as [F, C, kh, kw], and [C, F] as [F, C].
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _to_flax(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
