"""Weights of the BERT family under the names of Hugging Face, as params of `models.Bert`.

The shapes of the params describe the encoder, except for its number of heads.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pad_jax.errors import BadInput
from pad_jax.files import read_own_object
from pad_jax.pretrained.upcycling import dense_shapes, upcycle
from pad_jax.pretrained.weights import check_tensors, read_weights

PyTree = Any
CONFIG = 'config.json'
PREFIX = 'bert.'
# A file may lack these modules completely. Then they keep their initial values.
HEADS = ('pooler', 'classifier')
# A file may hold constants and the heads of pretraining beside the encoder.
SKIPPED = ('embeddings.position_ids', 'cls.')

MODULES = {
    'embeddings/norm': 'embeddings.LayerNorm',
    'embeddings/tokens': 'embeddings.word_embeddings',
    'embeddings/positions': 'embeddings.position_embeddings',
    'embeddings/segments': 'embeddings.token_type_embeddings',
    'pooler': 'pooler.dense',
    'classifier': 'classifier',
}
LAYER_MODULES = {
    'attention/query': 'attention.self.query',
    'attention/key': 'attention.self.key',
    'attention/value': 'attention.self.value',
    'attention/output': 'attention.output.dense',
    'attention_norm': 'attention.output.LayerNorm',
    'ffn/up': 'intermediate.dense',
    'ffn/down': 'output.dense',
    'ffn_norm': 'output.LayerNorm',
}


class Loaded(NamedTuple):
    """Result of `load_pretrained`."""

    params: PyTree  # with the structure of the initial params
    fresh: tuple[str, ...]  # modules of `HEADS` that the file lacks or has for other classes; they keep their values


def load_pretrained(
    folder: str | Path,
    params: Mapping[str, PyTree],
    records: Mapping[str, Any],
    *,
    num_heads: int,
    class_names: Sequence[str] | None = None,
) -> Loaded:
    """Fill an encoder with the weights of a folder. Mixtures of experts are upcycled from the dense weights.

    A classifier is loaded if it has the model's classes. Its outputs are put into the order of `class_names`, by the
    names in `id2label` of config.json. Without names there, their order is trusted.

    Args:
      folder: contains config.json and model.safetensors, or its index and shards.
      params: initial params of a `models.Bert` with any kind of feed-forward part.
      records: of `find_records`, of that encoder.
      num_heads: attention heads of the encoder.
      class_names: of the model's outputs; () for regression, None if they are unknown.

    Raises:
      BadInput: if the folder cannot be read, or has another architecture or size, or tensors do not fit.
    """
    shapes = dense_shapes(params, records)
    config = read_own_object(Path(folder) / CONFIG, 'a folder of pretrained weights')
    _check_config(folder, config, num_heads)
    tensors = _rename(folder, read_weights(folder))
    tensors = _match_classes(tensors, config, shapes['classifier']['bias'].shape[0], class_names)
    wanted = {path: (*_name_tensor(path), shape) for path, shape in flatten_dict(shapes).items()}
    present = {module for (module, *_), (name, *_) in wanted.items() if name in tensors}
    fresh = tuple(head for head in HEADS if head not in present)
    loaded = {path: row for path, row in wanted.items() if path[0] not in fresh}
    needed = {name: shape.shape[::-1] if is_linear else shape.shape for name, is_linear, shape in loaded.values()}
    check_tensors(folder, tensors, needed)
    dense = {
        path: jnp.asarray(tensors[name].T if is_linear else tensors[name], shape.dtype)
        for path, (name, is_linear, shape) in loaded.items()
    }
    dense = {**unflatten_dict(dense), **{head: params[head] for head in fresh}}
    return Loaded(upcycle(dense, params, records), fresh)


def _rename(folder, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of the encoder and the classifier, without the prefix and the old names of norms."""
    names: dict[str, str] = {}
    for name in sorted(tensors):
        # Released checkpoints of BERT name the parameters of their norms as TensorFlow did.
        plain = name.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')
        plain = plain.removeprefix(PREFIX)
        if plain.startswith(SKIPPED):
            continue
        if plain in names:
            raise BadInput(f'the weights in {folder} name the same parameter twice: {names[plain]}, {name}')
        names[plain] = name
    return {plain: tensors[name] for plain, name in names.items()}


def _match_classes(
    tensors: dict[str, np.ndarray], config: Mapping[str, Any], num_classes: int, class_names: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Return the tensors with the classifier in the order of `class_names`, or without one for other classes."""
    heads = [name for name in tensors if name.startswith('classifier.')]
    found = config.get('id2label')
    names = [found.get(str(number)) for number in range(len(found))] if isinstance(found, dict) else []
    order = list(range(num_classes))
    has_names = names != [f'LABEL_{number}' for number in range(len(names))]  # Hugging Face numbers others
    if class_names and has_names and all(isinstance(name, str) for name in names):
        stored, wanted = ([_plain(name) for name in both] for both in (names, class_names))
        order = [stored.index(name) for name in wanted] if sorted(stored) == sorted(wanted) else []
    fits = all(tensors[name].ndim and len(tensors[name]) == num_classes for name in heads)
    if order and fits:
        return tensors | {name: tensors[name][order] for name in heads}
    return {name: tensor for name, tensor in tensors.items() if name not in heads}


def _plain(name: str) -> str:
    """Return a class name as it is compared: 'Not Entailment' is 'not_entailment'."""
    return re.sub(r'[\s-]+', '_', name.strip().casefold())


def _name_tensor(path: tuple[str, ...]) -> tuple[str, bool]:
    """Return the tensor's name for a dense parameter, and True if it is stored transposed, as [outputs, inputs]."""
    *modules, parameter = path
    if modules[0].startswith('layer_'):
        index = modules[0].removeprefix('layer_')
        module = f'encoder.layer.{index}.{LAYER_MODULES["/".join(modules[1:])]}'
    else:
        module = MODULES['/'.join(modules)]
    return f'{module}.{"bias" if parameter == "bias" else "weight"}', parameter == 'kernel'


def _check_config(folder: str | Path, config: Mapping[str, Any], num_heads: int) -> None:
    """Raise `BadInput` for another architecture, as far as tensors do not show it."""
    required = {
        'model_type': 'bert',
        'hidden_act': 'gelu',
        'position_embedding_type': 'absolute',
        'layer_norm_eps': 1e-12,
        'num_attention_heads': num_heads,
    }
    config = {'num_attention_heads': None} | config  # no tensor shows it, so it is needed
    differing = [
        f'{key} is {config[key]!r}, the model needs {value!r}'
        for key, value in required.items()
        if key in config and config[key] != value
    ]
    if differing:
        raise BadInput(f'{Path(folder) / CONFIG} describes another model: {"; ".join(differing)}')
