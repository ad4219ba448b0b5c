"""Every reader of a file, each with small files that it can read.

A reader is a function of a folder; `folder / name` is the file that gets damaged.
"""

import io
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from PIL import Image
from safetensors.numpy import save

from pad_jax.data import TEXT_SOURCES, make_source, open_corpus, open_vocabulary
from pad_jax.deploy.serving import read_files, read_manifest, write_manifest
from pad_jax.pretrained.weights import read_weights
from pad_jax.reports.runs import read_partition, read_run
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.config import read_workdir_config
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule
from pad_jax.training.state import init_state
from pad_jax.training.tasks import image_inputs
from pad_jax.training.workdir import MetricWriter, read_data, read_metrics, read_versions
from tests.data import glue_miniatures, photos
from tests.training.tiny import NormFree, small_config


class Reader(NamedTuple):
    """A reader of `folder / name`.

    Attributes:
        name: of the file to damage.
        read: function of the folder.
        seeds: function that returns contents of the file that can be read.
        prepare: function of the folder that writes the other files.
    """

    name: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[Path], object] = lambda folder: None


def as_json(*contents) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(content).encode() for content in contents]


# Runs.
COUNTS = {'positions': 9, 'dynamic_positions': 3, 'parameters': 45, 'dynamic_parameters': 12, 'static_parameters': 6}
COUNTS |= {'other_parameters': 27, 'dynamic_fraction': 1 / 3, 'dynamic_share': 2 / 3}
LAYERS = [{'name': f'stage1_block{i}/conv1', 'granularity': 'element', **COUNTS} for i in (1, 2)]
PARTITION = {'layers': LAYERS, 'totals': COUNTS, 'rounds_done': 1, 'rounds': 1}
ROWS = [
    {'step': 1, 'split': 'train', 'loss': 1.5, 'accuracy': 0.5},
    {'step': 1, 'split': 'eval', 'examples': 4, 'loss': 1.25, 'accuracy': 0.75},
]
METRICS = b''.join(json.dumps(row).encode() + b'\n' for row in ROWS)


def write_run(folder):
    (folder / 'config.json').write_text(json.dumps(small_config().to_dict()))
    (folder / 'partition.json').write_text(json.dumps(PARTITION))
    (folder / 'timing.json').write_text('{"seconds_per_step": 0.5}')
    (folder / 'metrics.jsonl').write_bytes(METRICS)


def read_curves(folder):
    run = read_run(folder)
    return run.measures, run.curve('train', 'loss'), run.curve('eval', 'accuracy')


def resume_metrics(folder):
    read_metrics(folder)
    MetricWriter(folder, 1).close()


@cache
def empty_state():
    optimizer = make_optimizer('sgd', make_rate_schedule(0.1, 'cosine', 1, 5), 0.0, 1.0)
    return init_state(NormFree(), optimizer, image_inputs((8, 8, 1)), seed=0)


@cache
def checkpoint_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        checkpoints.save(empty_state())
        checkpoints.close()
        where = Path(folder) / '0'
        return {str(path.relative_to(where)): path.read_bytes() for path in where.rglob('*') if path.is_file()}


def write_files(place, files, folder):
    for name, content in files().items():
        (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / place / name).write_bytes(content)


def restore(folder):
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.restore_newest(empty_state())
    finally:
        checkpoints.close()


def of_checkpoint(name) -> Reader:
    return Reader(f'0/{name}', restore, lambda: [checkpoint_files()[name]], partial(write_files, '0', checkpoint_files))


# Exports and weights.
def weights() -> list[bytes]:
    import ml_dtypes

    tensors = {'a': np.ones((2, 3), np.float32), 'b': np.ones(2, ml_dtypes.bfloat16), 'c': np.ones((), np.int64)}
    return [save(tensors), save({'a': np.ones((2, 3), np.float16)}, {'format': 'pt'})]


def write_export(folder):
    (folder / 'weights.safetensors').write_bytes(weights()[0])
    write_manifest(folder, {'task': 'images', 'inputs': [], 'output': {}, 'class_names': ['cat'], 'versions': {}})


def export_manifest() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_export(Path(folder))
        return [(Path(folder) / 'manifest.json').read_bytes()]


def write_shards(folder):
    (folder / 'one.safetensors').write_bytes(save({'a': np.ones(2, np.float32)}))
    (folder / 'two.safetensors').write_bytes(save({'b': np.ones(2, np.float32)}))


INDEX = {'metadata': {}, 'weight_map': {'a': 'one.safetensors', 'b': 'two.safetensors'}}


