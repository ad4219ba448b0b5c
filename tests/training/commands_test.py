"""The commands on good input, and their exit codes."""

import json
import shutil
import subprocess
import sys

import pytest

import train as train_command
from pad_jax import __main__ as commands
from pad_jax.training.cli import exit_status
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.fixtures import run_command
from tests.training.tiny import DIGITS, ROOT, SMALL, one_device, small_config
from tests.training.tiny_photos import write_classes

FLAGS = [f'--config.{name}={value}' for name, value in SMALL.items()]


def call(command, *flags):
    """Return stdout of a command that must succeed."""
    status, out, err = run_command(command, *flags)
    assert status == 0, err
    return out


@pytest.mark.usefixtures('one_block')
def test_train_evaluate_count_and_inspect(tmp_path):
    """On the eight devices of this process."""
    workdir = tmp_path / 'deep' / 'run'
    assert call('train', f'--config={DIGITS}', f'--workdir={workdir}', *FLAGS) == ''
    found = json.loads(call('evaluate', f'--workdir={workdir}'))
    last = read_metrics(workdir)[-1]
    assert last['split'] == 'eval' and found['step'] == last['step'] == 6
    assert found['accuracy'] == last['accuracy']
    # Added up on one device instead of eight.
    assert found['loss'] == pytest.approx(last['loss'], rel=1e-5)
    counted = json.loads(call('count', f'--config={DIGITS}', *FLAGS))
    partition = json.loads((workdir / 'partition.json').read_text())
    assert counted['parameters'] == partition['totals']['parameters']
    assert counted['dynamic_fraction'] == partition['totals']['dynamic_fraction']
    shown = call('inspect', f'--workdir={workdir}')
    assert 'stage1_block1/conv1' in shown and list(workdir.glob('*.png'))


@pytest.mark.usefixtures('one_block')
def test_data_that_has_moved(tmp_path):
    write_classes(tmp_path / 'here', 8, 3)
    flags = [f'--config={DIGITS}', f'--workdir={tmp_path}/run', *FLAGS, '--config.model.num_classes=2']
    flags += ['--config.data.name=folder', '--config.train.steps=2', '--config.partition.batch_size=8']
    flags += ['--config.train.temperature_share=1']
    call('train', *flags, f'--config.data.path={tmp_path}/here')
    before = call('evaluate', f'--workdir={tmp_path}/run')
    (tmp_path / 'here').rename(tmp_path / 'there')
    moved = f'--config.data.path={tmp_path}/there'
    call('train', *flags, moved)  # resumes, and finds that it is finished
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['data']['path'] == f'{tmp_path}/there'
    # Fewer to train on: the temperature of the step that is evaluated is still that of the run.
    for name in ('cat', 'dog'):
        shutil.rmtree(tmp_path / 'there' / 'train' / name)
        shutil.copytree(tmp_path / 'there' / 'val' / name, tmp_path / 'there' / 'train' / name)
    assert call('evaluate', f'--workdir={tmp_path}/run', moved) == before
    status, _, err = run_command('train', *flags, moved)
    assert status == 2 and 'num_train: 16 -> 6' in err
    assert json.loads((tmp_path / 'run' / 'data.json').read_text())['num_train'] == 16


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


def test_exit_codes_of_errors():
    def fail(error):
        raise error

    with pytest.raises(RuntimeError):  # a bug keeps its traceback
        exit_status(lambda: fail(RuntimeError('a bug')))
    assert exit_status(lambda: fail(KeyboardInterrupt)) == 130


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
@pytest.mark.parametrize('form', ['pmap', 'shard_map'])
def test_debug_stops_where_a_nan_is_made(tmp_path, form):
    config = small_config(optim__learning_rate=1e30, parallel=form, debug=True)
    with pytest.raises(FloatingPointError, match='nan') as caught:
        train(config, tmp_path / 'run', devices=one_device())
    files = [str(frame.path) for frame in caught.traceback]
    assert any(path.endswith('/models/resnet.py') for path in files), files


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
