"""`load_exported` serves sound exports and refuses all others in one line."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

import pad_jax
from pad_jax.deploy.serving import FORMAT, MANIFEST, NETWORK, WEIGHTS, write_manifest
from pad_jax.errors import BadInput
from tests.training.tiny import ROOT

IMAGES = np.zeros((2, 8, 8, 1), np.float32)


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported.folder, tmp_path / 'export')


def flip_bit(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def rewrite(folder, **changes):
    """A manifest that is whole, but says something else."""
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    write_manifest(folder, {name: value for name, value in (content | changes).items() if name != 'checksum'})


def change_format(folder, difference):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {'format': FORMAT + difference}))


def break_network(folder):
    (folder / NETWORK).write_bytes(b'no network')
    rewrite(folder)


TAMPERED = {
    'a folder that is gone': (lambda folder: shutil.rmtree(folder), 'does not exist'),
    'no manifest': (lambda folder: (folder / MANIFEST).unlink(), 'it has no manifest.json'),
    'no JSON': (lambda folder: (folder / MANIFEST).write_text('{'), 'is not JSON'),
    'JSON of something else': (lambda folder: (folder / MANIFEST).write_text('[]'), 'is not the manifest'),
    'a newer format': (lambda folder: change_format(folder, 1), f'reads {FORMAT}: update pad_jax'),
    'an older format': (lambda folder: change_format(folder, -1), f'format {FORMAT - 1}, .*: export the run again'),
    'a changed manifest': (lambda folder: flip_bit(folder, MANIFEST), 'has been changed|not JSON'),
    'a manifest without inputs': (lambda folder: rewrite(folder, inputs=None), 'has no inputs'),
    'changed weights': (lambda folder: flip_bit(folder, WEIGHTS), 'weights.safetensors.* has been changed'),
    'a changed network': (lambda folder: flip_bit(folder, NETWORK), 'network.stablehlo.* has been changed'),
    'missing weights': (lambda folder: (folder / WEIGHTS).unlink(), 'weights.safetensors.* is missing'),
    'no network': (break_network, 'made by jax .* cannot be read'),
}


@pytest.mark.parametrize('what', TAMPERED)
def test_what_is_not_whole_is_refused(folder, what):
    tamper, words = TAMPERED[what]
    tamper(folder)
    with pytest.raises(BadInput, match=words) as caught:
        pad_jax.load_exported(folder)
    assert '\n' not in str(caught.value) and str(folder) in str(caught.value)


def test_inputs_are_checked(exported, exported_texts):
    network = pad_jax.load_exported(str(exported.folder))
    ids = np.zeros((2, 5), np.int32)
    text, valid = pad_jax.load_exported(exported_texts.folder), ids == 0
    for call, words in (
        (lambda: network(), 'takes image, each once; got 0 without a name'),
        (lambda: network(IMAGES, IMAGES), 'got 2 without'),
        (lambda: network(IMAGES, image=IMAGES), 'got 1 without a name, image'),
        (lambda: network(IMAGES.astype(np.uint8)), r'image must be float32\[batch, 8, 8, 1\], got uint8\[2, 8, 8, 1\]'),
        (lambda: network(IMAGES[0]), r'got float32\[8, 8, 1\]'),
        (lambda: network(IMAGES[:, :7]), r'of shape \[batch, 8, 8, 1\], got \[2, 7, 8, 1\]'),
        (lambda: text(ids, ids, valid[:1]), r'valid must be of shape \[2, 5\]'),
        (lambda: text(ids, ids[:, :4], valid), r'segments must be of shape \[2, 5\]'),
        (lambda: text(*np.zeros((2, 2, 17), np.int32), np.ones((2, 17), bool)), r'length at most 16, got \[2, 17\]'),
        (lambda: text(ids[:, :0], ids[:, :0], valid[:, :0]), r'got \[2, 0\]'),
        (lambda: text(ids + 32, ids, valid), r'tokens must be in \[0, 32\), got 32'),
        (lambda: text(ids, ids - 1, valid), r'segments must be in \[0, 2\), got -1'),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_what_is_served(exported):
    network = pad_jax.load_exported(exported.folder)
    assert network.class_names == tuple('0123456789')
    assert network(IMAGES[:0]).shape == (0, 10)
    found = network(image=jax.numpy.asarray(IMAGES))
    assert isinstance(found, jax.Array) and found.dtype == np.float32
    np.testing.assert_array_equal(found, network(IMAGES))
    np.testing.assert_allclose(jax.jit(network)(IMAGES), found, rtol=1e-5)


def test_the_snippet_of_export_md(exported, tmp_path, monkeypatch):
    (tmp_path / 'exports').mkdir()
    (tmp_path / 'exports' / 'mine').symlink_to(exported.folder)
    monkeypatch.chdir(tmp_path)
    code = re.search(r'^```python\n(.*?)^```$', (ROOT / 'docs' / 'export.md').read_text(), re.MULTILINE | re.DOTALL)[1]
    # The page's images are photos, these are digits.
    namespace = {}
    exec(code.replace('(3, 32, 32, 3)', '(3, 8, 8, 1)'), namespace)
    assert namespace['logits'].shape == (3, 10) and namespace['logits'].dtype == np.float32
