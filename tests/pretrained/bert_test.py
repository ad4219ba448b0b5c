"""Names and shapes of the BERT family: what loads, what is said, what is refused."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pad_jax.errors import BadInput
from pad_jax.models.bert import Bert
from pad_jax.pretrained import load_pretrained
from tests.pretrained.small_folder import CONFIG, make_tensors, write_folder

MODEL = Bert(vocab_size=11, num_layers=2, width=4, num_heads=2, ffn_width=6, max_length=8, num_outputs=3)


@functools.cache
def initial_params():
    tokens, valid = np.zeros((1, 2), np.int32), np.ones((1, 2), bool)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens, valid)['params']
    return jax.tree.map(lambda leaf: np.full(leaf.shape, -7, leaf.dtype), shapes)


def load(folder, num_heads=2, **options):
    return load_pretrained(folder, initial_params(), {}, num_heads=num_heads, **options)


def expected_params(tensors):
    """Our names, written out, with every linear layer turned around."""

    def linear(name):
        return {'kernel': tensors[f'{name}.weight'].T, 'bias': tensors[f'{name}.bias']}

    def norm(name):
        return {'scale': tensors[f'{name}.weight'], 'bias': tensors[f'{name}.bias']}

    def layer(name):
        return {
            'attention': {
                'query': linear(f'{name}.attention.self.query'),
                'key': linear(f'{name}.attention.self.key'),
                'value': linear(f'{name}.attention.self.value'),
                'output': linear(f'{name}.attention.output.dense'),
            },
            'attention_norm': norm(f'{name}.attention.output.LayerNorm'),
            'ffn': {'up': linear(f'{name}.intermediate.dense'), 'down': linear(f'{name}.output.dense')},
            'ffn_norm': norm(f'{name}.output.LayerNorm'),
        }

    return {
        'embeddings': {
            'tokens': {'embedding': tensors['embeddings.word_embeddings.weight']},
            'positions': {'embedding': tensors['embeddings.position_embeddings.weight']},
            'segments': {'embedding': tensors['embeddings.token_type_embeddings.weight']},
            'norm': norm('embeddings.LayerNorm'),
        },
        'layer_0': layer('encoder.layer.0'),
        'layer_1': layer('encoder.layer.1'),
        'pooler': linear('pooler.dense'),
        'classifier': initial_params()['classifier'],
    }


def assert_same(found, expected):
    found, expected = flatten_dict(found, sep='/'), flatten_dict(expected, sep='/')
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == np.float32, path
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize('num_shards', [0, 2])
def test_every_tensor_finds_its_place(tmp_path, num_shards):
    tensors = make_tensors()
    constants = {'embeddings.position_ids': np.arange(8)[None]}
    loaded = load(write_folder(tmp_path, tensors | constants, num_shards=num_shards))
    assert_same(loaded.params, expected_params(tensors))
    assert loaded.fresh == ('classifier',)


def test_checkpoints_of_a_whole_model(tmp_path):
    """With the prefix, the old names of norms, the heads of pretraining, half precision and no pooler."""
    tensors = make_tensors()
    stored = {
        f'bert.{name}'.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): value
        for name, value in tensors.items()
        if not name.startswith('pooler')
    }
    heads = {
        'cls.predictions.bias': np.zeros(11, np.float32),
        'cls.predictions.transform.LayerNorm.gamma': np.zeros(4, np.float32),
    }
    half = {name: value.astype(np.float16) for name, value in (stored | heads).items()}
    loaded = load(write_folder(tmp_path, half))
    expected = expected_params({name: value.astype(np.float16).astype(np.float32) for name, value in tensors.items()})
    assert_same(loaded.params, expected | {'pooler': initial_params()['pooler']})
    assert loaded.fresh == ('pooler', 'classifier')


def test_a_classifier_that_fits_is_taken(tmp_path):
    weight, bias = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3, dtype=np.float32)
    loaded = load(write_folder(tmp_path, make_tensors() | {'classifier.weight': weight, 'classifier.bias': bias}))
    assert_same(loaded.params['classifier'], {'kernel': weight.T, 'bias': bias})
    assert loaded.fresh == ()


@pytest.mark.parametrize(
    'names, order',
    [
        (('b', 'A', 'not c'), [1, 0, 2]),  # the file's outputs are b, a and c
        (('LABEL_0', 'LABEL_1', 'LABEL_2'), [0, 1, 2]),  # no names
        (('b', 'a', 'd'), None),
        (('a', 'b'), None),
    ],
)
def test_outputs_of_a_classifier_are_matched_by_name(tmp_path, names, order):
    size = len(names)
    weight, bias = np.arange(4 * size, dtype=np.float32).reshape(size, 4), np.arange(size, dtype=np.float32)
    heads = {'classifier.weight': weight, 'classifier.bias': bias}
    folder = write_folder(tmp_path, make_tensors() | heads, CONFIG | {'id2label': dict(enumerate(names))})
    loaded = load(folder, class_names=('a', 'b', 'not_c'))
    if order is None:
        assert loaded.fresh == ('classifier',)
        assert_same(loaded.params['classifier'], initial_params()['classifier'])
    else:
        assert_same(loaded.params['classifier'], {'kernel': weight[order].T, 'bias': bias[order]})


def test_the_prefix_of_parallel_training_is_removed_and_no_parameter_has_two_names(tmp_path):
    tensors = make_tensors()
    loaded = load(write_folder(tmp_path, {f'module.bert.{name}': value for name, value in tensors.items()}))
    assert_same(loaded.params, expected_params(tensors))
    bias = 'encoder.layer.0.output.dense.bias'
    tensors = make_tensors()
    write_folder(tmp_path, tensors | {f'bert.{bias}': tensors[bias] + 1})
    with pytest.raises(BadInput, match=f'name the same parameter twice: bert.{bias}, {bias}$'):
        load(tmp_path)


def test_lists_what_is_missing_too_many_and_misshapen(tmp_path):
    tensors = make_tensors()
    del tensors['encoder.layer.1.output.dense.bias'], tensors['pooler.dense.bias']
    tensors['encoder.layer.2.output.dense.bias'] = np.zeros(4, np.float32)
    tensors['pooler.dense.weight'] = np.zeros((4, 3), np.float32)
    # The transpose of what it should be.
    tensors['encoder.layer.0.intermediate.dense.weight'] = np.zeros((4, 6), np.float32)
    write_folder(tmp_path, tensors)
    with pytest.raises(BadInput) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f'the weights in {tmp_path} do not fit the model; '
        'missing: encoder.layer.1.output.dense.bias, pooler.dense.bias; '
        'extra: encoder.layer.2.output.dense.bias; '
        'misshapen: encoder.layer.0.intermediate.dense.weight [4, 6] instead of [6, 4], '
        'pooler.dense.weight [4, 3] instead of [4, 4]'
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_attention_heads': 1}, 'num_attention_heads is 1, the model needs 2'),
        ({'model_type': 'roberta'}, "model_type is 'roberta', the model needs 'bert'"),
        ({'hidden_act': 'relu'}, "hidden_act is 'relu', the model needs 'gelu'"),
        ({'position_embedding_type': 'relative_key'}, "position_embedding_type is 'relative_key'"),
        ({'layer_norm_eps': 1e-5}, 'layer_norm_eps is 1e-05, the model needs 1e-12'),
        ({'num_attention_heads': None}, 'num_attention_heads is None, the model needs 2'),
    ],
)
def test_refuses_another_architecture(tmp_path, changes, message):
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    write_folder(tmp_path, make_tensors(), config)
    with pytest.raises(BadInput, match=message):
        load(tmp_path)
