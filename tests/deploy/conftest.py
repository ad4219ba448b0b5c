"""Runs as those of the tests of training, and one export of each kind of network."""

import pytest

from pad_jax.deploy.export import export_workdir
from pad_jax.models import ENCODERS, MODELS
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ONE_BLOCK
from tests.training.tiny_texts import ONE_LAYER

# The fresh process too.
QUICKLY = ('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')


@pytest.fixture(scope='session')
def exported(finished_run, tmp_path_factory):
    """The export of a run of images. Tests must not change its folder."""
    with pytest.MonkeyPatch.context() as patch, compiled_quickly():
        patch.setenv(*QUICKLY)
        patch.setitem(MODELS, 'resnet10', ONE_BLOCK)
        return export_workdir(finished_run, tmp_path_factory.mktemp('exported') / 'images')


@pytest.fixture(scope='session')
def exported_texts(finished_text_run, tmp_path_factory):
    """The same of a run of texts."""
    with pytest.MonkeyPatch.context() as patch, compiled_quickly():
        patch.setenv(*QUICKLY)
        patch.setitem(ENCODERS, 'bert_tiny', ONE_LAYER)
        return export_workdir(finished_text_run, tmp_path_factory.mktemp('exported') / 'texts')
