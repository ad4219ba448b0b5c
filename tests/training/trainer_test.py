import collections
import functools
import itertools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from pad_jax.layers import CONVS
from pad_jax.models import MODELS
from pad_jax.training import trainer
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.evaluate import evaluate_workdir
from pad_jax.training.setup import (
    make_inputs,
    make_model,
    make_run_optimizer,
    measure_lengths,
    open_source,
    plan_layers,
)
from pad_jax.training.state import abstract_state
from pad_jax.training.trainer import train
from pad_jax.training.workdir import add_version, read_metrics, read_versions
from pad_jax.version import __version__
from tests.training.fixtures import IN_ROUNDS
from tests.training.tiny import ONE_BLOCK, one_device, small_config

pytestmark = pytest.mark.usefixtures('one_block')


class Killed(BaseException):
    """Stands in for SIGKILL: the run ends, and the trainer tidies up nothing."""


def kill_before(monkeypatch, name, step):
    """The run dies when it is about to do `name` at `step`."""
    method = getattr(trainer.Run, name)

    def dies(run, at, *rest):
        if at == step:
            raise Killed
        return method(run, at, *rest)

    monkeypatch.setattr(trainer.Run, name, dies)


def kill_in(monkeypatch, workdir, name, step, **changes):
    with monkeypatch.context() as patch:
        kill_before(patch, name, step)
        with pytest.raises(Killed):
            train(small_config(**changes), workdir, devices=one_device())


def last_evaluation(workdir):
    return [row for row in read_metrics(workdir) if row['split'] == 'eval'][-1]


def load_state(workdir, config):
    source = open_source(config)
    optimizer = make_run_optimizer(config, measure_lengths(config, source.spec.num_train))
    return Checkpoints(workdir / 'checkpoints').restore_newest(
        abstract_state(make_model(config), optimizer, make_inputs(config), config.optim.ema_decay > 0)
    )


def assert_same_run(workdir, other, config):
    """Bit for bit: metrics, the partition, and every tensor of the last checkpoint."""
    for name in ('metrics.jsonl', 'partition.json', 'config.json'):
        assert (workdir / name).read_text() == (other / name).read_text(), name

    def compare(path, one, another):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, another = jax.random.key_data(one), jax.random.key_data(another)
        np.testing.assert_array_equal(one, another, err_msg=str(path))

    states = load_state(workdir, config), load_state(other, config)
    jax.tree_util.tree_map_with_path(compare, *states)


def test_a_finished_run_leaves_what_the_contract_says(finished_run):
    names = 'checkpoints config.json data.json metrics.jsonl partition.json tensorboard timing.json versions.json'
    assert sorted(path.name for path in finished_run.iterdir()) == names.split()
    data = json.loads((finished_run / 'data.json').read_text())
    digests = data.pop('digests')
    assert [*digests] == ['contents of train', 'contents of val']
    assert data == {'class_names': [str(digit) for digit in range(10)], 'num_train': 1442, 'num_eval': 355}
    (events,) = finished_run.rglob('events.out.tfevents*')
    assert all(name.encode() in events.read_bytes() for name in ('config/text', 'κ/stage1_block1/conv1'))
    assert sorted(path.name for path in (finished_run / 'checkpoints').iterdir()) == ['4', '6']
    rows = [(row['step'], row['split']) for row in read_metrics(finished_run)]
    others = [(3, 'eval'), (3, 'partition'), (5, 'partition'), (6, 'eval')]
    assert sorted(rows) == sorted([(step, 'train') for step in range(1, 7)] + others)
    assert [step for step, _ in rows] == sorted(step for step, _ in rows)
    assert set(read_metrics(finished_run)[0]) == {
        'step', 'split', 'loss', 'accuracy', 'gradient_norm', 'temperature', 'learning_rate', 'dynamic_fraction',
    }  # fmt: skip
    fractions = [row['dynamic_fraction'] for row in read_metrics(finished_run) if row['split'] == 'train']
    # κ^(1/2), then κ, to the nearest of the 288 positions.
    assert fractions == [1, 1, 1, round(288 * 0.3**0.5) / 288, round(288 * 0.3**0.5) / 288, round(288 * 0.3) / 288]


