"""Every config key has an effect: a table of key -> (changed value, what it changes).

An observation is a function of a config whose result differs between the base and the base with that key changed.
"""

import functools
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pad_jax.errors import BadInput
from pad_jax.layers import CONVS
from pad_jax.models import MODELS
from pad_jax.training import trainer
from pad_jax.training.config import keys_of, load_config
from pad_jax.training.rounds import partition_state, plan_rounds, to_trained_storage
from pad_jax.training.setup import (
    abstract_variables,
    make_exclusions,
    make_inputs,
    make_model,
    make_run_optimizer,
    make_task,
    measure_lengths,
    open_source,
    plan_layers,
    start_from_pretrained,
)
from pad_jax.training.state import init_state
from pad_jax.training.steps import make_problem
from pad_jax.training.workdir import read_metrics
from tests.pretrained.torchvision_twin import make_resnet
from tests.training.tiny import DIGITS, ONE_BLOCK, SMALL, one_device

pytestmark = pytest.mark.usefixtures('one_block')


def lengths(config):
    return measure_lengths(config, open_source(config).spec.num_train)


def shapes(config):
    tree = abstract_variables(make_model(config), make_inputs(config))
    leaves = jax.tree_util.tree_leaves_with_path({name: tree.get(name, {}) for name in ('params', 'partition')})
    return [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in leaves]


def program(config):
    """What the network computes, as text."""
    model = make_model(config)
    size = config.data.image_size
    variables = abstract_variables(model, make_inputs(config))
    variables = {name: tree for name, tree in variables.items() if name != 'intermediates'}
    images = jax.ShapeDtypeStruct((16, size, size, 1), jnp.float32)
    return str(jax.make_jaxpr(lambda variables, images: model.apply(variables, images, 2.0))(variables, images))


def planned(config):
    return [(layer.name, layer.dynamic_positions) for layer in plan_layers(config)]


def rounds(config):
    return plan_rounds(config)


def partitioned(config):
    """Masks and parameters after one round before training."""
    model, source, partition = make_model(config), open_source(config), config.partition
    state = init_state(model, make_run_optimizer(config, lengths(config)), make_inputs(config), config.train.seed)
    state, _ = partition_state(
        state,
        partition.dynamic_fraction,
        problem=make_problem(make_task(config), model, partition.scales),
        source=source,
        temperature=optax.constant_schedule(config.train.temperature),
        batches=partition.batches,
        batch_size=partition.batch_size,
        criterion=partition.criterion,
        scope=partition.scope,
        handoff=partition.handoff,
        exclusions=make_exclusions(config),
    )
    return as_values({'masks': state.masks, 'params': state.params})


def stored_sizes(config):
    """Of all that is trained, after the only round of a partition."""
    model, optimizer = make_model(config), make_run_optimizer(config, lengths(config))
    state = init_state(model, optimizer, make_inputs(config), config.train.seed)
    thin = jax.tree.map(lambda mask: mask & (jnp.arange(mask.size) % 3 == 0).reshape(mask.shape), state.masks)
    state = to_trained_storage(state.replace(masks=thin, round=jnp.int32(1)), 1, config.partition.compact)
    return [leaf.size for leaf in jax.tree.leaves(state)]


def started(config):
    """The parameters before the first step."""
    model, optimizer = make_model(config), make_run_optimizer(config, lengths(config))
    state = init_state(model, optimizer, make_inputs(config), config.train.seed)
    return as_values(start_from_pretrained(config, model, state)[0].params)


def as_values(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tolist() for path, leaf in leaves}


def batches(config):
    """The first training batches; what a bad image does."""
    try:
        source = open_source(config)
    except BadInput as error:
        return str(error)
    batch = source.train_batch(0)
    return batch['image'].shape, batch['image'].tolist(), batch['label'].tolist(), source.spec


def updates(config):
    """Three steps of the optimizer on gradients that are given."""
    optimizer = make_run_optimizer(config, lengths(config))
    params = {'kernel': jnp.arange(1.0, 4.0)}
    state, found = optimizer.init(params), []
    for scale in (1.0, -2.0, 3.0):
        change, state = optimizer.update({'kernel': jnp.full(3, scale)}, state, params)
        params = optax.apply_updates(params, change)
        found.append(params['kernel'].tolist())
    return found


