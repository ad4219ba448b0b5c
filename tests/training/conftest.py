import pytest

from pad_jax.models import MODELS
from pad_jax.training.trainer import train
from tests.training.tiny import ONE_BLOCK, one_device, small_config


@pytest.fixture
def one_block(monkeypatch):
    """Runs of ResNet-10 train a network of one block instead."""
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)


@pytest.fixture(scope='session')
def finished_run(tmp_path_factory):
    """The workdir of a finished run with a round of the partition in the middle of it. Tests must not change it."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, 'resnet10', ONE_BLOCK)
        train(small_config(**IN_ROUNDS), workdir, devices=one_device())
    return workdir


IN_ROUNDS = {'partition__rounds': 2, 'partition__start_step': 3, 'partition__every_steps': 2}
