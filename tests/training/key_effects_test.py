"""Every config key has an effect: a table of key -> (changed value, what it changes).

An observation is a function of a config. Its result differs between a base config and one with that key changed.
Most keys end in a typed part of a run, which needs no training.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from pad_jax.errors import BadInput
from pad_jax.layers import PLAN_NAMES
from pad_jax.models import MODELS
from pad_jax.training.config import keys_of, load_config
from pad_jax.training.rounds import Rounds
from pad_jax.training.setup import (
    make_inputs,
    make_model,
    make_run_optimizer,
    make_step_arguments,
    measure_lengths,
    open_source,
)
from pad_jax.training.start import start_from_pretrained
from pad_jax.training.state import init_state
from tests.pretrained.torchvision_twin import make_resnet
from tests.training.tiny import DIGITS, ONE_BLOCK, SMALL
from tests.training.tiny_language import small_language_config, write_corpus
from tests.training.tiny_photos import write_classes
from tests.training.tiny_texts import glue, small_text_config

pytestmark = pytest.mark.usefixtures('one_block', 'one_layer')


def typed(config):
    """The typed parts of a run that `setup` and `rounds` make; nothing is computed."""
    lengths = measure_lengths(config, 10**6)
    step = make_step_arguments(config, lengths)
    rounds = Rounds(config, None, **{name: step[name] for name in ('task', 'temperature', 'model')})
    parts = {name: value for name, value in vars(rounds).items() if name not in ('_problem', '_shapes')}
    return {**step, **parts, 'lengths': lengths}


def batches(config):
    """The first training batch and the properties of the data, or the error of bad data."""
    try:
        source = open_source(config)
    except BadInput as error:
        return str(error)
    batch = source.train_batch(0)
    return {name: (values.shape, values.tolist()) for name, values in batch.items()}, source.spec


def started(config):
    """Parameters before the first step."""
    model, optimizer = make_model(config), make_run_optimizer(config, measure_lengths(config, 10**6))
    state = init_state(model, optimizer, make_inputs(config), config.train.seed)
    return [
        np.asarray(leaf).tolist() for leaf in jax.tree.leaves(start_from_pretrained(config, model, state)[0].params)
    ]


PHOTOS = {'data.name': 'folder', 'data.path': '{one}', 'data.batch_size': 4, 'model.num_classes': 2}
PHOTOS |= {'partition.batch_size': 4}

# key: (changed value, observation, further keys of base and change).
BOTH = {
    'model.num_classes': (7, typed, {}),
    'model.dtype': ('bfloat16', typed, {}),
    'partition.dynamic_fraction': (0.6, typed, {}),
    'partition.criterion': ('magnitude', typed, {}),
    'partition.scope': ('layer', typed, {}),
    'partition.granularity': ('output', typed, {}),
    'partition.rounds': (2, typed, {}),
    'partition.schedule': ('linear', typed, {'partition.rounds': 2}),
    'partition.start_step': (3, typed, {}),
    'partition.every_steps': (2, typed, {'partition.rounds': 2}),
    'partition.batches': (2, typed, {}),
    'partition.batch_size': (16, typed, {}),
    'partition.handoff': ('mean', typed, {'partition.handoff': 'independent'}),
    'partition.scales': ('none', typed, {}),
    'partition.prune': (True, typed, {'partition.handoff': 'independent'}),
    'partition.keep_dynamic': ('conv1', typed, {}),
    'partition.keep_static': ('conv1', typed, {}),
    'optim.name': ('sgd', typed, {'optim.name': 'adamw'}),
    'optim.learning_rate': (0.2, typed, {}),
    'optim.schedule': ('constant', typed, {}),
    'optim.warmup_steps': (3, typed, {}),
    'optim.weight_decay': (0.5, typed, {}),
    'optim.clip_norm': (0.5, typed, {}),
    'optim.accumulate_steps': (2, typed, {}),
    'optim.ema_decay': (0.9, typed, {}),
    'train.steps': (7, typed, {}),
    'train.epochs': (0.5, typed, {'train.steps': 0, 'optim.warmup_steps': 0}),
    'train.seed': (1, batches, {}),
    'train.on_nonfinite': ('skip', typed, {'train.max_nonfinite': 3}),
    'train.max_nonfinite': (3, typed, {'train.on_nonfinite': 'skip'}),
}
IMAGES = BOTH | {
    'model.name': ('resnet18', typed, {}),
    'model.conv': ('static', typed, {}),
    'model.num_kernels': (2, typed, {}),
    'model.reduction': (2, typed, {}),
    'model.width_multiplier': (0.125, typed, {}),
    'model.stem': ('imagenet', typed, {'data.image_size': 64}),
    'model.sync_batch_norm': (False, lambda config: make_model(config, 'batch'), {}),
    'model.pretrained': ('{weights}', started, {'model.name': 'resnet18', 'model.conv': 'static'}),
    'model.plan': (PLAN_NAMES[-1], typed, {}),
    'data.name': ('folder', batches, PHOTOS | {'data.name': 'digits'}),
    'data.path': ('{other}', batches, PHOTOS),
    'data.holdout': (0.5, batches, {}),
    'data.batch_size': (8, batches, PHOTOS),
    'data.image_size': (10, batches, PHOTOS),
    'data.augment': ('resized_crop', batches, PHOTOS | {'data.name': 'imagenet', 'data.crop_padding': 0}),
    'data.crop_padding': (3, batches, {}),
    'data.flip': (True, batches, {}),
    'data.color_jitter': (0.4, batches, PHOTOS),
    'data.randaugment_layers': (2, batches, PHOTOS),
    'data.randaugment_magnitude': (3, batches, PHOTOS | {'data.randaugment_layers': 2}),
    'data.on_bad': ('skip', batches, PHOTOS | {'data.path': '{broken}'}),
    'train.temperature': (10.0, typed, {}),
    'train.temperature_share': (1.0, typed, {}),
    'train.label_smoothing': (0.1, typed, {}),
    'train.mixup': (0.2, typed, {}),
}
TEXTS = BOTH | {
    'model.name': ('minilm', typed, {}),
    'model.ffn': ('ffn', typed, {}),
    'model.num_experts': (3, typed, {}),
    'model.num_selected': (1, typed, {}),
    'model.routing': ('sentence', typed, {}),
    'model.plan': ('blocks', typed, {}),
    'model.balance_coefficient': (0.5, typed, {}),
    'model.z_coefficient': (0.5, typed, {}),
    'model.switch_coefficient': (0.5, typed, {}),
    'model.vocab_size': (40, typed, {}),
    'model.max_length': (20, typed, {}),
    'model.dropout': (0.2, typed, {}),
    'model.remat': (True, typed, {}),
    'model.pretrained': ('{texts}/weights', started, {'partition.start_step': 1}),
    'data.name': ('glue', batches, glue('rte', data__name='text', data__path='{texts}/glue/RTE')),
    'data.path': ('{texts}/numbers.tsv', batches, {}),
    'data.task': ('mrpc', batches, glue('rte')),
    'data.text_columns': ('second', batches, {}),
    'data.label_column': ('second', batches, {}),
    'data.regression': (True, batches, {'data.path': '{texts}/numbers.tsv', 'model.num_classes': 1}),
    'data.holdout': (0.5, batches, {'data.path': '{texts}/numbers.tsv', 'data.regression': True}),
    'data.vocabulary': ('{texts_broken}/vocab.txt', batches, {}),
    'data.batch_size': (16, batches, {}),
    'data.max_length': (8, batches, {}),
    'data.on_bad': ('skip', batches, {'data.path': '{texts_broken}'}),
}
CAUSAL = {key: row for key, row in BOTH.items() if key != 'model.num_classes'} | {
    'model.name': ('olmoe', typed, {}),
    'model.ffn': ('linear', typed, {}),
    'model.num_experts': (3, typed, {}),
    'model.num_selected': (1, typed, {}),
    'model.plan': ('blocks', typed, {}),
    'model.balance_coefficient': (0.5, typed, {}),
    'model.z_coefficient': (0.5, typed, {}),
    'model.switch_coefficient': (0.5, typed, {}),
    'model.num_layers': (2, typed, {}),
    'model.width': (32, typed, {}),
    'model.num_heads': (4, typed, {}),
    'model.num_kv_heads': (1, typed, {}),
    'model.ffn_width': (12, typed, {}),
    'model.shared_width': (4, typed, {}),
    'model.vocab_size': (300, typed, {}),
    'model.max_length': (30, typed, {}),
    'model.remat': (True, typed, {}),
    'partition.granularity': ('element', typed, {}),
    'train.epochs': (0.5, typed, {'train.steps': 0, 'train.epochs': 1.0, 'optim.warmup_steps': 0}),
    'data.name': ('stdlib', batches, {'data.path': ''}),
    'data.path': ('{corpus}/sums', batches, {}),
    'data.text_column': ('other', batches, {'data.path': '{lines}'}),
    'data.holdout': (0.5, batches, {}),
    'data.vocabulary': ('{texts}/none.json', batches, {}),
    'data.batch_size': (16, batches, {}),
    'data.max_length': (8, batches, {}),
    'data.on_bad': ('skip', batches, {'data.path': '{bad_lines}'}),
}
# Effects that only whole runs show: trainer_test.py, best_test.py and commands_test.py test them.
OF_A_RUN = {'train.eval_every_steps', 'train.log_every_steps', 'train.checkpoint_every_steps', 'train.keep_checkpoints'}
OF_A_RUN |= {'train.keep_best', 'train.patience', 'parallel', 'debug', 'partition.compact'}


def test_the_tables_have_every_key():
    assert IMAGES.keys() | OF_A_RUN == keys_of({}).keys()
    assert TEXTS.keys() | OF_A_RUN == keys_of({'model.ffn': ''}).keys()
    assert CAUSAL.keys() | OF_A_RUN | {'train.objective'} == keys_of({'train.objective': 'causal'}).keys()
    known = TEXTS.keys() | CAUSAL.keys() | OF_A_RUN | {'train.objective'}  # which decides the kind of the config
    assert keys_of({'train.objective': 'masked'}).keys() <= known


@pytest.fixture(scope='module')
def places(texts, tmp_path_factory):
    """Folders of photos, the last with a broken one, weights, and texts with a row and a vocabulary that differ."""
    root = tmp_path_factory.mktemp('places')
    found = {name: root / name for name in ('one', 'other', 'broken')}
    for seed, folder in enumerate(found.values()):
        write_classes(folder, 4, 4, seed)
    (found['broken'] / 'train' / 'dog' / '0.png').write_text('no image')
    weights = root / 'resnet18.safetensors'
    save_file(make_resnet((1,), 4, 10, bottleneck=False, image_channels=1, stem_side=3), weights)
    broken = shutil.copytree(texts / 'own', root / 'texts_broken')
    with (broken / 'train.tsv').open('a') as file:
        file.write('the cat\tthe cat\n')
    words = (texts / 'vocab.txt').read_text().split('\n')
    (broken / 'vocab.txt').write_text('\n'.join([*words[:5], *words[-2:4:-1], '']))
    lines, bad_lines = root / 'lines.jsonl', root / 'bad_lines.jsonl'
    rows = [json.dumps({'text': f'the {number} cats', 'other': f'{number} dogs'}) for number in range(99)]
    lines.write_text('\n'.join(rows))
    bad_lines.write_text('\n'.join([*rows, '{']))
    found |= {'corpus': write_corpus(root / 'corpus'), 'lines': lines, 'bad_lines': bad_lines}
    return {**found, 'weights': weights, 'texts': texts, 'texts_broken': broken}


def load_images(places, changes):
    overrides = [f'{name}={str(value).format(**places)}' for name, value in (SMALL | changes).items()]
    return load_config(str(DIGITS), overrides)


def load_texts(places, changes):
    filled = {name.replace('.', '__'): str(value).format(**places) for name, value in changes.items()}
    return small_text_config(places['texts'], **{'partition__batch_size': 4} | filled)


def load_causal(places, changes):
    return small_language_config(places, **{name.replace('.', '__'): value for name, value in changes.items()})


TABLES = {load_images: IMAGES, load_texts: TEXTS, load_causal: CAUSAL}
# The keys of all kinds go the same way in texts and language models.
CASES = [
    (load, key, *row)
    for load, table in TABLES.items()
    for key, row in table.items()
    if load is not load_causal or row is not BOTH.get(key)
]


@pytest.mark.parametrize(('load', 'key', 'changed', 'observe', 'further'), CASES)
def test_a_key_has_an_effect(monkeypatch, places, load, key, changed, observe, further):
    if key == 'model.pretrained':
        monkeypatch.setitem(MODELS, 'resnet18', ONE_BLOCK)
    base = {name.replace('__', '.'): value for name, value in further.items()}
    before, after = (load(places, changes) for changes in (base, base | {key: changed}))
    assert observe(before) != observe(after)


@pytest.mark.parametrize('load', TABLES)
def test_observations_repeat_themselves(places, load):
    """Otherwise every key would seem to have an effect."""
    for observe in (typed, batches):
        assert observe(load(places, {})) == observe(load(places, {}))
