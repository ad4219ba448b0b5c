"""Every key of a language config has an effect; the pattern is that of key_effects_test."""

import functools
import shutil

import jax
import jax.numpy as jnp
import pytest

from pad_jax.errors import BadInput
from pad_jax.training import trainer
from pad_jax.training.config import keys_of
from pad_jax.training.rounds import partition_state
from pad_jax.training.setup import (
    abstract_variables,
    make_exclusions,
    make_inputs,
    make_model,
    make_run_optimizer,
    make_task,
    open_source,
    start_from_pretrained,
)
from pad_jax.training.state import init_state
from pad_jax.training.steps import make_problem
from tests.training import key_effects_test as images
from tests.training.tiny_texts import glue, small_text_config

pytestmark = pytest.mark.usefixtures('one_layer')


def program(config, train=False):
    """What the network computes, as text; with `train` what its gradient does."""
    model, task = make_model(config), make_task(config)
    variables = abstract_variables(model, make_inputs(config))
    variables = {name: tree for name, tree in variables.items() if name != 'intermediates'}
    tokens, valid = (jax.ShapeDtypeStruct((4, 16), dtype) for dtype in (jnp.int32, bool))

    def compute(params, variables, *inputs):
        rngs = {'dropout': jax.random.key(0), 'routing': jax.random.key(1)}
        batch = dict(zip(task.inputs, inputs, strict=True))
        outputs, aux = task.apply(model, {**variables, 'params': params}, batch, train=train, rngs=rngs)
        return outputs.sum() + sum(row['router_loss'] for row in aux.values())

    computed = jax.grad(compute) if train else compute
    return str(jax.make_jaxpr(computed)(variables['params'], variables, tokens, tokens, valid))


gradient = functools.partial(program, train=True)


def start(config):
    model = make_model(config)
    optimizer = make_run_optimizer(config, images.lengths(config))
    state = init_state(model, optimizer, make_inputs(config), config.train.seed)
    return start_from_pretrained(config, model, state)[0]


def started(config):
    """The parameters before the first step."""
    return images.as_values(start(config).params)


def partitioned(config):
    """Masks and parameters after one round before training, and what it logs."""
    partition = config.partition
    state, values = partition_state(
        start(config),
        partition.dynamic_fraction,
        problem=make_problem(make_task(config), make_model(config), partition.scales),
        source=open_source(config),
        temperature=None,
        batches=partition.batches,
        batch_size=partition.batch_size,
        criterion=partition.criterion,
        scope=partition.scope,
        handoff=partition.handoff,
        exclusions=make_exclusions(config),
    )
    return images.as_values({'masks': state.masks, 'params': state.params}), values


def batches(config):
    """The first training batch and the spec; what bad data does."""
    try:
        source = open_source(config)
    except BadInput as error:
        return str(error)
    batch = source.train_batch(0)
    return {name: values.tolist() for name, values in batch.items()}, source.spec


def devices_and_step(config, monkeypatch, tmp_path):
    """How devices hold the state, and the program of the trainer's step."""

    def finish(run, signals):
        batch = run.replicas.place_batch(run.source.train_batch(0))
        shapes = [leaf.shape for leaf in jax.tree.leaves(run.state)]
        return shapes, str(jax.make_jaxpr(run.train_step)(run.state, batch))

    monkeypatch.setattr(trainer.Run, 'finish', finish)
    shutil.rmtree(tmp_path / 'run', ignore_errors=True)
    return trainer.train(config, tmp_path / 'run')


def checks_for_nan(config, monkeypatch, tmp_path):
    """Whether jax looks for NaN while a run goes on."""
    monkeypatch.setattr(trainer.Run, 'finish', lambda run, signals: jax.config.jax_debug_nans)
    shutil.rmtree(tmp_path / 'run', ignore_errors=True)
    return trainer.train(config, tmp_path / 'run')


MAGNITUDE = {'partition__criterion': 'magnitude'}
BROKEN = {'data__path': '{broken}'}