def test_partition_json_says_what_count_promised(finished_run):
    found = json.loads((finished_run / 'partition.json').read_text())
    assert found['rounds'] == found['rounds_done'] == 2
    assert [layer['name'] for layer in found['layers']] == ['stage1_block1/conv1', 'stage1_block1/conv2']
    for layer in found['layers']:
        assert layer['granularity'] == 'element' and layer['positions'] == 3 * 3 * 4 * 4
    planned = plan_layers(small_config(**IN_ROUNDS))
    assert found['totals']['parameters'] == sum(
        layer.other_parameters + layer.positions + (layer.num_factors - 1) * layer.dynamic_positions
        for layer in planned
    )
    masks = load_state(finished_run, small_config(**IN_ROUNDS)).masks
    dynamic = {name: int(mask['kernel_mask'].sum()) for name, mask in masks['stage1_block1'].items()}
    assert {layer['name'].split('/')[1]: layer['dynamic_positions'] for layer in found['layers']} == dynamic


def test_evaluate_repeats_the_last_evaluation(finished_run):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob('*')}
    found = evaluate_workdir(finished_run)
    last = last_evaluation(finished_run)
    assert found == {'step': 6, 'temperature': 1, **{name: last[name] for name in ('examples', 'loss', 'accuracy')}}
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob('*')} == before


def test_evaluate_warns_of_a_temperature_above_one(finished_run, tmp_path, caplog):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '6')
    assert evaluate_workdir(workdir)['temperature'] == pytest.approx(30 - 29 * 4 / 5)
    assert 'step 4 of 6: the temperature of the attention is still 6.8' in caplog.text
    assert 'It is 1 after step 5' in caplog.text


def test_a_finished_run_is_not_trained_again_and_says_its_result(finished_run, tmp_path, capsys):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    (workdir / 'timing.json').unlink()  # as a kill right after the last checkpoint leaves it
    result = train(small_config(**IN_ROUNDS), workdir, 'mine', devices=one_device())
    assert json.loads((workdir / 'timing.json').read_text()) == {'seconds_per_step': None}
    assert result == last_evaluation(finished_run)
    assert_same_run(workdir, finished_run, small_config(**IN_ROUNDS))
    figures = f'6 steps, accuracy {result["accuracy"]:.4f}, loss {result["loss"]:.4f}, in {workdir}\n'
    assert capsys.readouterr().err == f'mine: is finished already: {figures}'


