"""Every reader of a file, each with small files that it can read.

A reader is a function of a folder; its first argument in the folder is the file that gets damaged.
"""

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save

from pad_jax.data import make_source, open_vocabulary
from pad_jax.data.decoding import Middle
from pad_jax.data.folders import FileRecords
from pad_jax.data.glue import find_task
from pad_jax.data.glue_files import read_glue_file
from pad_jax.data.glue_tfds import find_prepared as find_glue
from pad_jax.data.glue_tfds import read_split
from pad_jax.data.imagenet import find_photos, open_imagenet
from pad_jax.data.images import load_image
from pad_jax.data.text_folder import open_text_files, read_unlabelled
from pad_jax.deploy.manifest import read_files, read_manifest, write_manifest
from pad_jax.pretrained.weights import read_config, read_weights
from pad_jax.reports.inspection import tabulate_partition
from pad_jax.reports.plots import plot_partition, save_figure
from pad_jax.reports.runs import read_partition, read_run
from pad_jax.reports.tables import print_table
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.config import read_workdir_config
from pad_jax.training.optimizer import make_optimizer
from pad_jax.training.state import init_state
from pad_jax.training.tasks import image_inputs
from pad_jax.training.workdir import MetricWriter, read_data, read_metrics, read_versions
from tests.data import photos
from tests.data.glue_miniatures import VOCABULARY, write_original, write_prepared
from tests.training.tiny import NormFree, small_config


class Reader(NamedTuple):
    """What reads `folder / name`; `seeds` makes contents of that file that it can read, and `prepare` what is beside.

    Attributes:
      fraction: of the budget, for a reader that is slow.
      nameless: it is told where the content comes from, or the folder names the file by what it is for.
    """

    name: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[Path], object] = lambda folder: None
    fraction: float = 1.0
    nameless: bool = False


def as_json(*contents) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(content).encode() for content in contents]


# Runs.
@cache
def config_json() -> bytes:
    return json.dumps(small_config().to_dict()).encode()


COUNTS = {'positions': 9, 'dynamic_positions': 3, 'parameters': 45, 'dynamic_parameters': 12, 'static_parameters': 6}
COUNTS |= {'other_parameters': 27, 'dynamic_fraction': 1 / 3, 'dynamic_share': 2 / 3}
LAYERS = [{'name': f'stage1_block{i}/conv1', 'granularity': 'element', **COUNTS} for i in (1, 2)]
PARTITION = {'layers': LAYERS, 'totals': COUNTS, 'rounds_done': 1, 'rounds': 1}
DATA = {'class_names': ['cat', 'dog'], 'num_train': 20, 'num_eval': 4}
METRICS = [
    {'step': 1, 'split': 'train', 'loss': 1.5, 'accuracy': 0.5},
    {'step': 1, 'split': 'eval', 'examples': 4, 'loss': 1.25, 'accuracy': 0.75},
]


def metrics_jsonl() -> list[bytes]:
    return [b''.join(json.dumps(row).encode() + b'\n' for row in METRICS)]


def inspect_run(folder):
    partition = read_partition(folder)
    print_table(tabulate_partition(partition, 'Partition'))
    save_figure(plot_partition(partition), folder / 'partition.png')


def write_run(folder):
    (folder / 'config.json').write_bytes(config_json())
    (folder / 'partition.json').write_text(json.dumps(PARTITION))
    (folder / 'timing.json').write_text('{"seconds_per_step": 0.5}')
    (folder / 'metrics.jsonl').write_bytes(metrics_jsonl()[0])


def read_curves(folder):
    run = read_run(folder)
    return run.accuracy, run.curve('train', 'loss'), run.curve('eval', 'accuracy')


def resume_metrics(folder):
    read_metrics(folder)
    MetricWriter(folder, 1).close()


# Checkpoints.
@cache
def empty_state():
    return init_state(NormFree(), make_optimizer('sgd', 0.1, 'cosine', 1, 0.0, 1.0, 5), image_inputs((8, 8, 1)), seed=0)


@cache
def checkpoint_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        checkpoints.save(empty_state())
        checkpoints.close()
        where = Path(folder) / '0'
        return {str(path.relative_to(where)): path.read_bytes() for path in where.rglob('*') if path.is_file()}


