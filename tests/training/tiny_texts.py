"""The smallest things that training on texts can be tried on: some words, files of them, an encoder of one layer."""

import json
from functools import partial

import numpy as np

from pad_jax.models import Bert
from pad_jax.training.config import load_config
from tests.data.glue_miniatures import write_original, write_vocabulary
from tests.pretrained.small_folder import CONFIG, LAYER_SHAPES, SHAPES, write_folder
from tests.training.tiny import GLUE

ONE_LAYER = partial(Bert, num_layers=1, width=16, num_heads=2, ffn_width=24)
"""Stands in for the tiny BERT, which compiles three times longer."""

NUM_TRAIN, NUM_VAL, NUM_NEW = 48, 20, 9
FILLERS = ('the', 'sat', 'on', 'mat', 'ran', 'a', 'is', 'it', '.')

# The same in as many tests as possible: equal steps compile once in a process.
SMALL_TEXT = {
    'model.name': 'bert_tiny',
    'model.pretrained': '',
    'model.num_experts': 4,
    'model.plan': 'dense',
    'model.vocab_size': 32,
    'model.max_length': 16,
    'partition.rounds': 1,
    'partition.start_step': 0,
    'partition.every_steps': 0,
    'partition.batches': 1,
    'partition.batch_size': 4,
    'data.name': 'text',
    'data.path': '{texts}/own',
    'data.text_columns': 'first,second',
    'data.label_column': 'label',
    'data.vocabulary': '{texts}/vocab.txt',
    'data.batch_size': 8,
    'data.max_length': 16,
    'optim.learning_rate': 1e-3,
    'optim.warmup_steps': 1,
    'train.steps': 6,
    'train.log_every_steps': 1,
    'train.eval_every_steps': 3,
    'train.checkpoint_every_steps': 2,
}
TEXT_ROUNDS = {'partition__rounds': 2, 'partition__start_step': 3, 'partition__every_steps': 2}
"""A round after three steps, whose result is in no checkpoint for a step, and one after five."""
REGRESSION = {'data__path': '{texts}/numbers.tsv', 'data__regression': True}


def small_text_flags(texts, **changes):
    """Overrides 'section.key=value' of the language config that make it small; `section__key=value` changes more."""
    changes = SMALL_TEXT | {name.replace('__', '.'): value for name, value in changes.items()}
    return [f'{name}={str(value).format(texts=texts)}' for name, value in changes.items()]


def small_text_config(texts, **changes):
    """The config of those overrides."""
    return load_config(str(GLUE), small_text_flags(texts, **changes))


def glue(task, **changes):
    """Changes of `small_text_config` for a task of GLUE, of which there are five examples to train on."""
    return {'data__name': 'glue', 'data__path': '{texts}/glue', 'data__task': task} | changes


def draw_rows(count, seed):
    """(first text, second text, class, number): which animal there is says the class, how many the number."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        animals = int(generator.integers(1, 4))
        animal = ('cat', 'dog')[int(generator.integers(2))]
        words = [*generator.choice(FILLERS, 5), *[animal] * animals]
        generator.shuffle(words)
        yield ' '.join(words[:4]), ' '.join(words[4:]), f'a {animal}', animals / 2


def write_texts(root):
    """Fills a folder and returns it.

    It has vocab.txt; texts of one's own with classes (own/) and with numbers (numbers.tsv), and some to predict
    (new.jsonl); tasks of GLUE (glue/); and weights of the encoder of one layer (weights/).
    """
    root.mkdir(exist_ok=True)
    write_vocabulary(root)
    (root / 'own').mkdir()
    for stem, count, seed in (('train', NUM_TRAIN, 0), ('val', NUM_VAL, 1)):
        rows = [f'{first}\t{second}\t{label}' for first, second, label, _ in draw_rows(count, seed)]
        (root / 'own' / f'{stem}.tsv').write_text('\n'.join(['first\tsecond\tlabel', *rows]) + '\n')
    rows = [f'{first}\t{second}\t{number}' for first, second, _, number in draw_rows(NUM_TRAIN, 2)]
    (root / 'numbers.tsv').write_text('\n'.join(['first\tsecond\tlabel', *rows]) + '\n')
    new = enumerate(draw_rows(NUM_NEW, 3))
    lines = [json.dumps({'first': first, 'second': second, 'id': f'n{i}'}) for i, (first, second, *_) in new]
    (root / 'new.jsonl').write_text('\n'.join(lines) + '\n')
    (root / 'glue').mkdir()
    for task in ('rte', 'mrpc', 'stsb', 'mnli'):
        write_original(root / 'glue', task)
    (root / 'weights').mkdir()
    write_folder(root / 'weights', _draw_weights(), {**CONFIG, **_resize(CONFIG), 'num_hidden_layers': 1})
    return root


def _resize(sizes):
    """Turn sizes of the encoder of `small_folder` into those of `ONE_LAYER`."""
    new = {4: 16, 6: 24, 11: SMALL_TEXT['model.vocab_size'], 8: SMALL_TEXT['model.max_length']}
    return {name: new.get(size, size) for name, size in sizes.items() if type(size) is int}


def _draw_weights():
    """Larger than those that training starts from: what the network computes is far from constant."""
    generator = np.random.default_rng(4)
    shapes = SHAPES | {f'encoder.layer.0.{name}': shape for name, shape in LAYER_SHAPES.items()}
    resized = {name: tuple(_resize(dict(enumerate(shape))).values()) for name, shape in shapes.items()}
    return {name: generator.normal(size=shape, scale=0.5).astype(np.float32) for name, shape in resized.items()}
