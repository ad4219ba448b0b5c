"""python -m pad_jax prepare, as the user starts it."""

import json
import signal
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from pad_jax import __main__ as commands
from pad_jax.data.preparation import imagenet2012
from pad_jax.training.command_line import exit_status
from tests.data import glue_miniatures as miniatures
from tests.data.preparation import small_imagenet as small


@pytest.fixture
def call(monkeypatch, capfd):
    """`call(*flags)`: exit status, stdout and the lines on stderr."""

    def run(*flags):
        monkeypatch.setattr(sys, 'argv', ['program', 'prepare', *map(str, flags)])
        capfd.readouterr()
        status = exit_status(commands.main)
        found = capfd.readouterr()
        return status, found.out, found.err.splitlines()

    return run


def test_a_process_prepares_imagenet_with_progress(tmp_path):
    small.write_tars(tmp_path / 'tars')
    command = [sys.executable, '-m', 'pad_jax', 'prepare', 'imagenet2012', '--subset']
    flags = [f'--manual-dir={tmp_path}/tars', f'--data-dir={tmp_path}/data']
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    assert [line.split(' in ')[0] for line in done.stderr.splitlines()] == [
        'reading ILSVRC2012_img_train.tar: 3 classes',
        'reading ILSVRC2012_img_train.tar: 3/3 classes',
        'writing train: 6 examples',
        'writing train: 6/6 examples',
        'writing validation: 3 examples',
        'writing validation: 3/3 examples',
        f'prepared: {tmp_path}/data/imagenet2012/5.1.0',
    ]
    assert len(tfds.data_source('imagenet2012', data_dir=tmp_path / 'data', download=False)['train']) == 6


def test_bad_input_is_one_line(call, tmp_path):
    status, out, lines = call('imagenet2012', f'--manual-dir={tmp_path}', f'--data-dir={tmp_path}/data')
    assert (status, out, len(lines)) == (2, '', 1) and lines[0].startswith(f"error: '{tmp_path}' has no ILSVRC2012")
    assert list(tmp_path.iterdir()) == []


def test_sigterm_cleans_up_as_an_interruption_does(monkeypatch, tmp_path):
    small.write_tars(tmp_path / 'tars')
    data_dir, seen = tmp_path / 'data', []

    def stop(*arguments):
        seen.extend(path.name for path in data_dir.rglob('*.incomplete'))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(imagenet2012, 'write_split', stop)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        commands.prepare(['imagenet2012', '--subset', f'--manual-dir={tmp_path}/tars', f'--data-dir={data_dir}'])
    assert left.value.code == 143 and seen == ['5.1.0.incomplete'] and not data_dir.exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(('kind', 'says'), [('imagenet2012', 'where to write'), ('convert', 'where the set is')])
def test_data_dir_is_explained(kind, says, capsys):
    with pytest.raises(SystemExit):
        commands.prepare([kind, '--help'])
    assert says in ' '.join(capsys.readouterr().out.split())


def test_glue_and_convert(call, tmp_path):
    miniatures.write_original(tmp_path, 'rte')
    data_dir = tmp_path / 'data'
    glue = ('glue', '--task=rte', f'--manual-dir={tmp_path}', f'--data-dir={data_dir}')
    status, out, lines = call(*glue)
    assert (status, out, lines[-1]) == (0, '', f'prepared: {data_dir}/glue/rte/2.0.0')
    status, out, lines = call(*glue)
    assert (status, out, len(lines)) == (2, '', 1) and 'is there already: --overwrite' in lines[0]
    assert call(*glue, '--overwrite')[0] == 0
    convert = ('convert', f'--data-dir={data_dir}', '--name=glue/rte')
    status, _, lines = call(*convert)
    assert status == 2 and lines[0].endswith('was prepared as array_record, not as tfrecord: nothing to convert')
    info = data_dir / 'glue/rte/2.0.0/dataset_info.json'
    info.write_text(json.dumps(json.loads(info.read_text()) | {'fileFormat': 'tfrecord'}))
    for path in info.parent.glob('*array_record*'):
        path.rename(info.parent / path.name.replace('array_record', 'tfrecord'))
    status, _, lines = call(*convert, f'--output-dir={tmp_path}/other')
    assert status == 2 and 'record 0 of' in lines[-1]  # of a file that is none of TFRecord
