"""Weights that a package carries are found by name, and the line says how to install them."""

import sys

import pytest

from pad_jax.errors import BadInput
from pad_jax.pretrained import packaged


def test_a_name_is_looked_up_without_an_import(tmp_path, monkeypatch):
    package = tmp_path / 'weights_of_a_test'
    package.mkdir()
    (package / '__init__.py').write_text('raise RuntimeError("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(packaged.PACKAGES, 'test', package.name)
    assert packaged.find_weights('test') == package / 'model'
    assert package.name not in sys.modules


def test_what_is_not_installed(monkeypatch):
    monkeypatch.setitem(packaged.PACKAGES, 'test', 'no_such_package_is_there')
    with pytest.raises(BadInput, match=r"'test' are not installed: make weights, or .* no-such-package-is-there"):
        packaged.find_weights('test')


def test_any_other_value_is_a_folder(tmp_path):
    assert packaged.find_weights(tmp_path) == tmp_path
    assert packaged.find_weights(str(tmp_path / 'minilm')) == tmp_path / 'minilm'
