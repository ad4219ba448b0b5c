"""Runs as those of the tests of training, and one export of each kind of network."""

import pytest

from pad_jax.deploy.export import export_workdir
from pad_jax.models import ENCODERS, MODELS
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ONE_BLOCK
from tests.training.tiny_texts import ONE_LAYER

# The fresh process too.
QUICKLY = ('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')


def export_quickly(run, out, networks, name, stand_in):
    """Exports a run whose network is another one by that name."""
    with pytest.MonkeyPatch.context() as patch, compiled_quickly():
        patch.setenv(*QUICKLY)
        patch.setitem(networks, name, stand_in)
        return export_workdir(run, out)


@pytest.fixture(scope='session')
def exported(finished_run, tmp_path_factory):
    """The export of a run of images. Tests must not change its folder."""
    return export_quickly(finished_run, tmp_path_factory.mktemp('exported') / 'images', MODELS, 'resnet10', ONE_BLOCK)


@pytest.fixture(scope='session')
def exported_texts(finished_text_run, tmp_path_factory):
    """The same of a run of texts."""
    out = tmp_path_factory.mktemp('exported') / 'texts'
    return export_quickly(finished_text_run, out, ENCODERS, 'bert_tiny', ONE_LAYER)
