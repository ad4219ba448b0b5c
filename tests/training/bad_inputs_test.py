"""Bad input of every command: status 2, one line on stderr, no traceback, and not a byte changed.

In flags and lines {tmp} is a folder of the test, and {texts} the folder that `write_texts` fills.
"""

import errno
import functools
import json
import os
import shutil
import subprocess
import sys

import pytest

from pad_jax.training import lock, setup, trainer
from tests.data.photos import claim_size
from tests.hostile.readers import PARTITION
from tests.training.fixtures import IN_ROUNDS
from tests.training.tiny import DIGITS, GLUE, ROOT, SMALL, one_device, small_config
from tests.training.tiny_photos import write_classes
from tests.training.tiny_texts import TEXT_ROUNDS, small_text_flags

pytestmark = pytest.mark.usefixtures('one_block', 'one_layer')
CIFAR = ROOT / 'configs' / 'cifar_resnet10_pad.py'
FLAGS = [f'--config.{name}={value}' for name, value in SMALL.items()]
ROUND_FLAGS = [f'--config={DIGITS}', *FLAGS]
ROUND_FLAGS += [f'--config.{name.replace("__", ".")}={value}' for name, value in IN_ROUNDS.items()]

# train.py on a small config of images with these overrides, and a part of its line.
IMAGES = [
    ('optim.lr=1', 'unknown config key optim.lr, did you mean optim.learning_rate?'),
    ('data.batch_size=60', 'multiple of 8 (8 devices × optim.accumulate_steps = 1), got 60'),
    ('optim.accumulate_steps=4', 'multiple of 32 (8 devices × optim.accumulate_steps = 4), got 16'),
    ('train.mixup=0.2 data.batch_size=8', 'optim.accumulate_steps = 1, in pairs for train.mixup), got 8'),
    ('data.image_size=4', "data.image_size must be at least 8 for stem 'cifar', got 4"),
    ('model.stem=imagenet', "at least 64 for stem 'imagenet', got 8; stem 'cifar' takes it"),
    ('data.image_size=16', 'got 16'),
    ('data.path=/tmp', 'path'),
    ('data.holdout=0.9999999999', 'data.holdout must be a number from 0 to 0.999, got 0.9999999999'),
    ('data.augment=resized_crop', 'data.augment'),
    ('data.color_jitter=0.4', 'data.color_jitter'),
    ('data.crop_padding=9', 'data.crop_padding must be in [0, 8] for augment=crop, got 9'),
    ('model.num_classes=9', '--config.model.num_classes=10'),
    ('partition.granularity=layer', "granularity 'layer' selects"),
    ('partition.granularity=output partition.dynamic_fraction=0.05', 'selects 36 positions of '),
    ('partition.scope=layer partition.granularity=layer', 'with partition.keep_dynamic or partition.keep_static'),
    ('partition.scope=layer partition.granularity=input model.conv=dcd', 'of stage1_block1/conv1/scaling/tensor at'),
    ('partition.keep_dynamic=.*', 'keep_dynamic or keep_static matches all layers, and no layer is left to compete'),
    ('partition.keep_static=conv', 'Such a network has partition.dynamic_fraction=1, or model.conv=static'),
    ('partition.keep_static=stage9', 'stage9'),
    ('partition.prune=True partition.handoff=mean', 'partition.handoff=mean needs static parameters'),
    ('partition.prune=True partition.scales=static', 'partition.scales=static needs static parameters'),
    ('partition.start_step=6', 'the last round of the partition comes after 6 steps, the run has 6'),
    ('partition.start_step=2 partition.rounds=3 partition.every_steps=2', 'comes after 6 steps, the run has 6'),
    ('train.steps=0 train.epochs=0', 'train.steps or train.epochs must be above 0, got 0'),
    ('train.steps=0 train.epochs=0.1 partition.start_step=99', 'comes after 99 steps, the run has 10'),
    ('train.steps=0 train.epochs=1e30', 'train.epochs must make at most 2147483647 steps, got 9.01e+31'),
    ('model.num_classes=1', 'model.num_classes must be at least 2, or 0 for those of the data, got 1'),
    ('model.name=resnet18 data.batch_size=8 model.sync_batch_norm=False', '8 devices must be at least 2, got 1: with'),
    ('model.name=resnet18 partition.batch_size=1', 'partition.batch_size must be at least 2, got 1'),
    ('train.steps=0 train.epochs=0.01 optim.warmup_steps=1', 'must be below the 1 steps of the run, got 1'),
    ('partition.batch_size=1443', 'partition.batch_size must be at most the 1442 training examples, got 1443'),
]