# Texts.
def tokenizer_json() -> list[bytes]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokens = {token: number for number, token in enumerate(glue_miniatures.VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return [tokenizer.to_str().encode()]


def vocabulary_seeds() -> list[bytes]:
    return ['\n'.join(glue_miniatures.VOCABULARY).encode()]


def encode(name, folder):
    open_vocabulary(str(folder / name), 16).encode([['the cat [SEP] sat', 'é ' * 99], ['x' * 999, '\0']])


def tables(kind: str) -> list[bytes]:
    rows = [('text', 'label', 'id')] + [(f'the cat sat {i}', ('yes', 'no')[i % 2], str(i)) for i in range(12)]
    return {
        'tsv': ['\n'.join('\t'.join(row) for row in rows).encode()],
        'csv': ['\r\n'.join('"{}","{}",{}'.format(*row) for row in rows).encode()],
        'jsonl': ['\n'.join(json.dumps(dict(zip(rows[0], row))) for row in rows[1:]).encode()],
    }[kind]


def open_texts(name, folder, **options):
    with tempfile.TemporaryDirectory() as other:
        pieces = open_vocabulary(glue_miniatures.write_vocabulary(Path(other)), 16)
    for on_bad in ('stop', 'skip'):
        TEXT_SOURCES[name](pieces=pieces, batch_size=2, on_bad=on_bad, **options)


def open_table(name, folder):
    open_texts('text', folder, path=str(folder / name), text_columns=['text'], label_column='label')


def open_task(task, folder):
    open_texts('glue', folder, path=str(folder), task=task)


def write_rte(folder):
    write_files('RTE', original_rte, folder)


def write_corpus(folder):
    (folder / 'corpus.txt').write_text('the cat sat on the mat .\n' * 20)
    (folder / 'tokenizer.json').write_bytes(tokenizer_json()[0])


def read_corpus(name, folder, tokenizer=''):
    """Read all batches, the second time with tokens from the cache."""
    tokenizer = str(folder / tokenizer) if tokenizer else ''
    options = {'path': str(folder / name), 'tokenizer': tokenizer, 'vocab_size': 256, 'window': 8, 'batch_size': 2}
    with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, XDG_CACHE_HOME=home):
        for on_bad in ('skip', 'stop'):
            source = open_corpus(on_bad=on_bad, **options)
            source.vocabulary.decode(source.train_batch(0)['tokens'][0])
            list(source.eval_batches())


@cache
def original_rte() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        where = glue_miniatures.write_original(Path(folder), 'rte')
        return {path.name: path.read_bytes() for path in where.iterdir()}


# Images.
def picture(kind: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    return photos.encode(Image.fromarray(pixels), kind, **options)


def picture_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    grey = io.BytesIO()
    Image.fromarray(np.arange(81, dtype=np.uint16).reshape(9, 9)).save(grey, 'PNG')
    found = [picture(kind) for kind in ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP')]
    return [*found, picture('JPEG', exif=exif, progressive=True), picture('PNG', exif=exif), grey.getvalue()]


def write_photos(folder):
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / '0.png').write_bytes(picture('PNG'))


def open_photos(folder):
    make_source('folder', path=str(folder), batch_size=2, image_size=8)


SETTINGS = {'do_lower_case': True, 'strip_accents': None, 'tokenize_chinese_chars': True}
KINDS = ('tsv', 'csv', 'jsonl')
READERS = [
    Reader('config.json', read_workdir_config, lambda: as_json(small_config().to_dict())()),
    Reader('data.json', read_data, as_json({'class_names': ['cat', 'dog'], 'num_train': 20, 'num_eval': 4})),
    Reader('versions.json', read_versions, as_json({'pad_jax': ['0.1.0']})),
    Reader('partition.json', read_partition, as_json(PARTITION, {**PARTITION, 'layers': []})),
    Reader('metrics.jsonl', resume_metrics, lambda: [METRICS]),
    Reader('metrics.jsonl', read_curves, lambda: [METRICS], write_run),
    Reader('timing.json', read_curves, as_json({'seconds_per_step': 0.5}), write_run),
    *map(of_checkpoint, ('manifest.json', 'state/manifest.ocdbt')),
    Reader('manifest.json', lambda folder: read_files(folder, read_manifest(folder)), export_manifest, write_export),
    Reader('model.safetensors', read_weights, weights),
    Reader('model.safetensors.index.json', read_weights, as_json(INDEX), write_shards),
    Reader('tokenizer.json', partial(encode, 'tokenizer.json'), tokenizer_json),
    Reader('vocab.txt', partial(encode, 'vocab.txt'), vocabulary_seeds),
    Reader('tokenizer_config.json', partial(encode, 'vocab.txt'), as_json(SETTINGS), glue_miniatures.write_vocabulary),
    *(Reader(f'texts.{kind}', partial(open_table, f'texts.{kind}'), partial(tables, kind)) for kind in KINDS),
    Reader('corpus.jsonl', partial(read_corpus, 'corpus.jsonl'), partial(tables, 'jsonl')),
    *(
        Reader(name, partial(read_corpus, 'corpus.txt', tokenizer='tokenizer.json'), seeds, write_corpus)
        for name, seeds in (
            ('corpus.txt', lambda: [b'the cat sat on the mat .\n' * 20]),
            ('tokenizer.json', tokenizer_json),
        )
    ),
    Reader('RTE/train.tsv', partial(open_task, 'rte'), lambda: [original_rte()['train.tsv']], write_rte),
    Reader('train/cat/0.png', open_photos, picture_seeds, write_photos),
]
