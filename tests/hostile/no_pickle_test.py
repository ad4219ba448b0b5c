"""Nothing that a file holds is ever run: no reader unpickles, and nothing in the package could."""

import ast
import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest

import pad_jax
from pad_jax.errors import BadInput
from pad_jax.pretrained.weights import read_weights
from tests.hostile.fuzz_test import check_seeds, try_reader
from tests.hostile.readers import PHOTOS_PLACE, READERS, readers_of_sets

PACKAGE = Path(pad_jax.__file__).parent
# Modules whose readers run what they read, or may; and functions of others that do.
RUNNING_MODULES = {
    'pickle',
    'cPickle',
    '_pickle',
    'dill',
    'cloudpickle',
    'joblib',
    'marshal',
    'shelve',
    'yaml',
    'torch',
}
RUNNING_MODULES |= {'runpy', 'code', 'codeop'}
RUNNING_NAMES = {'eval', 'exec', 'compile', '__import__'}
RUNNING_ATTRIBUTES = {'exec_module', 'import_module', 'allow_pickle', 'fromfile', 'extractall', 'read_pickle'}
# A config file is the user's own Python, as train.py is.
# Configs are Python; the converter to ONNX is imported by its name; NumPy doesn't unpickle unless it is told to.
ALLOWED = {
    ('training/configuration.py', 'exec_module'),
    ('deploy/onnx.py', 'import_module'),
    ('deploy/verification.py', 'np.load'),
}


def dangers(source: str) -> set[str]:
    """What in a module's source can run what it reads."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.name.split('.')[0] in RUNNING_MODULES}
            case ast.ImportFrom(module=str(module)) if module.split('.')[0] in RUNNING_MODULES:
                found.add(module)
            case ast.Call(func=ast.Name(id=name)) if name in RUNNING_NAMES:
                found.add(name)
            case ast.Attribute(attr=name) if name in RUNNING_ATTRIBUTES:
                found.add(name)
            case ast.Attribute(value=ast.Name(id='np' | 'numpy'), attr='load'):
                found.add('np.load')
            case ast.keyword(arg='allow_pickle'):
                found.add('allow_pickle')
    return found


@pytest.mark.parametrize(
    ('source', 'name'),
    [
        ('import pickle', 'pickle'),
        ('def f():\n    from torch import load', 'torch'),
        ('np.load(path, allow_pickle=False)', 'np.load'),
        ('read(path, allow_pickle=True)', 'allow_pickle'),
        ('eval(text)', 'eval'),
        ('tar.extractall(folder)', 'extractall'),
        ('from yaml import load', 'yaml'),
        ('importlib.import_module(name)', 'import_module'),
    ],
)
def test_the_check_sees_what_it_looks_for(source, name):
    assert name in dangers(source)
    assert dangers('import json\nre.compile(x)\nmodel.eval()\nast.literal_eval(x)') == set()


def test_no_module_can_run_what_it_reads():
    files = sorted(PACKAGE.rglob('*.py'))
    assert len(files) > 100
    found = {(str(path.relative_to(PACKAGE)), name) for path in files for name in dangers(path.read_text())}
    assert found == ALLOWED


class Mark:
    """Pickled, it leaves a mark where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_the_place_of_any_file_stays_shut(tmp_path, monkeypatch):
    """Every reader is given one, as bytes and as an array of numpy, with unpickling poisoned besides."""
    marked = tmp_path / 'marked'
    array = tmp_path / 'array.npy'
    np.save(array, np.array([Mark(marked)], object), allow_pickle=True)
    pickles = [pickle.dumps(Mark(marked), protocol) for protocol in (0, 2, 5)] + [array.read_bytes()]
    pickle.loads(pickles[0])
    assert marked.exists()  # so it would be seen
    marked.unlink()

    def refuse(*arguments, **options):
        raise AssertionError('unpickled')

    for name in ('load', 'loads', 'Unpickler', '_load', '_loads', '_Unpickler'):
        monkeypatch.setattr(pickle, name, refuse)
    readers = READERS + readers_of_sets()
    check_seeds(readers)  # good files need none of it either
    for reader in readers:
        for content in pickles:
            try_reader(reader, content)
    assert not marked.exists()


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'resnet18.pth', 'model.safetensors'])
def test_pickled_weights_are_refused_with_how_to_convert_them(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({'a': np.ones(2)}))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(BadInput, match='pickle') as caught:
            read_weights(path)
        assert 'safetensors' in str(caught.value)


def test_features_cannot_name_code_to_import(monkeypatch):
    """TFDS imports the module of a feature; one of somebody else is refused before it can."""
    asked, ask = [], importlib.import_module

    def remember(name, package=None):
        asked.append(name)
        return ask(name, package)

    reader = next(reader for reader in readers_of_sets() if reader.name == str(PHOTOS_PLACE / 'features.json'))
    (content,) = reader.seeds()
    monkeypatch.setattr(importlib, 'import_module', remember)
    for evil in (b'antigravity.Image', b'this.x', b'tests.evil.Feature'):
        says = try_reader(reader, content.replace(b'tensorflow_datasets.core.features.image_feature.Image', evil))
        assert f'refusing to import {evil.decode()!r}' in says
    reader = next(reader for reader in readers_of_sets() if reader.name == str(PHOTOS_PLACE / 'dataset_info.json'))
    (content,) = reader.seeds()
    assert try_reader(reader, content.replace(b'"tests.data.photos"', b'"antigravity"')) == ''  # only a note
    assert not {'antigravity', 'this', 'tests.evil'} & set(asked)