@pytest.mark.parametrize(
    'kills',
    [
        [('train', 4)],  # after a round, whose result is in no checkpoint
        [('save', 4)],  # with everything of step 4 logged, and the checkpoint missing
        pytest.param([('train', 2)], marks=pytest.mark.slow),  # before the first checkpoint
        pytest.param([('partition', 5)], marks=pytest.mark.slow),  # before a round
        pytest.param([('train', 2), ('train', 4), ('train', 4), ('save', 4), ('train', 6)], marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(monkeypatch, finished_run, tmp_path, kills, capsys):
    """The result is said at the end, and only then."""
    workdir = tmp_path / 'run'
    for name, step in kills:
        kill_in(monkeypatch, workdir, name, step, **IN_ROUNDS)
    with (workdir / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 9, "spl')
    assert ': done' not in capsys.readouterr().err
    result = train(small_config(**IN_ROUNDS), workdir, devices=one_device())
    last = f'train: done: 6 steps, accuracy {result["accuracy"]:.4f}, loss {result["loss"]:.4f}, in {workdir}'
    assert capsys.readouterr().err.splitlines()[-1] == last
    assert_same_run(workdir, finished_run, small_config(**IN_ROUNDS))


def test_a_run_resumes_from_the_newest_sound_checkpoint(finished_run, tmp_path, capsys):
    workdir = shutil.copytree(finished_run, tmp_path / 'run')
    (workdir / 'checkpoints' / '6' / 'manifest.json').write_text('{')
    train(small_config(**IN_ROUNDS), workdir, devices=one_device())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if ' is damaged (' in line]
    assert 'checkpoints/6 is damaged (' in line
    assert line.endswith('the latest sound one replaces it, and training keeps it as 6.damaged')
    assert_same_run(workdir, finished_run, small_config(**IN_ROUNDS))


def test_train_rows_are_means_since_the_last_row_across_a_kill(finished_run, monkeypatch, tmp_path):
    changes = {**IN_ROUNDS, 'train__log_every_steps': 5}
    kill_in(monkeypatch, tmp_path / 'run', 'train', 4, **changes)
    train(small_config(**changes), tmp_path / 'run', devices=one_device())
    single, found = (
        [row['loss'] for row in read_metrics(workdir) if row['split'] == 'train']
        for workdir in (finished_run, tmp_path / 'run')
    )
    assert found == pytest.approx([np.mean(single[:5]), single[5]], rel=1e-5)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_with_an_average_and_is_evaluated(monkeypatch, tmp_path):
    """With rounds of the partition in between, whose means the average takes over."""
    # Three kernels: a network that no other test compiles, as these compile without optimisation.
    changes = {**IN_ROUNDS, 'optim__ema_decay': 0.8, 'partition__handoff': 'mean', 'model__num_kernels': 3}
    train(small_config(**changes), tmp_path / 'whole', devices=one_device())
    kill_in(monkeypatch, tmp_path / 'run', 'train', 4, **changes)
    train(small_config(**changes), tmp_path / 'run', devices=one_device())
    found = evaluate_workdir(tmp_path / 'whole')
    assert_same_run(tmp_path / 'run', tmp_path / 'whole', small_config(**changes))
    assert found['loss'] == last_evaluation(tmp_path / 'whole')['loss']


# In a step that is saved anyway, and in one that is not.
@pytest.mark.parametrize(
    ('number', 'step'),
    [
        (signal.SIGTERM, 3),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((signal.SIGTERM, 4), (signal.SIGINT, 3))),
    ],
)
def test_a_signal_ends_the_run_with_a_checkpoint(monkeypatch, finished_run, tmp_path, number, step, capsys):
    workdir, config = tmp_path / 'run', small_config(**IN_ROUNDS)
    train_one = trainer.Run.train

    def interrupted(run, at, batch):
        if at == step:
            os.kill(os.getpid(), number)
        train_one(run, at, batch)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, 'train', interrupted)
        with pytest.raises(SystemExit) as caught:
            train(config, workdir, devices=one_device())
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert int(load_state(workdir, config).step) == step
    assert f'{number.name}: checkpoint of step {step} is written' in capsys.readouterr().err
    train(config, workdir, devices=one_device())
    assert_same_run(workdir, finished_run, config)


@pytest.mark.parametrize('strategy', ['pmap', pytest.param('shard_map', marks=pytest.mark.slow)])
def test_one_and_eight_devices_train_the_same_network(tmp_path, strategy):
    """Masks and partition to the bit, all else to what float32 sums in another order differ by."""
    states, rows, partitions, config = [], [], [], small_config(parallel=strategy)
    for devices in (one_device(), jax.local_devices()):
        workdir = tmp_path / str(len(devices))
        train(config, workdir, devices=devices)
        states.append(load_state(workdir, config))
        rows.append(read_metrics(workdir))
        partitions.append((workdir / 'partition.json').read_text())
    assert partitions[0] == partitions[1]
    jax.tree.map(np.testing.assert_array_equal, states[0].masks, states[1].masks)
    assert 0 < int(states[0].masks['stage1_block1']['conv1']['kernel_mask'].sum()) < 144
    for one, eight in zip(*rows, strict=True):
        assert one.pop('split') == eight.pop('split')
        assert one == pytest.approx(eight, rel=1e-3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    # The running variance too: of a device's own two examples it would be smaller by the spread between devices.
    for name in ('params', 'batch_stats'):
        jax.tree.map(close, getattr(states[0], name), getattr(states[1], name))


def test_steps_temperatures_and_rounds_retrace_nothing(monkeypatch, tmp_path):
    # Three kernels, so that no other test has compiled the network already.
    config = small_config(model__num_kernels=3, partition__rounds=3, partition__every_steps=1)
    model_class = type(make_model(config))
    original, traces = model_class.__call__, collections.Counter()

    def counted(model, images, *arguments, train=False, **options):
        traces[len(images), train] += 1
        return original(model, images, *arguments, train=train, **options)

    monkeypatch.setattr(model_class, '__call__', counted)
    train(config, tmp_path / 'run', devices=one_device())
    del traces[1, False]  # shapes, and the parameters' first values
    # The train step, the evaluation step; the gradient of the scores and the loss before and after a round.
    assert traces == {(16, True): 1, (16, False): 1, (32, True): 2}


def test_versions_that_trained_a_run_are_recorded(finished_run, tmp_path):
    assert read_versions(finished_run) == [__version__]
    assert read_versions(tmp_path) == []
    for _ in range(2):
        add_version(tmp_path)
        assert read_versions(tmp_path) == [__version__]
    (one,) = json.loads((tmp_path / 'versions.json').read_text())['environments']
    assert [*one] == ['pad_jax', 'python', 'jax', 'jaxlib', 'flax', 'optax', 'backend', 'device']
    assert (one['jax'], one['backend']) == (jax.__version__, 'cpu')
    (tmp_path / 'versions.json').write_text('{"pad_jax": ["0.0.1"]}')
    add_version(tmp_path)
    assert read_versions(tmp_path) == ['0.0.1', __version__]


COMPACT = {**IN_ROUNDS, 'partition__compact': True, 'partition__granularity': 'output', 'train__steps': 8}


@pytest.fixture(scope='module')
def compact_run(tmp_path_factory):
    """A run whose rounds come before steps 4 and 6 of 8, and the number of its parameters in each step."""
    workdir, sizes, inner = tmp_path_factory.mktemp('compact') / 'run', [], trainer.Run.train

    def noted(run, step, batch):
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(run.state.params)))
        inner(run, step, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, 'resnet10', ONE_BLOCK)
        patch.setattr(trainer.Run, 'train', noted)
        train(small_config(**COMPACT), workdir, devices=one_device())
    return workdir, sizes