# The same of texts.
TEXTS = [
    ('model.num_experts=1', 'model.num_selected must be at most model.num_experts = 1, got 2'),
    ('model.num_selected=1 model.pretrained=x', 'model.num_selected must be at least 2 for model.pretrained, got 1'),
    ('model.conv=static', 'unknown config key model.conv'),
    ('model.vocab_size=20 data.path={texts}/nowhere', 'model.vocab_size is 20'),
    ('model.num_classes=3', "model.num_classes is 3, the data has 2 classes ('"),
    ('data.path={texts}/numbers.tsv data.regression=True model.num_classes=2', 'numbers for labels: --config.model.'),
    ('data.text_columns=first,third', "'third'"),
    ('data.text_columns=', 'data.text_columns must'),
    ('data.vocabulary=', 'data.vocabulary must name a vocab.txt or tokenizer.json'),
    ('data.path={texts}/nowhere', "{texts}/nowhere' does not exist"),
    ('data.name=glue data.path={texts}/glue data.task=cola', 'CoLA/train.tsv'),
    ('model.pretrained={texts}/nowhere partition.start_step=1', '{texts}/nowhere'),
    ('partition.start_step=6', 'partition.start_step, every_steps or rounds, or raise train.steps'),
    ('train.steps=0 train.epochs=2.0 partition.start_step=12', 'every_steps or rounds, or raise train.epochs'),
    ('partition.keep_static=ffn', 'model.ffn=dense'),
    ('partition.batch_size=49', 'partition.batch_size must be at most the 48 training examples, got 49'),
]

COMMANDS = [
    ('train', '', 'the following arguments are required: --config, --workdir'),
    ('train', f'--config={DIGITS} --workdir=w --configg.train.steps=3', 'unknown argument --configg.train.steps=3'),
    ('train', f'--config={DIGITS} --workdir=w --config.train.steps', '--config.train.steps has no value'),
    ('train', f'--config={DIGITS} --workdir=', 'argument --workdir: it must name a folder'),
    ('train', '--config=nowhere.py --workdir=w', 'config file nowhere.py does not exist'),
    ('count', '', 'required: --config'),
    ('count', f'--config={DIGITS} --config.model.num_kernels=0', 'model.num_kernels must be'),
    ('evaluate', '', 'required: --workdir'),
    ('evaluate', '--workdir=nowhere', 'nowhere is not the workdir of a run'),
    ('evaluate', f'--workdir={DIGITS}', 'is not the workdir of a run'),
    ('predict', '--workdir=x --input=a --output=b', 'is not the workdir of a run'),
    ('inspect', '--workdir=nowhere', 'nowhere is not the workdir of a run'),
    ('inspect', '--workdir=x --data.path=y', 'unknown argument --data.path=y; see '),
    ('export', '--workdir=nowhere --out=o', 'nowhere is not the workdir of a run'),
    ('demo', '--workdir={tmp}/demo --seeds=1000000', '--seeds must be an integer from 1 to 1000, got 1000000'),
    ('demo', '--workdir={tmp}/demo --seeds=0', '--seeds must be an integer from 1 to 1000, got 0'),
    ('demo', '--workdir={tmp}/demo --only=texts', "--only must be one of lm, digits, got 'texts'"),
    ('demo', f'--workdir={{tmp}}/demo --configs={ROOT}/configs --config.train.seed=3', 'train.seed'),
    ('demo', '--workdir={tmp}/demo --configs={tmp}/nowhere', '{tmp}/nowhere/lm_dense.py does not exist'),
    ('sweep', 'nowhere.py --workdir={tmp}/sweep', 'nowhere.py does not exist'),
    ('report', 'nowhere', 'nowhere'),
    ('train', f'--config={DIGITS} --workdir=w --join-seconds=9999999999', '--join-seconds must be an integer from 0'),
    ('train', '--config=x --workdir=w --coordinator=h:1 --num-processes=4294967296 --process-id=0', 'got h:1, 429'),
    ('nothing', '', 'invalid choice'),
]


