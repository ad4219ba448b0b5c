"""Sweeps end to end, with networks of one block, and with fake runs."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from pad_jax import __main__ as commands
from pad_jax.errors import BadInput, Stopped
from pad_jax.reports.sweep import BASE, COMMAND, SweepRun, load_variants, read_ablation, read_sweep, run_sweep
from pad_jax.reports.sweep_report import report_sweep
from pad_jax.training.cli import exit_status
from pad_jax.training.lock import WorkdirLock
from pad_jax.training.setup import make_inputs, make_model, make_run_optimizer, measure_lengths, open_source
from pad_jax.training.state import init_state
from tests.training.tiny import DIGITS, ROOT, SMALL
from tests.training.trainer_test import assert_same_run

pytestmark = pytest.mark.usefixtures('one_block')
HERE = Path(__file__).parent
FAKE, SMALL_RUN = ([sys.executable, str(HERE / name)] for name in ('fake_run.py', 'small_sweep.py'))
RANDOM = {'partition.criterion': 'random'}
SHORT = {'train.steps': 16, 'train.eval_every_steps': 8, 'train.checkpoint_every_steps': 4, 'train.keep_checkpoints': 9}


def write_ablation(folder, *variants, base=DIGITS):
    path = folder / 'ablation.py'
    path.write_text(
        'from ml_collections import ConfigDict\n\n\n'
        f"def get_ablation():\n    return ConfigDict({{'base': {str(base)!r}, 'variants': {variants!r}}})\n"
    )
    return path


def named(*names):
    """Make variants that differ in an unimportant key."""
    return [(name, {'optim.weight_decay': number / 100}) for number, name in enumerate(names, start=1)]


def fake(path, folder, seeds=1, jobs=1, overrides=()):
    run_sweep(path, folder, seeds, jobs, overrides, FAKE)


def order(folder):
    return (folder / 'order.txt').read_text().splitlines()


def read_runs(folder):
    """Read the runs of a sweep from its report."""
    report_sweep(folder)
    with (folder / 'report' / 'runs.csv').open() as file:
        return list(csv.DictReader(file))


def wait_for(found, process):
    end = time.monotonic() + 60
    while not found():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def start(run, path, folder, *overrides):
    """Start a sweep with one seed in a process group of its own."""
    command = [sys.executable, HERE / 'small_sweep.py', run[1], path, folder, 1, 1, *overrides]
    return subprocess.Popen(list(map(str, command)), start_new_session=True, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_it_leaves_what_an_uninterrupted_one_does(tmp_path, monkeypatch, capfd):
    # One device, and little time for the compiler.
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0')
    path, killed, whole = write_ablation(tmp_path, ('random', RANDOM)), tmp_path / 'killed', tmp_path / 'whole'
    overrides = [f'{name}={value}' for name, value in (SMALL | SHORT).items()]
    process = start(SMALL_RUN, path, killed, *overrides)
    first = SweepRun(killed, BASE, 0).workdir
    wait_for((first / 'checkpoints' / '4' / '_CHECKPOINT_METADATA').exists, process)
    process.kill()  # its run lives on until its next step is done
    process.wait()
    assert not SweepRun(killed, BASE, 0).is_finished and not SweepRun(killed, 'random', 0).workdir.exists()
    run_sweep(path, killed, 1, 2, overrides, SMALL_RUN)
    assert 'resumes from the checkpoint of step' in (killed / BASE / 'seed_0.log').read_text()
    run_sweep(path, whole, 1, 2, overrides, SMALL_RUN)
    configs = load_variants(read_ablation(path), overrides)
    for name, config in configs.items():
        assert SweepRun(killed, name, 0).is_finished
        assert_same_run(SweepRun(killed, name, 0).workdir, SweepRun(whole, name, 0).workdir, config)
    assert read_sweep(killed) == read_sweep(whole)
    rows, others = ([row | {'seconds_per_step': None} for row in read_runs(folder)] for folder in (killed, whole))
    assert rows == others and [row['state'] for row in rows] == ['finished'] * 2
    # The third call finds nothing to do.
    capfd.readouterr()
    run_sweep(path, killed, 1, 1, overrides, FAKE)
    assert '2 runs in ' in capfd.readouterr().err and not (killed / 'order.txt').exists()


@pytest.mark.slow
@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_its_runs_have_stopped(tmp_path, number, status):
    path, folder = write_ablation(tmp_path, *named('waits', 'last')), tmp_path / 'sweep'
    process = start(FAKE, path, folder)
    waits = SweepRun(folder, 'waits', 0).workdir
    wait_for((waits / 'begun').exists, process)
    os.killpg(process.pid, number)  # as a terminal does; the runs block it
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert (waits / 'checkpoint').exists() and not SweepRun(folder, 'waits', 0).is_finished
    assert f'{number.name}: 2 runs are left' in said and 'failed: ' not in said
    fake(path, folder)
    assert order(folder) == ['base seed 0', 'waits seed 0', 'waits seed 0', 'last seed 0']


def test_a_run_that_an_orphan_still_holds_is_announced(tmp_path, capfd):
    folder, path = tmp_path / 'sweep', write_ablation(tmp_path, *named('one'))
    fake(path, folder)
    run = SweepRun(folder, 'one', 1)
    with WorkdirLock(run.workdir) as lock:
        lock.take()
        fake(path, folder, seeds=2, jobs=2)
    lines = [line for line in capfd.readouterr().err.splitlines() if ' waits ' in line]
    assert len(lines) == 1 and lines[0].startswith(
        f'sweep: one seed 1 waits up to 600 s for a run that is stopping: {run.workdir} is in use by a run on '
    )


def test_runs_go_seed_by_seed_and_seeds_and_variants_are_added(tmp_path):
    folder = tmp_path / 'sweep'
    fake(write_ablation(tmp_path, *named('one')), folder, seeds=2)
    assert order(folder) == ['base seed 0', 'one seed 0', 'base seed 1', 'one seed 1']
    for seed in (0, 1):
        config = json.loads((SweepRun(folder, 'one', seed).workdir / 'config.json').read_text())
        assert (config['train']['seed'], config['optim']['weight_decay']) == (seed, 0.01)
    path = write_ablation(tmp_path, *named('one', 'two'))
    fake(path, folder, seeds=3)
    assert order(folder)[4:] == ['two seed 0', 'two seed 1', 'base seed 2', 'one seed 2', 'two seed 2']
    content = json.loads((folder / 'sweep.json').read_text())
    assert content['base'] == DIGITS.name
    assert content['variants'] == dict(named('one', 'two')) and content['seeds'] == 3
    assert content['config']['partition']['dynamic_fraction'] == 0.3
    # Fewer seeds keep the number of planned ones.
    fake(path, folder, seeds=1)
    assert len(order(folder)) == 9 and read_sweep(folder).seeds == 3


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capfd):
    folder = tmp_path / 'sweep'
    fake(write_ablation(tmp_path, *named('one')), folder)
    (folder / 'blocked').touch()
    with pytest.raises(Stopped, match='3/7 runs, 4 failed'):
        fake(write_ablation(tmp_path, *named('one', 'fails', 'crashes', 'vanishes', 'blocked', 'last')), folder)
    assert SweepRun(folder, 'last', 0).is_finished
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith('sweep: failed: ')]
    assert lines == [
        'sweep: failed: fails seed 0: exit 1: then the disk caught fire',
        'sweep: failed: crashes seed 0: killed by SIGKILL: without output',
        'sweep: failed: vanishes seed 0: exit 1: without output',
        f'sweep: failed: blocked seed 0: cannot start: File exists: {folder}/blocked',
    ]
    assert '3/7 runs, 4 failed, 0:00:00 left; last seed 0 done in ' in said


def test_a_run_without_its_checkpoints_is_trained_again(tmp_path):
    """The report would call it unfinished."""
    path, folder = write_ablation(tmp_path, *named('one')), tmp_path / 'sweep'
    fake(path, folder)
    shutil.rmtree(SweepRun(folder, 'one', 0).workdir / 'checkpoints')
    fake(path, folder)
    assert order(folder) == ['base seed 0', 'one seed 0', 'one seed 0']


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def fail(folder, sweep):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('pad_jax.reports.sweep.write_sweep', fail)
    with pytest.raises(Stopped, match=r'sweep\.json cannot be written: No space left on device'):
        fake(write_ablation(tmp_path, *named('one')), tmp_path / 'sweep')


def test_the_base_lies_in_the_folder_above_however_the_file_is_named(monkeypatch):
    monkeypatch.chdir(ROOT / 'configs' / 'ablations')
    assert read_ablation(Path('criterion.py')).base == ROOT / 'configs' / 'cifar_resnet10_pad.py'


def test_jobs_run_side_by_side_and_share_the_memory_of_a_device(tmp_path, monkeypatch):
    monkeypatch.delenv('XLA_PYTHON_CLIENT_PREALLOCATE', raising=False)
    path, folder = write_ablation(tmp_path, *named('meets_one', 'meets_two')), tmp_path / 'sweep'
    fake(path, folder, jobs=3)
    for name in ('meets_one', 'meets_two'):
        assert SweepRun(folder, name, 0).is_finished and (folder / f'{name}.here').read_text() == 'false'


def test_variants_of_a_seed_begin_with_the_same_parameters(tmp_path):
    small = [f'{name}={value}' for name, value in SMALL.items()]
    variants = ('wide', {'partition.dynamic_fraction': 0.8}), ('static', {'model.conv': 'static'})
    found = {}
    for name, config in load_variants(read_ablation(write_ablation(tmp_path, *variants)), small).items():
        optimizer = make_run_optimizer(config, measure_lengths(config, 1442))
        params = init_state(make_model(config), optimizer, make_inputs(config), seed=3).params
        found[name] = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert found['wide'].keys() == found[BASE].keys()
    for name in ('wide', 'static'):
        shared = [
            key for key in found[name].keys() & found[BASE].keys() if found[name][key].shape == found[BASE][key].shape
        ]
        assert "['classifier']['kernel']" in shared
        assert all((found[name][key] == found[BASE][key]).all() for key in shared)


WRONG = [
    ([('one', {'model.kernels': 2})], r'variant one of .*unknown config key model\.kernels, did you mean model\.num'),
    ([('one', RANDOM), ('one', {'optim.weight_decay': 0.5})], 'ablation.py: 2 variants are called one'),
    ([('one', {'partition.dynamic_fraction': 0.3})], 'variant one changes nothing: it is the same as base'),
    ([('one', RANDOM), ('two', RANDOM)], 'variant two changes nothing: it is the same as one'),
    ([('one', {})], 'must change 1 to 3 keys, got 0'),
    ([('one', {f'train.{number}': 1 for number in range(4)})], 'must change 1 to 3 keys, got 4'),
    ([('a/b', RANDOM)], r"'a/b' must be letters"),
    ([('report', RANDOM)], "'report' must be .* none of base, report"),
    ([('one', {'train.seed': 1})], r'cannot change train\.seed, which all variants share'),
    ([('one', {'partition.criterion': 'best'})], r'variant one of .*partition\.criterion must be one of'),
    ([('one', {'partition.keep_static': 'stage9'})], "variant one: .*'stage9' matches none"),
    ([('one', {'partition.start_step': 5000})], 'variant one: the last round of the partition comes after 5000 steps'),
    ([('one', {'data.path': 'nowhere', 'data.name': 'folder'})], r'cannot change data\.path, which all variants share'),
    ([('one', ['partition.criterion'])], r'must be pairs \(name'),
]


@pytest.mark.parametrize('variants, said', WRONG)
def test_a_wrong_variant_is_refused(tmp_path, variants, said):
    with pytest.raises(BadInput, match=said):
        fake(write_ablation(tmp_path, *variants), tmp_path / 'sweep')
    assert not (tmp_path / 'sweep').exists()


def test_a_variant_with_other_data_is_refused(tmp_path, monkeypatch):
    """Before training: the report would refuse its runs after days of training."""

    def open_flipped(config):
        source = open_source(config)
        if not config.data.flip:
            return source
        return dataclasses.replace(source, spec=dataclasses.replace(source.spec, num_train=721))

    monkeypatch.setattr('pad_jax.reports.sweep.open_source', open_flipped)
    with pytest.raises(BadInput, match=r'variant one has other data than base \(num_train: 1442 -> 721\): use one'):
        fake(write_ablation(tmp_path, ('one', {'data.flip': True})), tmp_path / 'sweep')
    assert not (tmp_path / 'sweep').exists()


def test_a_value_is_kept_as_the_config_has_it(tmp_path):
    """The report compares sweep.json with the configs of the runs."""
    fake(write_ablation(tmp_path, ('one', {'partition.dynamic_fraction': '0.5'})), tmp_path / 'sweep')
    assert read_sweep(tmp_path / 'sweep').variants == {'one': {'partition.dynamic_fraction': 0.5}}


def test_all_problems_are_reported_at_once(tmp_path):
    path = write_ablation(tmp_path, ('one', {'train.stops': 1}), ('two', {'partition.criterion': 'best'}))
    with pytest.raises(BadInput, match=r'(?s)variant one of .*train\.stops.*; variant two of .*partition\.criterion'):
        fake(path, tmp_path / 'sweep')


@pytest.mark.parametrize(
    'text, said',
    [
        ('x = 1', "fails: KeyError: 'get_ablation'"),
        ('import nothing_like_it', 'fails: ModuleNotFoundError'),
        ('def get_ablation():\n    return {}', r'get_ablation\(\) of .* must return a ConfigDict, got dict'),
        (
            'from ml_collections import ConfigDict as C\n\ndef get_ablation():\n    return C({"base": 1})',
            'must return base',
        ),
    ],
)
def test_a_file_that_is_not_an_ablation(tmp_path, text, said):
    path = tmp_path / 'ablation.py'
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        fake(path, tmp_path / 'sweep')


@pytest.mark.parametrize(
    'arguments, said',
    [
        ({'seeds': 0}, '--seeds must be an integer from 1 to 1000, got 0'),
        ({'jobs': 1001}, '--jobs must be an integer from 1 to 1000, got 1001'),
        ({'overrides': ['train.seed=1']}, r'train\.seed cannot be changed'),
        ({'overrides': ['train.stops=1']}, r'did you mean train\.steps'),
        ({'overrides': ['partition.criterion=random']}, 'variant one changes nothing'),
    ],
)
def test_wrong_flags(tmp_path, arguments, said):
    with pytest.raises(BadInput, match=said):
        fake(write_ablation(tmp_path, ('one', RANDOM)), tmp_path / 'sweep', **arguments)
    assert not (tmp_path / 'sweep').exists()


def test_a_folder_that_holds_something_else(tmp_path):
    path = write_ablation(tmp_path, *named('one'))
    with pytest.raises(BadInput, match=r'holds ablation\.py but not sweep\.json: use another folder'):
        fake(path, tmp_path)
    with pytest.raises(BadInput, match='is not a folder'):
        fake(path, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ['ablation.py']


def test_a_folder_that_holds_another_sweep(tmp_path, monkeypatch):
    folder = tmp_path / 'sweep'
    fake(write_ablation(tmp_path, *named('one')), folder)
    before = {entry: entry.read_bytes() for entry in folder.rglob('*') if entry.is_file()}

    def refused(said, *variants, **arguments):
        with pytest.raises(BadInput, match=said):
            fake(write_ablation(tmp_path, *variants), folder, **arguments)

    refused("holds another sweep .*variant one: {'optim.weight_decay': 0.01} -> 'missing'", *named('other'))
    refused(
        r"variant one: {'optim.weight_decay': 0.01} -> {'optim.weight_decay': 0.5}",
        ('one', {'optim.weight_decay': 0.5}),
    )
    refused(r'data\.batch_size: 64 -> 32', *named('one'), overrides=['data.batch_size=32'])
    with pytest.raises(BadInput, match=r"base: 'digits_resnet10_pad\.py' -> 'digits_resnet10_random\.py'"):
        fake(write_ablation(tmp_path, *named('one'), base=DIGITS.with_name('digits_resnet10_random.py')), folder)
    with monkeypatch.context() as patch:
        patch.setattr('pad_jax.reports.sweep.__version__', '9.9')
        refused(r"version: '\d[\d.]*' -> '9\.9'", *named('one'))
    assert {entry: entry.read_bytes() for entry in folder.rglob('*') if entry.is_file()} == before
    record = SweepRun(folder, 'base', 0).workdir / 'data.json'
    record.write_text(record.read_text().replace('1442', '1000'))
    refused('was trained on other data .*num_train: 1000 -> 1442', *named('one'))
    (folder / 'sweep.json').write_text('{"variants": {}}')
    refused(r'sweep\.json is damaged: use another folder', *named('one'))
    (folder / 'sweep.json').write_text('{')
    refused(r'sweep\.json is damaged', *named('one'))


def test_flags_of_the_command_arrive(tmp_path, monkeypatch):
    path, found = write_ablation(tmp_path, *named('one')), []
    monkeypatch.setattr('pad_jax.reports.sweep.run_sweep', lambda *arguments: found.append(arguments))
    flags = f'{path} --workdir={tmp_path} --seeds=2 --jobs=4 --config.train.steps=40 --import=json'.split()
    monkeypatch.setattr(sys, 'argv', ['pad_jax', 'sweep', *flags])
    assert exit_status(commands.main) == 0
    assert found == [(path, tmp_path, 2, 4, ['train.steps=40'], (*COMMAND, 'json'))]