def test_a_compact_run_gets_small_with_its_last_round_and_is_evaluated_as_it_was_trained(compact_run):
    workdir, sizes = compact_run
    assert len(set(sizes[:5])) == 1 == len(set(sizes[5:])) and sizes[5] < 0.8 * sizes[0]
    assert evaluate_workdir(workdir)['loss'] == last_evaluation(workdir)['loss']


@pytest.mark.slow
def test_a_masked_run_has_the_numbers_of_a_compact_one_and_may_continue_compact(monkeypatch, compact_run, tmp_path):
    masked, mixed = tmp_path / 'masked', tmp_path / 'mixed'
    train(small_config(**COMPACT | {'partition__compact': False}), masked, devices=one_device())
    rows, others = read_metrics(compact_run[0]), read_metrics(masked)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.pop('split') == other.pop('split') and row == pytest.approx(other, rel=1e-3)
    assert (compact_run[0] / 'partition.json').read_text() == (masked / 'partition.json').read_text()
    kill_in(monkeypatch, mixed, 'train', 8, **COMPACT | {'partition__compact': False})
    result = train(small_config(**COMPACT), mixed, devices=one_device())
    assert result['loss'] == pytest.approx(last_evaluation(compact_run[0])['loss'], rel=1e-3)


@pytest.mark.parametrize(
    ('name', 'step'), [('save', 6), *(pytest.param('train', step, marks=pytest.mark.slow) for step in (6, 8))]
)
def test_a_resumed_compact_run_equals_an_uninterrupted_one(monkeypatch, compact_run, tmp_path, name, step):
    """Before the round that compacts, before its result is stored, and after."""
    kill_in(monkeypatch, tmp_path, name, step, **COMPACT)
    train(small_config(**COMPACT), tmp_path, devices=one_device())
    assert_same_run(tmp_path, compact_run[0], small_config(**COMPACT))


HEADS = {'condconv': {''}, 'odconv': {'', '/channel', '/filter', '/spatial'}, 'dcd': {'/scaling', '/fusion'}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('conv', 'fraction'),
    [('static', 0.0), *itertools.product([conv for conv in CONVS if conv != 'static'], [0.3, 1.0])],
)
def test_a_run_of_each_convolution_from_its_config_to_its_report(conv, fraction, tmp_path):
    changes = {'partition__dynamic_fraction': fraction} if fraction else {}
    config = small_config(model__conv=conv, train__steps=2, model__plan='auto', **changes)
    train(config, tmp_path / 'run', devices=one_device())
    report = json.loads((tmp_path / 'run' / 'partition.json').read_text())
    layers = {layer['name']: layer for layer in report['layers']}
    positions = sum(layer['positions'] for layer in layers.values())
    assert sum(layer['dynamic_positions'] for layer in layers.values()) == round(fraction * positions)
    rounds = [row for row in read_metrics(tmp_path / 'run') if row['split'] == 'partition']
    assert len(rounds) == (0 < fraction < 1)
    if fraction:
        heads = HEADS.get(conv, {''})
        assert set(layers) == {f'stage1_block1/conv{index}{head}' for index in (1, 2) for head in heads}
