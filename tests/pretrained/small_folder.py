"""A folder of weights as Hugging Face lays it out, for an encoder of two layers, width 4 and hidden width 6."""

import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    'model_type': 'bert',
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-12,
    'num_attention_heads': 2,
    'num_hidden_layers': 2,
    'hidden_size': 4,
    'intermediate_size': 6,
    'max_position_embeddings': 8,
    'type_vocab_size': 2,
    'vocab_size': 11,
}
SHAPES = {
    'embeddings.word_embeddings.weight': (11, 4),
    'embeddings.position_embeddings.weight': (8, 4),
    'embeddings.token_type_embeddings.weight': (2, 4),
    'embeddings.LayerNorm.weight': (4,),
    'embeddings.LayerNorm.bias': (4,),
    'pooler.dense.weight': (4, 4),
    'pooler.dense.bias': (4,),
}
# Linear layers are [outputs, inputs].
LAYER_SHAPES = {
    'attention.self.query.weight': (4, 4),
    'attention.self.query.bias': (4,),
    'attention.self.key.weight': (4, 4),
    'attention.self.key.bias': (4,),
    'attention.self.value.weight': (4, 4),
    'attention.self.value.bias': (4,),
    'attention.output.dense.weight': (4, 4),
    'attention.output.dense.bias': (4,),
    'attention.output.LayerNorm.weight': (4,),
    'attention.output.LayerNorm.bias': (4,),
    'intermediate.dense.weight': (6, 4),
    'intermediate.dense.bias': (6,),
    'output.dense.weight': (4, 6),
    'output.dense.bias': (4,),
    'output.LayerNorm.weight': (4,),
    'output.LayerNorm.bias': (4,),
}


def make_tensors():
    """Every tensor by name, float32, all values different."""
    shapes = SHAPES | {f'encoder.layer.{i}.{name}': shape for i in range(2) for name, shape in LAYER_SHAPES.items()}
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder, tensors, config=CONFIG, num_shards=0):
    """Writes one file, or an index and that many shards; returns the folder."""
    (folder / 'config.json').write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    if not num_shards:
        save_file(tensors, folder / 'model.safetensors')
        return folder
    index = {}
    for shard in range(num_shards):
        name = f'model-{shard + 1:05}-of-{num_shards:05}.safetensors'
        part = dict(list(tensors.items())[shard::num_shards])
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': index}))
    return folder
