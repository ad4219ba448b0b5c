"""Fixtures of whole runs, and commands inside of this process; tests/conftest.py has all tests know them."""

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import sys

import jax
import pytest

import train as train_command
from pad_jax import __main__ as commands
from pad_jax.models import ENCODERS, MODELS
from pad_jax.training import setup
from pad_jax.training.cli import exit_status
from pad_jax.training.trainer import train
from tests.training.tiny import ONE_BLOCK, one_device, small_config
from tests.training.tiny_texts import ONE_LAYER, TEXT_ROUNDS, small_text_config, write_texts


@pytest.fixture
def one_block(monkeypatch):
    """Runs of ResNet-10 train a network of one block instead."""
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)


@pytest.fixture
def one_layer(monkeypatch):
    """Runs of the tiny BERT train an encoder of one narrow layer instead, which compiles three times faster."""
    monkeypatch.setitem(ENCODERS, 'bert_tiny', ONE_LAYER)


@contextlib.contextmanager
def compiled_quickly():
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', True)
    try:
        yield
    finally:
        jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module')
def traced_once():
    """Equal networks are traced once in a file of tests, which for large ones takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, 'abstract_variables', functools.cache(setup.abstract_variables))
        yield


def make_once(tmp_path_factory, name, make):
    """Call `make(path)` in the first process of tests that needs it; return the path."""
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent  # of all workers
    with (root / f'{name}.made').open('a') as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        if not (root / f'{name}.made').stat().st_size:
            make(root / name)
            marker.write('yes')
    return root / name


@pytest.fixture(scope='session')
def finished_run(tmp_path_factory):
    """The workdir of a finished run with a round of the partition in the middle of it. Tests must not change it."""

    def make(workdir):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, 'resnet10', ONE_BLOCK)
            train(small_config(**IN_ROUNDS), workdir, devices=one_device())

    return make_once(tmp_path_factory, 'finished_run', make)


IN_ROUNDS = {'partition__rounds': 2, 'partition__start_step': 3, 'partition__every_steps': 2}


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
    """A folder of everything that `tiny_texts` can write. Tests must not change it."""
    return make_once(tmp_path_factory, 'texts', write_texts)


@pytest.fixture(scope='session')
def finished_text_run(tmp_path_factory, texts):
    """As `finished_run`, of texts of one's own in two classes."""

    def make(workdir):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ENCODERS, 'bert_tiny', ONE_LAYER)
            train(small_text_config(texts, **TEXT_ROUNDS), workdir, devices=one_device())

    return make_once(tmp_path_factory, 'finished_text_run', make)


def contents(folder):
    """Everything below a folder; files with their bytes and times."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) if path.is_file() else ''
        for path in folder.rglob('*')
    }


def run_command(command, *flags):
    """(status, stdout, stderr) of `train` or of a verb, inside of this process."""
    main = train_command.main if command == 'train' else commands.main
    out, err = io.StringIO(), io.StringIO()
    arguments = ['program', *([] if command == 'train' else [command]), *map(str, flags)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, 'argv', arguments)
        status = exit_status(main)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def refused(tmp_path):
    """`refused(command, *flags)`: runs it, checks how it is refused and that tmp_path is unchanged; the line."""

    def run(command, *flags):
        before = contents(tmp_path)
        status, out, err = run_command(command, *flags)
        assert status == 2 and out == '', err
        assert err.count('\n') == 1 and err.startswith('error: ') and len(err) > 20, err
        assert contents(tmp_path) == before
        return err

    return run