def write_checkpoint(folder, with_manifest=True):
    for name, content in checkpoint_files().items():
        (folder / '0' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / '0' / name).write_bytes(content)
    if not with_manifest:  # as the first format was, whose files are read unchecked
        (folder / '0' / 'manifest.json').unlink()
        (folder / '0' / 'about' / 'metadata').write_text('{"format": 1}')


def restore(folder):
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.restore_newest(empty_state())
    finally:
        checkpoints.close()


def of_checkpoint(name, with_manifest) -> Reader:
    def seeds():
        return [checkpoint_files()[name] if with_manifest or name != 'about/metadata' else b'{"format": 1}']

    return Reader(f'0/{name}', restore, seeds, partial(write_checkpoint, with_manifest=with_manifest), 0.1)


# Exports.
EXPORT = {'task': 'images', 'inputs': [], 'output': {}, 'class_names': ['cat'], 'versions': {}}


def export_manifest() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_export(Path(folder))
        return [(Path(folder) / 'manifest.json').read_bytes()]


def write_export(folder):
    (folder / 'weights.safetensors').write_bytes(weights()[0])
    write_manifest(folder, EXPORT)


def read_export(folder):
    read_files(folder, read_manifest(folder))


def weights_alone() -> list[bytes]:
    return weights()[:1]


# Texts.
TOKENS = {token: number for number, token in enumerate(VOCABULARY)}


