"""Folders of weights: one file or shards of any dtype. A wrong folder is refused in one line."""

import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file as save_jax_file

from pad_jax.errors import BadInput
from pad_jax.pretrained import weights
from pad_jax.pretrained.weights import check_tensors, find_vocabulary, find_weights, read_weights
from tests.pretrained.small_folder import make_tensors, write_folder


def test_reads_half_precision(tmp_path):
    tensors = {'a': jnp.array([1.5], jnp.bfloat16), 'b': jnp.array([2.5], jnp.float16)}
    save_jax_file(tensors, tmp_path / 'model.safetensors')
    assert {name: float(tensor[0]) for name, tensor in read_weights(tmp_path).items()} == {'a': 1.5, 'b': 2.5}


def refusal(function, folder):
    with pytest.raises(BadInput) as caught:
        function(folder)
    message = str(caught.value)
    assert '\n' not in message and str(folder) in message
    return message


def test_a_pickle_is_never_opened(tmp_path):
    # Unpickling this would raise something else.
    (tmp_path / 'pytorch_model.bin').write_bytes(b'cos\nabort\n(tR.')
    message = refusal(read_weights, tmp_path)
    for part in ('only as a pickle, pytorch_model.bin', "glob('pytorch_model.bin')", '.contiguous()', 'weights_only'):
        assert part in message
    (tmp_path / 'pytorch_model.bin').rename(tmp_path / 'model.bin')
    assert "glob('model.bin')" in refusal(read_weights, tmp_path)
    write_folder(tmp_path, {'a': np.ones(2, np.float32)})
    assert list(read_weights(tmp_path)) == ['a']


def test_the_conversion_of_a_pickle_in_parts_takes_them_all(tmp_path):
    for part in (1, 2):
        (tmp_path / f'pytorch_model-0000{part}-of-00002.bin').touch()
    message = refusal(read_weights, tmp_path)
    assert "glob('pytorch_model*.bin')" in message and 'pytorch_model-00002-of-00002.bin' in message
    command = message.split('are installed: ')[1].removeprefix('python -c "').removesuffix('"')
    compile(command, 'the command', 'exec')


def test_nothing_there(tmp_path):
    assert 'does not exist' in refusal(read_weights, tmp_path / 'no')
    assert 'is not a folder with a vocabulary' in refusal(find_vocabulary, tmp_path / 'no')
    assert 'holds no weights: model.safetensors, model.safetensors.index.json or a single' in refusal(
        read_weights, tmp_path
    )
    assert 'is not a folder with a vocabulary: tokenizer.json or vocab.txt' in refusal(find_vocabulary, tmp_path)


def test_a_single_file_may_have_any_name(tmp_path):
    write_folder(tmp_path, {'a': np.ones(2, np.float32)})
    (tmp_path / 'model.safetensors').rename(tmp_path / 'resnet18-f37072fd.safetensors')
    assert list(read_weights(tmp_path)) == list(read_weights(tmp_path)) == ['a']
    shutil.copy(tmp_path / 'resnet18-f37072fd.safetensors', tmp_path / 'resnet50.safetensors')
    message = refusal(read_weights, tmp_path)
    for part in ('holds resnet18-f37072fd.safetensors, resnet50.safetensors and neither', 'name the file itself'):
        assert part in message
    assert list(read_weights(tmp_path / 'resnet50.safetensors')) == ['a']
    shutil.copy(tmp_path / 'resnet50.safetensors', tmp_path / 'model.safetensors')
    assert list(read_weights(tmp_path)) == ['a']


def test_a_file_that_only_has_the_name(tmp_path):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(b'<html><body>404</body></html>')
    assert 'is not safetensors, or is damaged' in refusal(read_weights, path)
    # What torch.save writes now, and what it once wrote.
    for start in (b'PK\x03\x04', b'\x80\x02'):
        path.write_bytes(start + b'archive/data.pkl')
        assert 'is not safetensors but a pickle' in refusal(read_weights, path)


@pytest.mark.parametrize(
    ('tensor', 'says'),
    [
        (np.ones(2, np.int8), 'not floating-point: b int8'),
        (np.ones(2, bool), 'not floating-point: b bool'),
        (np.ones(2, np.complex64), 'not floating-point: b complex64'),
        (np.array([1, np.nan], np.float32), 'infinite or NaN: b'),
        (np.array([np.inf, 1], jnp.bfloat16), 'infinite or NaN: b'),
    ],
)
def test_weights_are_finite_floating_point_numbers(tensor, says):
    fine = {'a': np.ones(2, np.float16), 'c': np.ones(2, jnp.bfloat16)}
    check_tensors('here', fine, {'a': (2,), 'c': (2,)})
    with pytest.raises(BadInput) as caught:
        check_tensors('here', {**fine, 'b': tensor}, {'a': (2,), 'b': (2,), 'c': (2,)})
    assert str(caught.value) == f'the weights in here do not fit the model; {says}'


def test_damaged_files(tmp_path):
    write_folder(tmp_path, make_tensors())
    path = tmp_path / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    assert 'or is damaged or incomplete' in refusal(read_weights, tmp_path)
    path.write_bytes(b'')
    assert 'or is damaged or incomplete' in refusal(read_weights, tmp_path)


def test_damaged_index(tmp_path):
    write_folder(tmp_path, make_tensors(), num_shards=2)
    index = tmp_path / 'model.safetensors.index.json'
    (tmp_path / 'model-00002-of-00002.safetensors').unlink()
    assert 'model-00002-of-00002.safetensors cannot be read: No such file' in refusal(read_weights, tmp_path)
    for value in ({}, {'weight_map': []}, {'weight_map': {'a': 1}}, {'weight_map': {'a': '../a.safetensors'}}):
        index.write_text(json.dumps(value))
        assert 'must hold a weight_map' in refusal(read_weights, tmp_path)


def test_vocabulary(tmp_path):
    (tmp_path / 'vocab.txt').write_text('[PAD]\n')
    assert find_vocabulary(tmp_path) == tmp_path / 'vocab.txt'
    (tmp_path / 'tokenizer.json').write_text('{}')
    assert find_vocabulary(str(tmp_path)) == tmp_path / 'tokenizer.json'


def test_a_name_is_looked_up_without_an_import(tmp_path, monkeypatch):
    package = tmp_path / 'weights_of_a_test'
    package.mkdir()
    (package / '__init__.py').write_text('raise RuntimeError("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(weights.PACKAGES, 'test', package.name)
    assert find_weights('test') == package / 'model' and package.name not in sys.modules
    assert find_weights(str(tmp_path / 'test')) == tmp_path / 'test'
    monkeypatch.setitem(weights.PACKAGES, 'test', 'no_such_package_is_there')
    with pytest.raises(BadInput, match=r"'test' are not installed. Run: make weights, or .* no-such-package-is-there"):
        find_weights('test')