# key: (changed value, what it changes, further keys of base and change).
EFFECTS = {
    'model.name': ('minilm', images.shapes, {}),
    'model.num_classes': (7, images.shapes, {}),
    'model.ffn': ('ffn', images.shapes, {}),
    'model.num_experts': (3, images.shapes, {}),
    'model.num_selected': (1, program, {}),
    'model.routing': ('sentence', program, {}),
    'model.plan': ('blocks', program, {}),
    'model.balance_coefficient': (0.5, program, {}),
    'model.z_coefficient': (0.5, program, {}),
    'model.vocab_size': (40, images.shapes, {}),
    'model.max_length': (20, images.shapes, {}),
    'model.dropout': (0.2, gradient, {}),
    'model.dtype': ('bfloat16', program, {}),
    'model.remat': (True, gradient, {}),
    'model.pretrained': ('{texts}/weights', started, {'partition__start_step': 1}),
    'partition.dynamic_fraction': (0.6, images.planned, {}),
    'partition.criterion': ('random', partitioned, MAGNITUDE),
    'partition.scope': ('layer', partitioned, MAGNITUDE),
    'partition.granularity': ('output', images.shapes, {}),
    'partition.rounds': (2, images.rounds, {}),
    'partition.schedule': ('linear', images.rounds, {'partition__rounds': 2}),
    'partition.start_step': (3, images.rounds, {}),
    'partition.every_steps': (2, images.rounds, {'partition__rounds': 2}),
    'partition.batches': (2, partitioned, {}),
    'partition.batch_size': (16, partitioned, {}),
    'partition.handoff': ('independent', partitioned, MAGNITUDE),
    'partition.scales': ('none', images.shapes, {}),
    'partition.prune': (True, images.shapes, {'partition__handoff': 'independent'}),
    'partition.compact': (True, images.stored_sizes, {}),
    'partition.keep_dynamic': ('up', partitioned, MAGNITUDE),
    'partition.keep_static': ('up', partitioned, MAGNITUDE),
    'data.name': ('glue', batches, glue('rte', data__name='text', data__path='{texts}/glue/RTE')),
    'data.path': ('{texts}/numbers.tsv', batches, {}),
    'data.task': ('mrpc', batches, glue('rte')),
    'data.text_columns': ('second', batches, {}),
    'data.label_column': ('second', batches, {}),
    'data.regression': (True, batches, {'data__path': '{texts}/numbers.tsv', 'model__num_classes': 1}),
    'data.vocabulary': ('{broken}/vocab.txt', batches, {}),
    'data.batch_size': (16, batches, {}),
    'data.max_length': (8, batches, {}),
    'data.on_bad': ('skip', batches, BROKEN),
    'optim.name': ('sgd', images.updates, {}),
    'optim.learning_rate': (0.2, images.updates, {}),
    'optim.schedule': ('constant', images.updates, {}),
    'optim.warmup_steps': (3, images.updates, {}),
    'optim.weight_decay': (0.5, images.updates, {}),
    'optim.clip_norm': (0.5, images.updates, {'optim__name': 'sgd'}),
    'optim.accumulate_steps': (2, devices_and_step, {'data__batch_size': 16}),
    'optim.ema_decay': (0.9, devices_and_step, {}),
    'train.steps': (7, images.lengths, {}),
    'train.epochs': (0.5, images.lengths, {'train__steps': 0}),
    'train.seed': (1, started, {}),
    'train.on_nonfinite': ('skip', devices_and_step, {}),
    'train.max_nonfinite': (3, devices_and_step, {'train__on_nonfinite': 'skip'}),
    'train.eval_every_steps': (2, images.run_files, {}),
    'train.log_every_steps': (4, images.run_files, {}),
    'train.checkpoint_every_steps': (5, images.run_files, {'train__keep_checkpoints': 3}),
    'train.keep_checkpoints': (2, images.run_files, {}),
    'parallel': ('shard_map', devices_and_step, {}),
    'debug': (True, checks_for_nan, {}),
}


def test_the_table_has_every_key():
    assert EFFECTS.keys() == keys_of({'model.ffn': ''}).keys()


@pytest.fixture(scope='module')
def broken(texts, tmp_path_factory):
    """The same texts, but for a row whose label is missing, and a vocabulary in another order."""
    folder = tmp_path_factory.mktemp('broken')
    for name in ('train', 'val'):
        shutil.copy(texts / 'own' / f'{name}.tsv', folder)
    with (folder / 'train.tsv').open('a') as file:
        file.write('the cat\tthe cat\n')
    words = (texts / 'vocab.txt').read_text().split('\n')
    (folder / 'vocab.txt').write_text('\n'.join([*words[:5], *words[-2:4:-1], '']))
    return folder


def observe_with(observe, **fixtures):
    """The observation as a function of the config alone."""
    wanted = {images.run_files: ('tmp_path',)} | dict.fromkeys(
        (devices_and_step, checks_for_nan), ('monkeypatch', 'tmp_path')
    )
    return functools.partial(observe, **{name: fixtures[name] for name in wanted.get(observe, ())})


def make_config(texts, broken, changes):
    filled = {name: str(value).replace('{broken}', str(broken)) for name, value in changes.items()}
    return small_text_config(texts, **filled)


@pytest.mark.parametrize('key', EFFECTS)
def test_a_key_has_an_effect(key, texts, broken, tmp_path, monkeypatch):
    changed, observe, further = EFFECTS[key]
    base = {'partition__batch_size': 4} | further
    configs = [make_config(texts, broken, changes) for changes in (base, base | {key.replace('.', '__'): changed})]
    before, after = map(observe_with(observe, tmp_path=tmp_path, monkeypatch=monkeypatch), configs)
    assert before != after


def test_observations_repeat_themselves(texts, tmp_path, monkeypatch):
    """Or else any key would seem to have an effect."""
    config = small_text_config(texts)
    for observe in (program, gradient, started, partitioned, batches, devices_and_step, checks_for_nan):
        again = observe_with(observe, tmp_path=tmp_path, monkeypatch=monkeypatch)
        assert again(config) == again(config), observe