def tokenizer_json() -> list[bytes]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(TOKENS, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return [tokenizer.to_str().encode()]


def vocabulary_seeds() -> list[bytes]:
    return ['\n'.join(VOCABULARY).encode()]


def encode(name, folder):
    open_vocabulary(str(folder / name), 16).encode([['the cat [SEP] sat', 'é ' * 99], ['x' * 999, '\0']])


SETTINGS = {'do_lower_case': True, 'strip_accents': None, 'tokenize_chinese_chars': True}


def write_vocabulary(folder):
    (folder / 'vocab.txt').write_bytes(vocabulary_seeds()[0])


def tables(*suffixes: str) -> list[bytes]:
    rows = [('text', 'label', 'id')] + [(f'the cat sat {i}', ('yes', 'no')[i % 2], str(i)) for i in range(12)]
    made = {
        'tsv': '\n'.join('\t'.join(row) for row in rows),
        'csv': '\r\n'.join('"{}","{}",{}'.format(*row) for row in rows),
        'jsonl': '\n'.join(json.dumps(dict(zip(rows[0], row))) for row in rows[1:]),
    }
    return [made[suffix].encode() for suffix in suffixes]


def open_texts(name, folder):
    for on_bad in ('stop', 'skip'):
        open_text_files(
            path=str(folder / name),
            text_columns=['text'],
            label_column='label',
            pieces=open_vocabulary(str(folder / 'vocab.txt'), 16),
            batch_size=2,
            on_bad=on_bad,
        )


def glue_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [(write_original(Path(folder), 'mrpc') / 'train.tsv').read_bytes()]


# Images.
def picture(kind: str, side: int = 9, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def read_image(path, size):
    return load_image(FileRecords([path], [0]), 0, middle=Middle(), size=size)[0]


def picture_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    grey = io.BytesIO()
    Image.fromarray(np.arange(81, dtype=np.uint16).reshape(9, 9)).save(grey, 'PNG')
    return [
        *(picture(kind) for kind in ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP')),
        picture('JPEG', exif=exif, progressive=True),
        picture('PNG', exif=exif),
        grey.getvalue(),
    ]


def write_photos(folder):
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / '0.png').write_bytes(picture('PNG'))


def open_photos(folder):
    make_source('folder', path=str(folder), batch_size=2, image_size=8)


# Weights.
def weights() -> list[bytes]:
    import ml_dtypes

    tensors = {'a': np.ones((2, 3), np.float32), 'b': np.ones(2, ml_dtypes.bfloat16), 'c': np.ones((), np.int64)}
    return [save(tensors), save({'a': np.ones((2, 3), np.float16)}, {'format': 'pt'})]


def write_shards(folder):
    (folder / 'one.safetensors').write_bytes(save({'a': np.ones(2, np.float32)}))
    (folder / 'two.safetensors').write_bytes(save({'b': np.ones(2, np.float32)}))


INDEX = {'metadata': {}, 'weight_map': {'a': 'one.safetensors', 'b': 'two.safetensors'}}


# Sets of TFDS.
@cache
def prepared_rte() -> dict[str, bytes]:
    """The files of glue/rte/2.0.0 as TFDS prepares them."""
    with tempfile.TemporaryDirectory() as folder:
        return _contents(write_prepared(folder, 'rte'))


@cache
def prepared_photos() -> dict[str, bytes]:
    """The files of imagenet2012/5.1.0, with three classes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = photos.write_folders(Path(folder) / 'folders')
        return _contents(photos.write_prepared(Path(folder) / 'tfds', paths))


def _contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


RTE_PLACE, PHOTOS_PLACE = Path('glue/rte/2.0.0'), Path('imagenet2012/5.1.0')


def write_set(place, files, folder):
    (folder / place).mkdir(parents=True)
    for name, content in files().items():
        (folder / place / name).write_bytes(content)


def read_rte(folder):
    found = find_glue(folder, 'rte')
    if found:
        read_split(found, find_task('rte'), 'train')


def read_photos(folder):
    found = find_photos(folder)
    if found:
        _, train, _ = open_imagenet(str(found))
        for index in range(len(train)):
            train.read(index)


def of_set(files, part) -> Callable[[], list[bytes]]:
    return lambda: [content for name, content in sorted(files().items()) if part in name][:1]


def name_in(place, files, part) -> str:
    return str(place / next(name for name in sorted(files()) if part in name))


READERS = [
    Reader('config.json', read_workdir_config, lambda: [config_json()]),
    Reader('data.json', read_data, as_json(DATA)),
    Reader('versions.json', read_versions, as_json({'pad_jax': ['0.1.0']})),
    Reader('partition.json', inspect_run, as_json(PARTITION, {**PARTITION, 'layers': []}), fraction=0.3),
    Reader('metrics.jsonl', resume_metrics, metrics_jsonl),
    Reader('metrics.jsonl', read_curves, metrics_jsonl, write_run),
    Reader('timing.json', read_curves, as_json({'seconds_per_step': 0.5}), write_run),
    of_checkpoint('manifest.json', True),
    of_checkpoint('about/metadata', True),
    *(of_checkpoint(name, False) for name in ('about/metadata', 'state/_METADATA', 'state/manifest.ocdbt')),
    Reader('manifest.json', read_export, export_manifest, write_export),
    Reader('weights.safetensors', read_export, weights_alone, write_export),
    Reader('tokenizer.json', partial(encode, 'tokenizer.json'), tokenizer_json),
    Reader('vocab.txt', partial(encode, 'vocab.txt'), vocabulary_seeds),
    Reader('tokenizer_config.json', partial(encode, 'vocab.txt'), as_json(SETTINGS), write_vocabulary),
    *(
        Reader(f'texts.{kind}', partial(open_texts, f'texts.{kind}'), partial(tables, kind), write_vocabulary)
        for kind in ('tsv', 'csv', 'jsonl')
    ),
    Reader('new.jsonl', lambda folder: read_unlabelled(folder / 'new.jsonl', ['text']), partial(tables, 'jsonl')),
    Reader('train.tsv', lambda folder: read_glue_file(folder / 'train.tsv', find_task('mrpc')), glue_seeds),
    Reader('image', lambda folder: read_image(str(folder / 'image'), 8), picture_seeds),
    Reader('train/cat/0.png', open_photos, picture_seeds, write_photos),
    Reader('model.safetensors', read_weights, weights),
    Reader('model.safetensors.index.json', read_weights, as_json(INDEX), write_shards),
    Reader('config.json', read_config, as_json({'model_type': 'bert', 'hidden_size': 16})),
]


def readers_of_sets() -> list[Reader]:
    """Those that need a set of TFDS, which takes seconds to make."""
    rte, pictures = partial(write_set, RTE_PLACE, prepared_rte), partial(write_set, PHOTOS_PLACE, prepared_photos)
    found = [
        Reader(name_in(RTE_PLACE, prepared_rte, part), read_rte, of_set(prepared_rte, part), rte, 0.3)
        for part in ('dataset_info.json', 'features.json', 'label.labels.txt', 'train.array_record')
    ]
    found += [
        Reader(name_in(PHOTOS_PLACE, prepared_photos, part), read_photos, of_set(prepared_photos, part), pictures, 0.3)
        for part in ('dataset_info.json', 'features.json', 'train.array_record')
    ]
    return found
