"""The commands on input that is right, and whole processes that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import train as train_command
from pad_jax import __main__ as commands
from pad_jax.errors import BadInput
from pad_jax.training.cli import exit_status
from pad_jax.training.config import load_config
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.tiny import DIGITS, ROOT, SMALL, one_device, small_config
from tests.training.tiny_photos import write_classes
from tests.training.trainer_test import assert_same_run

FLAGS = [f'--config.{name}={value}' for name, value in SMALL.items()]


@pytest.fixture
def call(monkeypatch, capfd):
    """`call(main, *flags)`: stdout of a command that must succeed."""

    def run(main, *flags):
        monkeypatch.setattr(sys, 'argv', ['program', *map(str, flags)])
        capfd.readouterr()
        assert exit_status(main) == 0
        return capfd.readouterr().out

    return run


@pytest.mark.usefixtures('one_block')
def test_train_evaluate_count_and_inspect(call, tmp_path):
    """On the eight devices of this process."""
    workdir = tmp_path / 'deep' / 'run'
    assert call(train_command.main, f'--config={DIGITS}', f'--workdir={workdir}', *FLAGS) == ''
    found = json.loads(call(commands.main, 'evaluate', f'--workdir={workdir}'))
    last = read_metrics(workdir)[-1]
    assert last['split'] == 'eval' and found['step'] == last['step'] == 6
    assert found['accuracy'] == last['accuracy']
    # Added up on one device instead of eight.
    assert found['loss'] == pytest.approx(last['loss'], rel=1e-5)
    counted = json.loads(call(commands.main, 'count', f'--config={DIGITS}', *FLAGS))
    partition = json.loads((workdir / 'partition.json').read_text())
    assert counted['parameters'] == partition['totals']['parameters']
    assert counted['dynamic_fraction'] == partition['totals']['dynamic_fraction']
    shown = call(commands.main, 'inspect', f'--workdir={workdir}')
    assert 'stage1_block1/conv1' in shown and list(workdir.glob('*.png'))


@pytest.mark.usefixtures('one_block')
def test_data_that_has_moved(call, tmp_path):
    write_classes(tmp_path / 'here', 8, 3)
    flags = [f'--config={DIGITS}', f'--workdir={tmp_path}/run', *FLAGS, '--config.model.num_classes=2']
    flags += ['--config.data.name=folder', '--config.train.steps=2', '--config.partition.batch_size=8']
    flags += ['--config.train.temperature_epochs=4']
    call(train_command.main, *flags, f'--config.data.path={tmp_path}/here')
    before = call(commands.main, 'evaluate', f'--workdir={tmp_path}/run')
    (tmp_path / 'here').rename(tmp_path / 'there')
    moved = f'--config.data.path={tmp_path}/there'
    call(train_command.main, *flags, moved)  # goes on, and finds that it is finished
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['data']['path'] == f'{tmp_path}/there'
    # Fewer to train on: the temperature of the step that is evaluated is still that of the run.
    for name in ('cat', 'dog'):
        shutil.rmtree(tmp_path / 'there' / 'train' / name)
        shutil.copytree(tmp_path / 'there' / 'val' / name, tmp_path / 'there' / 'train' / name)
    assert call(commands.main, 'evaluate', f'--workdir={tmp_path}/run', moved) == before
    overrides = [flag.removeprefix('--config.') for flag in [*flags[2:], moved]]
    with pytest.raises(BadInput, match='num_train: 16 -> 6'):
        train(load_config(str(DIGITS), overrides), tmp_path / 'run')
    assert json.loads((tmp_path / 'run' / 'data.json').read_text())['num_train'] == 16


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
@pytest.mark.parametrize('changes', [{'model__conv': 'static'}, {'partition__dynamic_fraction': 1.0}])
def test_networks_without_a_partition(tmp_path, changes):
    last = train(small_config(**changes), tmp_path, devices=one_device())
    assert last['step'] == 6
    totals = json.loads((tmp_path / 'partition.json').read_text())['totals']
    assert totals['dynamic_fraction'] == (0 if 'model__conv' in changes else 1)
    assert not any(row['split'] == 'partition' for row in read_metrics(tmp_path))


def test_help_is_no_error(monkeypatch, capfd):
    for main, flags in (
        (train_command.main, ['--help']),
        (commands.main, ['--help']),
        (commands.main, ['count', '-h']),
        (commands.main, ['evaluate', '--help']),
    ):
        monkeypatch.setattr(sys, 'argv', ['program', *flags])
        with pytest.raises(SystemExit) as caught:
            exit_status(main)
        out, err = capfd.readouterr()
        assert caught.value.code == 0 and 'usage' in out and err == ''
    assert '--config.data.path=PATH' in out


def test_an_error_of_our_own_is_not_bad_input():
    def command():
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError):
        exit_status(command)

    def interrupted():
        raise KeyboardInterrupt

    assert exit_status(interrupted) == 130


LONG = {**SMALL, 'train.steps': 60, 'partition.start_step': 7, 'partition.rounds': 3, 'partition.every_steps': 9}
LONG_FLAGS = [f'--config.{name}={value}' for name, value in LONG.items()]


def start(workdir, *flags):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
    script = ROOT / 'tests' / 'training' / 'small_train.py'
    command = [sys.executable, script, f'--config={DIGITS}', f'--workdir={workdir}', *LONG_FLAGS, *flags]
    return subprocess.Popen(
        list(map(str, command)), env=environment, cwd=workdir.parent, stderr=subprocess.PIPE, text=True
    )


def wait_for_row(workdir, step, process):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (workdir / 'metrics.jsonl').exists() and any(row['step'] >= step for row in read_metrics(workdir)):
            return
        time.sleep(0.02)
    raise AssertionError(f'step {step} never came, exit {process.poll()}: {process.stderr.read()}')


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
def test_processes_that_are_killed_end_like_one_that_never_was(tmp_path):
    straight, broken = tmp_path / 'straight', tmp_path / 'broken'
    process = start(straight)
    assert process.wait() == 0, process.stderr.read()
    for step in (3, 8, 24):
        process = start(broken)
        wait_for_row(broken, step, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = start(broken)
    wait_for_row(broken, 40, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, process.stderr.read()
    process = start(broken)
    assert process.wait() == 0, process.stderr.read()
    overrides = [f'{name}={value}' for name, value in LONG.items()]
    assert_same_run(broken, straight, load_config(str(DIGITS), overrides))


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
@pytest.mark.parametrize('form', ['pmap', 'shard_map'])
def test_debug_stops_where_a_nan_is_made(tmp_path, form):
    config = small_config(optim__learning_rate=1e30, parallel=form, debug=True)
    with pytest.raises(FloatingPointError, match=r'^step 3 makes a NaN: .* encountered in \w+, in .*pad_jax/.*, line '):
        train(config, tmp_path / 'run', devices=one_device())


def test_a_reader_of_stdout_that_has_seen_enough_gets_no_traceback():
    program = (
        "import sys; from pad_jax.training.cli import exit_status; sys.exit(exit_status(lambda: print('long' * 10**6)))"
    )
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    process = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, **pipes)
    process.stdout.read(4)
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b''
    assert process.wait() == 1
