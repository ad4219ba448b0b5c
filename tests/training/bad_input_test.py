"""Whatever is wrong with the input: status 2, one line on stderr, no traceback, and nothing written."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.training.fixtures import IN_ROUNDS
from tests.training.tiny import DIGITS, ROOT, SMALL

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


@pytest.mark.usefixtures('one_block')
@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['partition.dynamic_fracton=0.3'], 'unknown config key partition.dynamic_fracton, did you mean partition.dyn'),
        (['partition.dynamic_fraction=0.'], 'partition.dynamic_fraction must be in (0, 1], got 0.0'),
        (['partition.dynamic_fraction=1.5'], 'must be in (0, 1], got 1.5'),
        (['partition.dynamic_fraction=nan'], "must be in (0, 1], got 'nan'"),
        (['partition.dynamic_fraction=some'], "must be in (0, 1], got 'some'"),
        (['model.num_kernels=0'], 'model.num_kernels must be an integer from 1 to 1024, got 0'),
        (['partition.criterion=luck'], 'partition.criterion must be one of sensitivity, magnitude, random'),
        (['partition.granularity=atom'], 'partition.granularity must be one of element, output, input, spatial, layer'),
        (['model.plan=best'], 'model.plan must be one of auto, outputs'),
        (['model.name=resnet11'], 'model.name must be one of resnet10, resnet18'),
        (['partition.scope=all'], 'partition.scope must be one of global, layer'),
        (['partition.schedule=sine'], 'partition.schedule must be one of exponential, linear, one_shot'),
        (['optim.schedule=sine'], 'optim.schedule must be one of cosine, linear, step, constant'),
        (['partition.handoff=max'], 'partition.handoff must be one of independent, mean'),
        (['partition.scales=some'], 'partition.scales must be one of both, static, dynamic, none'),
        (['train.steps=-1'], 'train.steps must be an integer from 0 to 2147483647, got -1'),
        (
            ['data.batch_size=60'],
            'data.batch_size must be a multiple of 8 (8 devices × optim.accumulate_steps = 1), got',
        ),
        (['optim.accumulate_steps=4'], 'must be a multiple of 32 (8 devices × optim.accumulate_steps = 4), got 16'),
        (['data.image_size=4'], "image_size must be at least 8 for stem 'cifar', got 4"),
        (['model.stem=imagenet'], "image_size must be at least 64 for stem 'imagenet', got 8"),
        (['data.image_size=16'], 'image_size must be 8 for the digits, got 16'),
        (['data.path=/tmp'], 'the digits are embedded and read no path'),
        (
            ['data.augment=resized_crop'],
            'data.augment=resized_crop cuts photos of any size: it needs data.name=imagenet',
        ),
        (['data.color_jitter=0.4'], 'data.color_jitter and data.randaugment_layers must be 0 for digits'),
        (['data.crop_padding=9'], 'crop_padding must be in [0, image_size] = [0, 8], got 9'),
        (['model.num_classes=9'], 'model.num_classes is 9, the data has 10 classes: --config.model.num_classes=10'),
        (['partition.keep_dynamic=stage9'], "keep_dynamic = 'stage9' matches none of the parameters stage1_block1/con"),
        (
            ['partition.granularity=layer'],
            "dynamic_fraction 0.3 leaves nothing dynamic: granularity 'layer' decides for",
        ),
        (
            ['partition.granularity=output', 'partition.dynamic_fraction=0.05'],
            'at least 36 positions at once, 14 are to',
        ),
        (
            ['partition.scope=layer', 'partition.granularity=input', 'model.conv=dcd'],
            'positions of stage1_block1/conv1/scaling/tensor at once, and',
        ),
        (['partition.keep_dynamic=.*'], "no layer is left to compete: keep_dynamic = '.*' matches all of them"),
        (['partition.keep_static=conv'], 'that is wholly static is --config.model.conv=static'),
        (['partition.keep_static=stage9'], "keep_static = 'stage9' matches none"),
        (['partition.keep_dynamic=conv1', 'partition.keep_static=stage1'], 'is matched by keep_dynamic and by keep_st'),
        (['partition.keep_dynamic=('], "partition.keep_dynamic must be a regular expression, got '('"),
        (['partition.start_step=6'], 'the last round of the partition comes after 6 steps, the run has 6'),
        (['train.steps=0', 'train.epochs=0.1', 'partition.start_step=99'], 'comes after 99 steps, the run has 10'),
        (['train.steps=0', 'train.epochs=1e30'], 'train.epochs = 1e+30 makes 9.01e+31 steps of 1442 training examples'),
        (['train.temperature_epochs=1e8'], 'train.temperature_epochs = 1e+08 makes 9.01e+09 steps of 1442 training'),
        (['=3'], "an override must name a key, as in train.steps=100, got '=3'"),
        (['train.steps=0', 'train.epochs=0.01', 'optim.warmup_steps=1'], 'must be below the 1 steps of the run'),
        (['partition.batch_size=1443'], 'partition.batch_size must be at most the 1442 training examples, got 1443'),
    ],
)
def test_bad_configs(refused, tmp_path, flags, says):
    flags = [f'--config.{flag}' for flag in flags]
    assert says in refused('train', f'--config={DIGITS}', f'--workdir={tmp_path}/run', *SMALL_FLAGS, *flags)


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        ([], 'the following arguments are required: --config, --workdir'),
        (['--workdir=w'], 'the following arguments are required: --config'),
        ([f'--config={DIGITS}'], 'the following arguments are required: --workdir'),
        ([f'--config={DIGITS}', '--workdir=w', '--configg.train.steps=3'], 'unknown argument --configg.train.steps=3'),
        ([f'--config={DIGITS}', '--workdir=w', 'stray'], 'unknown argument stray'),
        ([f'--config={DIGITS}', '--workdir=w', '--config.train.steps'], '--config.train.steps has no value'),
        ([f'--config={DIGITS}', '--workdir='], 'workdir must name a folder'),
        (['--config=nowhere.py', '--workdir=w'], 'config file nowhere.py does not exist'),
        (['--config=', '--workdir=w'], 'does not exist'),
    ],
)
def test_bad_flags(refused, monkeypatch, tmp_path, flags, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused('train', *flags)


@pytest.mark.parametrize(
    ('command', 'flags', 'says'),
    [
        ('count', [], 'required: --config'),
        ('count', [f'--config={DIGITS}', '--config.model.num_kernels=0'], 'model.num_kernels must be'),
        ('count', [f'--config={DIGITS}', '--config.partition.keep_static=nothing'], "'nothing' matches none"),
        ('evaluate', [], 'required: --workdir'),
        ('evaluate', ['--workdir=nowhere'], 'nowhere is not the workdir of a run'),
        ('evaluate', [f'--workdir={DIGITS}'], 'is not the workdir of a run'),
        ('inspect', ['--workdir=nowhere'], 'nowhere is not the workdir of a run'),
        ('evaluate', ['--workdir=x', '--more=1'], 'unknown argument --more=1'),
        ('evaluate', ['--workdir=x', '--config.data.path'], '--config.data.path has no value'),
        ('inspect', ['--workdir=x', '--config.data.path=y'], 'unrecognized arguments'),
        ('nothing', [], 'invalid choice'),
    ],
)
def test_bad_verbs(refused, monkeypatch, tmp_path, command, flags, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(command, *flags)


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
    assert 'holds no data.json to say what it was trained on' in refused('train', *flags)


@pytest.mark.usefixtures('one_block')
def test_bad_checkpoints(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    (workdir / 'checkpoints' / '6' / 'about' / 'metadata').write_text('{"format": 2}')
    for command, flags in (('train', SAME_RUN), ('evaluate', [])):
        line = refused(command, *flags, f'--workdir={workdir}')
        assert 'checkpoints/6 has format 2, this version reads up to 1: update pad_jax' in line
    shutil.rmtree(workdir / 'checkpoints')
    assert 'holds no checkpoint' in refused('evaluate', f'--workdir={workdir}')


@pytest.mark.usefixtures('one_block')
def test_what_evaluate_may_not_change(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    for flags, says in (
        (['train.seed=1', 'data.name=folder'], 'train.seed, data.name cannot be changed for the run in '),
        (['train.seed=1'], 'only data.path, debug, model.plan, model.plan_table, parallel, partition.compact, '),
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
