"""The commands on good input, and their exit codes."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import train as train_command
from pad_jax import __main__ as commands
from pad_jax.training import rounds
from pad_jax.training.cli import exit_status, use_compilation_cache
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
def test_train_evaluate_count_and_inspect(tmp_path, monkeypatch):
    """On the eight devices of this process."""
    workdir = tmp_path / 'deep' / 'run'
    monkeypatch.setattr(rounds, 'find_constant_layers', lambda *network: ['stage1_block1/conv1'])
    status, out, err = run_command('train', f'--config={DIGITS}', f'--workdir={workdir}', *FLAGS)
    assert (status, out) == (0, ''), err
    constant = [line for line in err.splitlines() if line.startswith('train: 1 of 2 dynamic layers, with ')]
    assert len(constant) == 2 and constant[0].endswith('give every input the same parameters: stage1_block1/conv1')
    found = json.loads(call('evaluate', f'--workdir={workdir}'))
    last = read_metrics(workdir)[-1]
    assert last['split'] == 'eval' and found['step'] == last['step'] == 6
    assert found['accuracy'] == last['accuracy']
    # Added up on one device instead of eight.
    assert found['loss'] == pytest.approx(last['loss'], rel=1e-5)
    path = tmp_path / 'confusion.csv'
    detailed = json.loads(call('evaluate', f'--workdir={workdir}', f'--confusion={path}'))
    by_class = detailed.pop('class_accuracy')
    assert detailed == found
    header, *rows = csv.reader(path.open())
    matrix = np.array([row[1:] for row in rows], int)
    assert header == ['class', *by_class] and [row[0] for row in rows] == header[1:]
    assert matrix.sum() == found['examples'] and matrix.trace() / matrix.sum() == pytest.approx(found['accuracy'])
    assert list(by_class.values()) == pytest.approx(list(matrix.diagonal() / matrix.sum(1)))
    counted = json.loads(call('count', f'--config={DIGITS}', *FLAGS))
    partition = json.loads((workdir / 'partition.json').read_text())
    assert counted['parameters'] == partition['totals']['parameters']
    assert counted['dynamic_fraction'] == partition['totals']['dynamic_fraction']
    compared = call('compare', workdir, f'--out={tmp_path}/curves.png')
    assert f'{100 * last["accuracy"]:.2f}' in compared and (tmp_path / 'curves.png').stat().st_size > 10_000
    shown = call('inspect', f'--workdir={workdir}')
    assert 'stage1_block1/conv1' in shown and list(workdir.glob('*.png'))


@pytest.mark.usefixtures('one_block')
def test_data_that_has_moved(tmp_path):
    write_classes(tmp_path / 'here', 8, 3)
    flags = [f'--config={DIGITS}', f'--workdir={tmp_path}/run', *FLAGS, '--config.model.num_classes=0']
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
        (train_command.main, ['--help', '--config=glue_minilm_moe']),
        (commands.main, ['--help']),
        (commands.main, ['count', '-h']),
        (commands.main, ['evaluate', '--help']),
    ):
        monkeypatch.setattr(sys, 'argv', ['program', *flags])
        with pytest.raises(SystemExit) as caught:
            exit_status(main)
        out, err = capfd.readouterr()
        assert caught.value.code == 0 and 'usage' in out and err == ''
        if '--config=glue_minilm_moe' in flags:
            assert '--config.model.num_selected=2: k, experts of each token; an integer from 1 to 4096' in out
            assert 'num_kernels' not in out
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


STREAMS = """
import sys
from pad_jax.training import rounds
from pad_jax.training.cli import exit_status, use_compilation_cache
from pad_jax.training.progress import Progress
def command():
    print('κ ± 3' * {times})
    for step in range(100):
        Progress('train', 3).say('κ')
    open({path!r}, 'w').write('checkpoint')
sys.exit(exit_status(command))
"""


def start(program, **streams):
    environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, env=environment, **streams)


def test_readers_that_are_gone_and_full_disks_end_no_command(tmp_path):
    """Characters that the encoding lacks are escaped."""
    pipes, path = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}, tmp_path / 'written'
    with start(STREAMS.format(times=10**6, path=str(path)), **pipes) as seen_enough:
        assert seen_enough.stdout.read(4) == rb'\u03'
        seen_enough.stdout.close()
        assert seen_enough.stderr.read() == b'train: \\u03ba\n' * 100
    assert seen_enough.returncode == 1 and path.read_text() == 'checkpoint'
    program = STREAMS.format(times=1, path=str(path))
    with open('/dev/full', 'wb') as full, start(program, stdout=full, stderr=subprocess.PIPE) as process:
        assert process.stderr.read().endswith(b'error: stdout cannot be written: No space left on device\n')
    assert process.returncode == 1
    path.unlink()
    with start(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        process.stderr.close()
    assert process.returncode == 0 and path.read_text() == 'checkpoint'


@pytest.mark.parametrize(
    ('environment', 'says'),
    [
        ({'JAX_PLATFORMS': 'cuda'}, 'JAX_PLATFORMS=cuda'),
        pytest.param({'JAX_PLATFORMS': 'nonsense'}, "'nonsense' is not in the list of known", marks=pytest.mark.slow),
        ({'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=0'}, 'device_count=0'),
    ],
)
def test_a_machine_without_the_device(environment, says):
    command = [sys.executable, '-m', 'pad_jax', 'count', f'--config={DIGITS}']
    found = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr.count('\n')) == (2, '', 1), found.stderr
    assert found.stderr.startswith('error: JAX finds no device (') and says in found.stderr


def test_a_current_folder_that_is_gone(monkeypatch):
    def fail():
        raise FileNotFoundError(2, 'No such file or directory')

    monkeypatch.setattr(os, 'getcwd', fail)
    status, out, err = run_command('train', f'--config={DIGITS}', '--workdir=run')
    assert (status, out, err) == (2, '', 'error: the current folder cannot be used: No such file or directory\n')


@pytest.mark.parametrize('is_folder', [True, False])
def test_compiled_programs_are_kept_in_the_cache_folder_of_the_user(is_folder, tmp_path, monkeypatch):
    before, folder = jax.config.jax_compilation_cache_dir, tmp_path / 'cache'
    folder.mkdir() if is_folder else folder.write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before  # a setting of JAX wins
    try:
        jax.config.update('jax_compilation_cache_dir', None)
        use_compilation_cache()
        kept = jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
    assert kept == (str(folder / 'pad_jax' / socket.gethostname()) if is_folder else None)


def test_a_damaged_entry_of_the_cache_is_compiled_again_without_a_word(tmp_path):
    command = 'import jax; from pad_jax.training.cli import exit_status; exit_status(lambda: print(jax.jit(abs)(-2.0)))'
    settings = {'XDG_CACHE_HOME': str(tmp_path), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    environment = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'} | settings
    for _ in range(2):
        done = subprocess.run([sys.executable, '-c', command], env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ('2.0\n', '')
        entries = [path for path in tmp_path.rglob('*') if path.is_file()]
        assert entries
        for path in entries:
            path.write_bytes(path.read_bytes()[:40])