def refuse(refused, tmp_path, texts, command, flags, says):
    """Run a command that must be refused; `refused` compares all bytes and times of tmp_path before and after."""
    places = {'{tmp}': str(tmp_path), '{texts}': str(texts)}
    for name, path in places.items():
        flags, says = [str(flag).replace(name, path) for flag in flags], says.replace(name, path)
    line = refused(command, *flags)
    assert says in line, line


CONFIGS = [(DIGITS, *row) for row in IMAGES] + [(GLUE, *row) for row in TEXTS]


@pytest.mark.parametrize(('config', 'overrides', 'says'), CONFIGS, ids=lambda value: str(value)[:50])
def test_configs(refused, tmp_path, texts, config, overrides, says):
    base = FLAGS if config == DIGITS else [f'--config.{flag}' for flag in small_text_flags(texts)]
    flags = [f'--config.{override}' for override in overrides.split()]
    refuse(refused, tmp_path, texts, 'train', [f'--config={config}', *base, *flags, '--workdir={tmp}/run'], says)


def test_a_regular_expression_without_end(refused, monkeypatch):
    monkeypatch.setattr(setup, '_deadline', functools.partial(setup._deadline, seconds=1))
    line = refused('count', f'--config={DIGITS}', *FLAGS, r'--config.partition.keep_dynamic=([\w/]+)+!')
    assert 'no end of keep_dynamic or keep_static within 1 s: they must not repeat a repetition' in line


@pytest.mark.parametrize(('command', 'flags', 'says'), COMMANDS, ids=lambda value: value[:40])
def test_flags(refused, monkeypatch, tmp_path, command, flags, says):
    monkeypatch.chdir(tmp_path)
    refuse(refused, tmp_path, '', command, flags.split(), says)


# Folders of photos: what is wrong with them, further overrides, and a part of the line.
def replace_photo(content):
    return lambda root: (root / 'train' / 'dog' / '3.png').write_bytes(content)


def put_pipe(root):
    (root / 'train' / 'dog' / '3.png').unlink()
    os.mkfifo(root / 'train' / 'dog' / '3.png')


PHOTOS = [
    (lambda root: None, 'model.num_classes=10', "the data has 2 classes ('cat', 'dog'): --config.model.num_classes=2"),
    (lambda root: shutil.rmtree(root / 'val'), 'data.name=imagenet data.on_bad=skip', 'val/'),
    (replace_photo(b'no image'), '', 'train/dog/3.png'),
    (replace_photo(claim_size(100_000, 100_000)), '', '10,000,000,000 pixels'),
    (put_pipe, '', 'train/dog/3.png'),
]


@pytest.mark.parametrize(('change', 'overrides', 'says'), PHOTOS)
def test_folders_of_photos(refused, tmp_path, change, overrides, says):
    write_classes(tmp_path / 'photos', 5, 2)
    change(tmp_path / 'photos')
    keys = ['model.num_classes=2', 'data.image_size=8', 'data.path={tmp}/photos', *overrides.split()]
    flags = [f'--config={CIFAR}', *(f'--config.{key}' for key in keys), '--workdir={tmp}/run']
    refuse(refused, tmp_path, '', 'train', flags, says)