def trained(config, monkeypatch, tmp_path, observe=lambda run, losses: losses):
    """The losses of the trainer's first three steps on eight devices, or the error that they end with."""

    def finish(run, signals):
        batches = [run.replicas.place_batch(run.source.train_batch(number)) for number in range(3)]
        # The very step, compiled in a third of the time.
        step = run.train_step.lower(run.state, batches[0]).compile({'xla_backend_optimization_level': 0})
        losses = []
        for batch in batches:
            run.state, metrics = step(run.state, batch)
            losses.append(str(run.replicas.fetch(metrics)['loss']))
        return observe(run, losses)

    monkeypatch.setattr(trainer.Run, 'finish', finish)
    workdir = tmp_path / 'run'
    shutil.rmtree(workdir, ignore_errors=True)
    try:
        return trainer.train(config, workdir)
    except Exception as error:
        # A step compiled ahead raises jax's own kind, which has no public name.
        if 'FloatingPointError' not in type(error).__name__:
            raise
        return 'a NaN'


def placed(config, monkeypatch, tmp_path):
    """How the devices hold the state: numbers are the same in all forms."""
    observe = lambda run, losses: [leaf.shape for leaf in jax.tree.leaves(run.state)]  # noqa: E731
    return trained(config, monkeypatch, tmp_path, observe)


def lowered(config, monkeypatch, tmp_path):
    """The trainer's step as text: it takes a trace where what `trained` sees takes a compilation."""

    def finish(run, signals):
        batch = run.replicas.place_batch(run.source.train_batch(0))
        return run.train_step.lower(run.state, batch).as_text()

    monkeypatch.setattr(trainer.Run, 'finish', finish)
    shutil.rmtree(tmp_path / 'run', ignore_errors=True)
    return trainer.train(config, tmp_path / 'run', devices=one_device())


def run_files(config, tmp_path):
    """How many rows of which split a run writes, and which checkpoints stay."""
    workdir = tmp_path / 'run'
    shutil.rmtree(workdir, ignore_errors=True)
    trainer.train(config, workdir, devices=one_device())
    checkpoints = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
    return [(row['step'], row['split']) for row in read_metrics(workdir)], checkpoints


FOLDER = {
    'data.name': 'folder',
    'data.path': '{one}',
    'data.batch_size': 4,
    'model.num_classes': 2,
    'partition.batch_size': 4,
}

# key: (changed value, what it changes, further keys of base and change).
EFFECTS = {
    'model.name': ('resnet18', shapes, {}),
    'model.num_classes': (7, shapes, {}),
    'model.conv': ('static', shapes, {}),
    'model.num_kernels': (2, shapes, {}),
    'model.reduction': (2, shapes, {}),
    'model.width_multiplier': (0.125, shapes, {}),
    'model.stem': ('imagenet', shapes, {'data.image_size': 64}),
    'model.sync_batch_norm': (False, trained, {}),
    'model.pretrained': ('{weights}', started, {'model.name': 'resnet18', 'model.conv': 'static'}),
    'model.plan': ('shift', program, {'model.plan': 'outputs'}),
    'model.dtype': ('bfloat16', program, {}),
    'partition.dynamic_fraction': (0.6, planned, {}),
    'partition.criterion': ('magnitude', partitioned, {}),
    'partition.scope': ('layer', partitioned, {}),
    'partition.granularity': ('output', shapes, {}),
    'partition.rounds': (2, rounds, {}),
    'partition.schedule': ('linear', rounds, {'partition.rounds': 2}),
    'partition.start_step': (3, rounds, {}),
    'partition.every_steps': (2, rounds, {'partition.rounds': 2}),
    'partition.batches': (2, partitioned, {}),
    'partition.batch_size': (16, partitioned, {}),
    'partition.handoff': ('mean', partitioned, {'partition.criterion': 'magnitude'}),
    'partition.scales': ('none', shapes, {}),
    'partition.prune': (True, shapes, {}),
    'partition.compact': (True, stored_sizes, {}),
    'partition.keep_dynamic': ('conv1', partitioned, {'partition.criterion': 'magnitude'}),
    'partition.keep_static': ('conv1', partitioned, {'partition.criterion': 'magnitude'}),
    'data.name': ('folder', batches, FOLDER | {'data.name': 'digits'}),
    'data.path': ('{other}', batches, FOLDER),
    'data.batch_size': (8, batches, FOLDER),
    'data.image_size': (10, batches, FOLDER),
    'data.augment': ('resized_crop', batches, FOLDER | {'data.name': 'imagenet', 'data.crop_padding': 0}),
    'data.crop_padding': (3, batches, {}),
    'data.flip': (True, batches, {}),
    'data.color_jitter': (0.4, batches, FOLDER),
    'data.randaugment_layers': (2, batches, FOLDER),
    'data.randaugment_magnitude': (3, batches, FOLDER | {'data.randaugment_layers': 2}),
    'data.on_bad': ('skip', batches, FOLDER | {'data.path': '{broken}'}),
    'optim.name': ('adamw', updates, {}),
    'optim.learning_rate': (0.2, updates, {}),
    'optim.schedule': ('constant', updates, {}),
    'optim.warmup_steps': (3, updates, {}),
    'optim.weight_decay': (0.5, updates, {}),
    'optim.clip_norm': (0.5, updates, {}),
    'optim.accumulate_steps': (2, trained, {}),
    'optim.ema_decay': (0.9, lowered, {'optim.ema_decay': 0.5}),
    'train.steps': (7, lengths, {}),
    'train.epochs': (0.1, lengths, {'train.steps': 0}),
    'train.seed': (1, partitioned, {'partition.criterion': 'magnitude'}),
    'train.temperature': (10.0, trained, {}),
    'train.temperature_epochs': (0.02, trained, {}),
    'train.label_smoothing': (0.1, lowered, {}),
    'train.mixup': (0.2, lowered, {}),
    'train.on_nonfinite': ('skip', lowered, {}),
    'train.max_nonfinite': (3, lowered, {'train.on_nonfinite': 'skip'}),
    'train.eval_every_steps': (2, run_files, {}),
    'train.log_every_steps': (4, run_files, {}),
    'train.checkpoint_every_steps': (5, run_files, {}),
    'train.keep_checkpoints': (1, run_files, {}),
    'parallel': ('shard_map', placed, {}),
    'debug': (True, trained, {'optim.learning_rate': 1e30, 'optim.warmup_steps': 0}),
}


