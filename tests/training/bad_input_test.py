"""Whatever is wrong with the input: status 2, one line on stderr, no traceback, and nothing written."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pad_jax.training import lock, trainer
from tests.training.fixtures import IN_ROUNDS
from tests.training.tiny import DIGITS, ROOT, SMALL, one_device, small_config

CIFAR = ROOT / 'configs' / 'cifar_resnet10_pad.py'
SMALL_FLAGS = [f'--config.{name}={value}' for name, value in SMALL.items()]
ROUND_FLAGS = [f'--config.{name.replace("__", ".")}={value}' for name, value in IN_ROUNDS.items()]
SAME_RUN = [f'--config={DIGITS}', *SMALL_FLAGS, *ROUND_FLAGS]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    for split, count in (('train', 20), ('val', 4)):
        for name in ('cat', 'dog'):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 255, (9, 9, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f'{number}.png')
    return folder


def train_on(refused, tmp_path, folder, *flags):
    flags = ['--config.model.num_classes=2', '--config.data.image_size=8', f'--config.data.path={folder}', *flags]
    return refused('train', f'--config={CIFAR}', f'--workdir={tmp_path}/run', *flags)


def test_bad_folders(refused, photos, tmp_path):
    for name in ('nowhere', 'empty', 'a file'):
        if name == 'empty':
            (tmp_path / name).mkdir()
        if name == 'a file':
            (tmp_path / name).write_text('')
        line = train_on(refused, tmp_path, tmp_path / name)
        assert str(tmp_path / name) in line and {'nowhere': 'exist', 'empty': 'empty'}.get(name, 'not a folder') in line
    assert 'path must name a folder' in train_on(refused, tmp_path, '')
    shutil.rmtree(photos / 'train' / 'dog')
    shutil.rmtree(photos / 'val' / 'dog')
    assert 'must hold at least two classes, got only the class cat' in train_on(refused, tmp_path, photos)
    shutil.rmtree(photos / 'val')
    assert 'has no folder val/' in train_on(refused, tmp_path, photos)


def test_an_unreadable_image_is_named(refused, photos, tmp_path):
    bad = photos / 'train' / 'dog' / '3.png'
    bad.write_bytes(bad.read_bytes()[:60])
    assert str(bad) in train_on(refused, tmp_path, photos)
    bad.write_text('no image')
    assert str(bad) in train_on(refused, tmp_path, photos)


def test_the_number_of_classes_is_that_of_the_folder(refused, photos, tmp_path):
    line = train_on(refused, tmp_path, photos, '--config.model.num_classes=10')
    assert 'model.num_classes is 10, the data has 2 classes: --config.model.num_classes=2' in line


@pytest.mark.usefixtures('one_block')
def test_bad_workdirs(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    flags = [*SAME_RUN, f'--workdir={workdir}']
    line = refused('train', *flags, '--config.optim.learning_rate=0.2', '--config.train.seed=5')
    assert 'made by another config (optim.learning_rate: 0.1 -> 0.2; train.seed: 0 -> 5): use another workdir' in line
    # What is wrong by itself is said before that.
    assert 'must be in (0, 1]' in refused('train', *flags, '--config.partition.dynamic_fraction=2')

    config = json.loads((workdir / 'config.json').read_text())
    (workdir / 'config.json').write_text(
        json.dumps({**config, 'model': {**config['model'], 'width_multiplier': 0.125}})
    )
    for command, more in (('train', [*SAME_RUN, '--config.model.width_multiplier=0.125']), ('evaluate', [])):
        line = refused(command, *more, f'--workdir={workdir}')
        assert 'checkpoints/6 does not fit the model: ' in line and 'in the checkpoint, ' in line

    (workdir / 'config.json').write_text('{"model":')
    assert 'config.json is damaged' in refused('train', *flags)
    assert 'config.json is damaged' in refused('evaluate', f'--workdir={workdir}')

    (workdir / 'config.json').unlink()
    assert 'holds checkpoints but no config.json' in refused('train', *flags)
    shutil.rmtree(workdir / 'checkpoints')
    assert 'holds metrics.jsonl but no config.json' in refused('train', *flags)


@pytest.mark.usefixtures('one_block')
def test_a_resume_that_is_refused_has_written_nothing(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    # A key that is free on resume: config.json would change.
    flags = [*SAME_RUN, f'--workdir={workdir}', '--config.train.keep_checkpoints=1']
    metrics = (workdir / 'metrics.jsonl').read_text()
    (workdir / 'metrics.jsonl').write_text('{bad\n' + metrics)
    assert "metrics.jsonl, line 1: not a row of metrics: '{bad'" in refused('train', *flags)
    lines = [line for line in metrics.splitlines() if json.loads(line)['split'] != 'eval']
    (workdir / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    assert 'holds a finished run, but its metrics.jsonl has lost the last evaluation' in refused('train', *flags)
    (workdir / 'metrics.jsonl').write_text('\n'.join([*lines, '{"step": 6, "split": "eval", "loss": 2}']) + '\n')
    assert 'has lost the last evaluation' in refused('train', *flags)
    (workdir / 'metrics.jsonl').unlink()
    (workdir / 'metrics.jsonl').mkdir()
    assert 'metrics.jsonl is not a file' in refused('train', *flags)


@pytest.mark.usefixtures('one_block')
def test_a_run_goes_on_with_its_own_data_only(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    flags = [*SAME_RUN, f'--workdir={workdir}']
    data = json.loads((workdir / 'data.json').read_text())
    names = data['class_names']
    for change, says in (
        ({'num_train': 1400}, 'was trained on other data (num_train: 1400 -> 1442): use another workdir'),
        ({'num_eval': 5, 'num_train': 3}, '(num_train: 3 -> 1442; num_eval: 5 -> 355)'),
        ({'class_names': ['ant', *names[1:]]}, '(classes: without ant, with 0)'),
        ({'class_names': names[::-1]}, '(classes: in another order)'),
        ({'class_names': list('abcdefghij')}, '(classes: without a, b, c and 7 more, with 0, 1, 2 and 7 more)'),
        ({'class_names': 3}, 'data.json is damaged: it must hold class_names, num_train and num_eval'),
        ({'class_names': [3]}, 'data.json is damaged: class_names must be texts'),
        ({'num_train': None}, 'num_train and num_eval integers'),
    ):
        (workdir / 'data.json').write_text(json.dumps(data | change))
        assert says in refused('train', *flags)
    for content in ('{"class', '[]', '3', '{}'):
        (workdir / 'data.json').write_text(content)
        assert 'data.json is damaged' in refused('train', *flags)
    (workdir / 'data.json').unlink()
    assert 'contains no data.json, so its data is unknown' in refused('train', *flags)


@pytest.mark.usefixtures('one_block')
def test_a_second_run_is_refused_while_the_first_goes_on(refused, tmp_path, monkeypatch):
    lines = []
    evaluate = trainer.Run.evaluate

    def second(run, step):
        if not lines:
            lines.append(refused('train', *SAME_RUN, f'--workdir={tmp_path / "run"}'))
        evaluate(run, step)

    monkeypatch.setattr(trainer.Run, 'evaluate', second)
    monkeypatch.setattr(lock, 'BEAT_SECONDS', 1000)  # nothing changes meanwhile but by the second
    trainer.train(small_config(**IN_ROUNDS), tmp_path / 'run', devices=one_device())
    assert f'{tmp_path / "run"} is in use by a run on ' in lines[0] and f'process {os.getpid()}, since 20' in lines[0]
    assert not (tmp_path / 'run' / lock.LOCK).exists()


@pytest.mark.usefixtures('one_block')
def test_bad_checkpoints(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    (workdir / 'checkpoints' / '6' / 'manifest.json').write_text('{"files": {}}')
    for command, flags in (('train', SAME_RUN), ('evaluate', [])):
        line = refused(command, *flags, f'--workdir={workdir}')
        assert 'checkpoints/6 has format 2, this version reads 3: use the version that wrote it' in line
    for path in (workdir / 'checkpoints').iterdir():
        (path / 'manifest.json').unlink()
    for command, flags in (('train', SAME_RUN), ('evaluate', [])):
        line = refused(command, *flags, f'--workdir={workdir}')
        assert 'checkpoints holds no sound checkpoint (6: No such file or directory: manifest.json; 4: No such' in line
    shutil.rmtree(workdir / 'checkpoints')
    assert 'holds no checkpoint' in refused('evaluate', f'--workdir={workdir}')


@pytest.mark.usefixtures('one_block')
def test_what_evaluate_may_not_change(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    for flags, says in (
        (['train.seed=1', 'data.name=folder'], 'train.seed, data.name cannot be changed for the run in '),
        (['train.seed=1'], 'only data.path, debug, model.plan, parallel, partition.compact, '),
        (['data.pth=1'], 'unknown config key data.pth, did you mean data.path?'),
        (['model.plan=best'], 'model.plan must be one of'),
        (['data.path=elsewhere'], 'the digits are embedded and read no path'),
    ):
        assert says in refused('evaluate', f'--workdir={workdir}', *(f'--config.{flag}' for flag in flags))
    data = json.loads((workdir / 'data.json').read_text())
    (workdir / 'data.json').write_text(json.dumps({**data, 'class_names': ['ant', *data['class_names'][1:]]}))
    line = refused('evaluate', f'--workdir={workdir}')
    assert 'was trained on other classes than this data has (classes: without ant, with 0)' in line
    (workdir / 'config.json').write_text('{"model": 3, "a.b": 2}')
    for command, flags in (('evaluate', []), ('train', SAME_RUN)):
        assert 'config.json: unknown config key model' in refused(command, f'--workdir={workdir}', *flags)


@pytest.mark.usefixtures('one_block')
def test_workdirs_that_cannot_be_written(refused, tmp_path):
    flags = [f'--config={DIGITS}', *SMALL_FLAGS]
    (tmp_path / 'file').write_text('precious')
    assert 'file is not a folder' in refused('train', *flags, f'--workdir={tmp_path}/file')
    below = refused('train', *flags, f'--workdir={tmp_path}/file/below/it')
    assert f'{tmp_path}/file/below/it cannot be made: {tmp_path}/file is not a folder' in below
    assert 'File name too long' in refused('train', *flags, f'--workdir={tmp_path}/{"x" * 300}')
    assert 'cannot be written' in refused('train', *flags, '--workdir=/proc/run')


def test_no_permission_to_write(refused, tmp_path, monkeypatch):
    closed = tmp_path / 'closed'
    closed.mkdir(mode=0o500)
    # Said here and not by the system, which lets root write anywhere.
    ask = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: ask(path, mode) and not (path == closed and mode & os.W_OK))
    flags = [f'--config={DIGITS}', *SMALL_FLAGS]
    for workdir in ('closed', 'closed/run'):
        line = refused('train', *flags, f'--workdir={tmp_path}/{workdir}')
        assert f'no permission to write into {tmp_path}/closed' in line


def run(*command, devices=1):
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_commands_as_a_user_starts_them(tmp_path):
    """Statuses and streams of whole processes; all else is tried inside of this one."""
    flags = ('--config=configs/digits_resnet10_pad.py', f'--workdir={tmp_path}/run')
    found = run('train.py', *flags, '--config.data.batch_size=60', '--config.train.seed=1', devices=8)
    assert found.returncode == 2, found.stderr
    assert found.stdout == '' and found.stderr.count('\n') == 1 and found.stderr.startswith('error: '), found.stderr
    assert list(tmp_path.iterdir()) == []
    counted = run('-m', 'pad_jax', 'count', '--config', 'configs/digits_resnet10_pad.py', '--config.debug', 'true')
    assert counted.returncode == 0 and counted.stderr == '', counted.stderr
    assert json.loads(counted.stdout)['dynamic_fraction'] == pytest.approx(0.3, abs=1e-4)