# Workdirs: a file, how it is changed (None: removed), the commands that refuse it, and a part of their line.
def set_value(*keys, value):
    def change(content):
        whole = json.loads(content)
        holder = whole
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = '<value>'
        return json.dumps(whole).replace('"<value>"', value).encode()

    return change


def half(content):
    return content[: len(content) // 2]


ALL = ('train', 'evaluate', 'predict', 'inspect')
BOTH = ('train', 'evaluate')
WORKDIRS = [
    ('config.json', half, ALL, 'run/config.json is damaged'),
    ('config.json', set_value('train', 'seed', value='1e999'), BOTH, 'workdir): train.seed must be an integer'),
    ('config.json', None, ('train',), 'no config.json'),
    ('data.json', lambda content: b'{}', BOTH, 'run/data.json is damaged'),
    ('data.json', set_value('class_names', value='[3]'), ('train',), 'run/data.json is damaged'),
    ('data.json', set_value('num_train', value='1400'), ('train',), 'num_train: 1400 -> 1442'),
    ('data.json', set_value('class_names', value='["ant", "bee"]'), ('train',), "classes: without 'ant', 'bee'"),
    ('data.json', None, ('train',), 'data.json'),
    ('metrics.jsonl', lambda content: b'\xff' + content, ('train',), 'metrics.jsonl, line 1'),
    ('metrics.jsonl', lambda content: b'{bad\n' + content, ('train',), 'metrics.jsonl, line 1'),
    ('partition.json', None, ('inspect',), 'partition.json'),
    ('partition.json', half, ('inspect',), 'run/partition.json is damaged'),
    ('partition.json', set_value('totals', 'positions', value='1' + '0' * 400), ('inspect',), 'positions'),
    ('timing.json', None, ('evaluate',), 'checkpoint'),  # the run below has none
    ('timing.json', None, ('predict',), "new.csv' does not exist"),
]
MORE = {'train': ROUND_FLAGS, 'predict': ['--input={tmp}/new.csv', '--output={tmp}/out.csv']}


@pytest.mark.parametrize(('name', 'change', 'commands', 'says'), WORKDIRS)
def test_workdirs(refused, tmp_path, name, change, commands, says):
    root = tmp_path / 'run'
    root.mkdir()
    config = small_config(**IN_ROUNDS).to_dict()
    data = {'class_names': [str(digit) for digit in range(10)], 'num_train': 1442, 'num_eval': 355}
    files = {'config': config, 'data': data, 'partition': PARTITION, 'timing': {}}
    for stem, content in files.items():
        (root / f'{stem}.json').write_text(json.dumps(content))
    (root / 'metrics.jsonl').write_text('{"step": 6, "split": "eval", "loss": 1.5, "accuracy": 0.5}\n')
    if change:
        (root / name).write_bytes(change((root / name).read_bytes()))
    else:
        (root / name).unlink()
    for command in commands:
        refuse(refused, tmp_path, '', command, ['--workdir={tmp}/run', *MORE.get(command, [])], says)


def test_workdirs_of_another_config_and_without_a_sound_checkpoint(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    flags = [*ROUND_FLAGS, f'--workdir={workdir}']
    line = refused('train', *flags, '--config.optim.learning_rate=0.2', '--config.train.seed=5')
    assert 'optim.learning_rate: 0.1 -> 0.2; train.seed: 0 -> 5' in line
    config = json.loads((workdir / 'config.json').read_text())
    config['model']['width_multiplier'] = 0.125
    (workdir / 'config.json').write_text(json.dumps(config))
    commands = [('train', [*ROUND_FLAGS, '--config.model.width_multiplier=0.125']), ('evaluate', [])]
    for command, more in commands:
        assert 'checkpoints/6 does not fit the model' in refused(command, *more, f'--workdir={workdir}')
    for path in (workdir / 'checkpoints').iterdir():
        (path / 'manifest.json').write_text('{"format": ')
    for command, more in commands:
        assert 'no sound checkpoint (6: manifest.json' in refused(command, *more, f'--workdir={workdir}')


def test_a_finished_run_without_its_last_evaluation(refused, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    # With a key that is free on resume, so that config.json would change.
    flags = [*ROUND_FLAGS, f'--workdir={workdir}', '--config.train.keep_checkpoints=1']
    lines = [line for line in (workdir / 'metrics.jsonl').read_text().splitlines() if '"eval"' not in line]
    for last in ([], ['{"step": 6, "split": "eval", "loss": 2}']):
        (workdir / 'metrics.jsonl').write_text('\n'.join([*lines, *last]) + '\n')
        assert 'metrics.jsonl has lost the last evaluation' in refused('train', *flags)
    (workdir / 'metrics.jsonl').unlink()
    (workdir / 'metrics.jsonl').mkdir()
    assert 'metrics.jsonl is not a file' in refused('train', *flags)


def test_a_second_run_is_refused_while_the_first_lives(refused, tmp_path, monkeypatch):
    lines = []
    evaluate = trainer.Run.evaluate

    def second(run, step):
        if not lines:
            lines.append(refused('train', *ROUND_FLAGS, f'--workdir={tmp_path / "run"}'))
        evaluate(run, step)

    monkeypatch.setattr(trainer.Run, 'evaluate', second)
    trainer.train(small_config(**IN_ROUNDS), tmp_path / 'run', devices=one_device())
    assert f'{tmp_path / "run"} is in use by a run on ' in lines[0] and f'process {os.getpid()}, since 20' in lines[0]
    assert not (tmp_path / 'run' / lock.LOCK).exists()


def test_what_evaluate_may_not_change(refused, finished_run, finished_text_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    for flags, says in (
        ('train.seed=1 data.name=folder', 'train.seed, data.name cannot be changed for the run in '),
        ('train.seed=1', 'only data.path, debug, model.plan, parallel, partition.compact, '),
        ('data.path=elsewhere', 'path'),
    ):
        assert says in refused('evaluate', f'--workdir={workdir}', *(f'--config.{flag}' for flag in flags.split()))
    data = json.loads((workdir / 'data.json').read_text())
    (workdir / 'data.json').write_text(json.dumps({**data, 'class_names': ['ant', *data['class_names'][1:]]}))
    assert "classes: without 'ant', with '0'" in refused('evaluate', f'--workdir={workdir}')
    texts = shutil.copytree(finished_text_run, tmp_path / 'texts')
    line = refused('evaluate', f'--workdir={texts}', '--config.data.task=mrpc')
    assert 'only data.path, debug, model.plan, model.remat, parallel, partition.compact, ' in line


def test_a_run_of_texts_whose_tokenizer_is_lost(refused, finished_text_run, texts, tmp_path):
    workdir = shutil.copytree(finished_text_run, tmp_path / 'run')
    (tmp_path / 'new.csv').write_text('first,second\nthe cat,ran\n')
    predict = ['predict', f'--workdir={workdir}', f'--input={tmp_path}/new.csv', f'--output={tmp_path}/out.csv']
    train = ['train', f'--config={GLUE}', f'--workdir={workdir}']
    train += [f'--config.{flag}' for flag in small_text_flags(texts, **TEXT_ROUNDS)]
    (workdir / 'tokenizer.json').write_text('{"version": ')
    for command in (['evaluate', f'--workdir={workdir}'], predict):
        assert 'tokenizer.json' in refused(*command)
    (workdir / 'tokenizer.json').unlink()
    for command in (['evaluate', f'--workdir={workdir}'], predict, train):
        assert 'tokenizer.json' in refused(*command)


def test_workdirs_that_cannot_be_written(refused, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('precious')
    for workdir, says in (
        (f'{tmp_path}/file', 'file is not a folder'),
        (f'{tmp_path}/file/below/it', f'{tmp_path}/file is not a folder'),
        (f'{tmp_path}/{"x" * 300}', 'File name too long'),
        ('/proc/run', 'cannot be written'),
    ):
        assert says in refused('train', f'--config={DIGITS}', *FLAGS, f'--workdir={workdir}')
    closed = tmp_path / 'closed'
    closed.mkdir(mode=0o500)
    # The system lets root write anywhere.
    ask = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: ask(path, mode) and not (path == closed and mode & os.W_OK))
    for workdir in ('closed', 'closed/run'):
        line = refused('train', f'--config={DIGITS}', *FLAGS, f'--workdir={tmp_path}/{workdir}')
        assert f'{tmp_path}/closed cannot be written: no permission' in line


FLAGS_WITH_PATHS = [
    'train --config={} --workdir=w',
    'train --config=x --workdir={}',
    *(f'{verb} --workdir={{}}' for verb in ('evaluate', 'inspect', 'export', 'predict', 'sweep', 'demo')),
    'evaluate --workdir=x --confusion={}',
    'export --workdir=x --out={}',
    'predict --workdir=x --input={} --output=y',
    'predict --workdir=x --input=y --output={}',
    'demo --configs={}',
    'sweep {} --workdir=w',
    'report {}',
    'compare {}',
    'compare x --out={}',
    *(f'count --config={DIGITS} --config.{key}={{}}' for key in ('data.path', 'model.pretrained')),
    *(f'count --config={GLUE} --config.{key}={{}}' for key in ('data.path', 'data.vocabulary', 'model.pretrained')),
]


@pytest.mark.parametrize('kind', ['x' * 300, '~nosuchuser/x', 'loop/x', 'closed/x'])
def test_paths_that_cannot_be_looked_at(refused, tmp_path_factory, monkeypatch, kind):
    monkeypatch.chdir(tmp_path_factory.mktemp('paths'))
    os.symlink('loop', 'loop')
    look = os.stat

    def stat(path, *arguments, **named):  # the system lets root look anywhere
        if 'closed' in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path, *arguments, **named)

    monkeypatch.setattr(os, 'stat', stat)
    for flags in FLAGS_WITH_PATHS:
        line = refused(*flags.format(kind).split())
        assert f"{kind}' cannot be reached: " in line, line


def test_the_home_folder(refused, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert f'error: {tmp_path}/runs/x is not the workdir of a run' in refused('evaluate', '--workdir=~/runs/x')
    flags = ('--config.data.name=folder', '--config.data.path=~/photos', f'--workdir={tmp_path}/run')
    assert f"{tmp_path}/photos' does not exist" in refused('train', f'--config={DIGITS}', *flags)
    assert 'must be UTF-8' in refused('train', f'--config={DIGITS}', '--workdir=' + os.fsdecode(b'~/\xff'))


def run(*command, devices=1):
    flag = f'--xla_force_host_platform_device_count={devices}'
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flag}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


COUNT = """
import sys
from pad_jax import __main__ as commands
sys.argv = ['pad_jax', 'count', '--config', 'configs/digits_resnet10_pad.py', '--config.debug', 'true']
commands.main()
heavy = {'tensorflow_datasets', 'matplotlib', 'sklearn', 'scipy', 'tensorboardX', 'grain', 'orbax.checkpoint'}
print(*sorted(heavy & sys.modules.keys()), file=sys.stderr, end='')
"""


def test_commands_as_a_user_starts_them(tmp_path):
    """Statuses and streams of whole processes, and no heavy import; all other tests here run inside this process."""
    flags = ('--config=configs/digits_resnet10_pad.py', f'--workdir={tmp_path}/run')
    found = run('train.py', *flags, '--config.data.batch_size=60', '--config.train.seed=1', devices=8)
    assert found.returncode == 2, found.stderr
    assert found.stdout == '' and found.stderr.count('\n') == 1 and found.stderr.startswith('error: '), found.stderr
    assert list(tmp_path.iterdir()) == []
    counted = run('-c', COUNT)
    assert counted.returncode == 0 and counted.stderr == '', counted.stderr
    assert json.loads(counted.stdout)['dynamic_fraction'] == pytest.approx(0.3, abs=1e-4)