def test_the_table_has_every_key():
    assert EFFECTS.keys() == keys_of({}).keys()


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('folders')
    found = {name: root / name for name in ('one', 'other', 'broken')}
    for seed, folder in enumerate(found.values()):
        for split in ('train', 'val'):
            for label, name in enumerate(('ant', 'bee')):
                (folder / split / name).mkdir(parents=True)
                for number in range(4):
                    pixels = np.random.default_rng([seed, label, number]).integers(0, 255, (12, 12, 3), np.uint8)
                    Image.fromarray(pixels).save(folder / split / name / f'{number}.png')
    (found['broken'] / 'train' / 'bee' / '0.png').write_text('no image')
    weights = root / 'resnet18.safetensors'
    save_file(make_resnet((1,), 4, 10, bottleneck=False, image_channels=1, stem_side=3), weights)
    return {**found, 'weights': weights}


@pytest.mark.parametrize('key', EFFECTS)
def test_a_key_has_an_effect(key, folders, tmp_path, monkeypatch):
    changed, observe, further = EFFECTS[key]
    if observe in (trained, placed, lowered):
        observe = functools.partial(observe, monkeypatch=monkeypatch, tmp_path=tmp_path)
    if observe is run_files:
        observe = functools.partial(observe, tmp_path=tmp_path)
    if key == 'model.pretrained':
        monkeypatch.setitem(MODELS, 'resnet18', ONE_BLOCK)
    base = SMALL | further
    configs = []
    for values in (base, base | {key: changed}):
        overrides = [f'{name}={str(value).format(**folders)}' for name, value in values.items()]
        configs.append(load_config(str(DIGITS), overrides))
    before, after = map(observe, configs)
    assert before != after


def test_every_convolution_is_a_network_of_its_own():
    found = [shapes(load_config(str(DIGITS), [f'model.conv={name}', 'model.width_multiplier=0.1'])) for name in CONVS]
    assert all(one != other for one, other in itertools.combinations(found, 2))


def test_observations_repeat_themselves(tmp_path, monkeypatch):
    """Or else any key would seem to have an effect."""
    config = load_config(str(DIGITS), [f'{name}={value}' for name, value in SMALL.items()])
    for observe in (shapes, program, planned, rounds, partitioned, batches, updates, lengths):
        assert observe(config) == observe(config), observe.__name__
    assert run_files(config, tmp_path) == run_files(config, tmp_path)
    assert lowered(config, monkeypatch, tmp_path) == lowered(config, monkeypatch, tmp_path)
    assert trained(config, monkeypatch, tmp_path) == trained(config, monkeypatch, tmp_path)
