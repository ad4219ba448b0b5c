"""Weights of the BERT family, under the names of Hugging Face, as params of `models.Bert`.

The encoder to fill is known by its params alone, but for its number of heads, which no shape tells.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pad_jax.errors import BadInput
from pad_jax.pretrained.safetensors_folder import CONFIG, read_config, read_tensors
from pad_jax.pretrained.tensor_check import check_tensors
from pad_jax.pretrained.upcycling import dense_shapes, upcycle

PyTree = Any
PREFIX = 'bert.'
# What a file may lack as a whole: then the initial values stay.
HEADS = ('pooler', 'classifier')
# What a file may hold beside the encoder: constants, and the heads of pretraining.
SKIPPED = ('embeddings.position_ids', 'cls.')
# Released checkpoints of BERT name the parameters of their norms as TensorFlow did.
OLD_NAMES = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}

MODULES = {
    'embeddings/norm': 'embeddings.LayerNorm',
    'pooler': 'pooler.dense',
    'classifier': 'classifier',
}
TABLES = {
    'embeddings/tokens': 'embeddings.word_embeddings',
    'embeddings/positions': 'embeddings.position_embeddings',
    'embeddings/segments': 'embeddings.token_type_embeddings',
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
    """What came of loading.

    Attributes:
      params: of the structure of the initial ones.
      fresh: modules that the file lacks and that keep their initial values, of HEADS.
      skipped: tensors of the file that the encoder has no use for.
    """

    params: PyTree
    fresh: tuple[str, ...]
    skipped: tuple[str, ...]


def load_pretrained(folder: str | Path, params: Mapping[str, PyTree], *, num_heads: int) -> Loaded:
    """Fills an encoder with the weights of a folder; mixtures of experts are upcycled from the dense weights.

    Args:
      folder: with config.json and model.safetensors, or its index and shards.
      params: initial params of a `models.Bert`, with any kind of feed-forward part.
      num_heads: of the encoder.

    Raises:
      BadInput: if the folder can't be read, is of another architecture or size, or lacks tensors, holds ones that it
        shouldn't or that have another shape; all of them are listed.
    """
    shapes = dense_shapes(params)
    _check_config(Path(folder) / CONFIG, read_config(folder), shapes, num_heads)
    tensors = _name_plainly(folder, read_tensors(folder))
    wanted = {path: (*_tensor_of(path), shape) for path, shape in flatten_dict(shapes).items()}
    fresh = tuple(
        head for head in HEADS if not any(name in tensors for path, (name, *_) in wanted.items() if path[0] == head)
    )
    skipped = tuple(sorted(name for name in tensors if name.startswith(SKIPPED)))
    loaded = {path: row for path, row in wanted.items() if path[0] not in fresh}
    needed = {name: shape.shape[::-1] if transposed else shape.shape for name, transposed, shape in loaded.values()}
    check_tensors(folder, {name: tensor for name, tensor in tensors.items() if name not in skipped}, needed)
    dense = {
        path: jnp.asarray(tensors[name].T if is_transposed else tensors[name], shape.dtype)
        for path, (name, is_transposed, shape) in loaded.items()
    }
    return Loaded(upcycle({**unflatten_dict(dense), **{head: params[head] for head in fresh}}, params), fresh, skipped)


def _name_plainly(folder, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    plain = {name: _plain_name(name) for name in sorted(tensors)}
    names = list(plain.values())
    twice = [name for name in plain if names.count(plain[name]) > 1]
    if twice:
        raise BadInput(f'the weights in {folder} name the same parameters twice: {", ".join(twice)}')
    return {plain[name]: tensor for name, tensor in tensors.items()}


def _plain_name(name: str) -> str:
    name = name.removeprefix(PREFIX)
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _tensor_of(path: tuple[str, ...]) -> tuple[str, bool]:
    """(name of the tensor behind a dense parameter, whether it is its transpose)."""
    *modules, parameter = path
    if modules[0].startswith('layer_'):
        index = modules[0].removeprefix('layer_')
        module = f'encoder.layer.{index}.{LAYER_MODULES["/".join(modules[1:])]}'
    else:
        module = (MODULES | TABLES)['/'.join(modules)]
    # A linear layer is stored as [outputs, inputs].
    return f'{module}.{"bias" if parameter == "bias" else "weight"}', parameter == 'kernel'


def _check_config(path: Path, config: Mapping[str, Any], shapes, num_heads: int) -> None:
    tables = shapes['embeddings']
    vocab_size, width = tables['tokens']['embedding'].shape
    # What a shape would tell as well is told here in the words of the architecture, not as a list of tensors.
    required = {
        'model_type': 'bert',
        'hidden_act': 'gelu',
        'position_embedding_type': 'absolute',
        'layer_norm_eps': 1e-12,
        'num_attention_heads': num_heads,
        'num_hidden_layers': sum(name.startswith('layer_') for name in shapes),
        'hidden_size': width,
        'intermediate_size': shapes['layer_0']['ffn']['up']['bias'].shape[0],
        'max_position_embeddings': tables['positions']['embedding'].shape[0],
        'type_vocab_size': tables['segments']['embedding'].shape[0],
        'vocab_size': vocab_size,
    }
    differing = [
        f'{key} is {config[key]!r}, the model needs {value!r}'
        for key, value in required.items()
        if key in config and config[key] != value
    ]
    if 'num_attention_heads' not in config:
        differing.append('num_attention_heads is missing')
    if differing:
        raise BadInput(f'{path} is of another model: {"; ".join(differing)}')
