"""Data sets that TFDS has prepared as array_record: DATA_DIR/NAME/VERSION or DATA_DIR/NAME/CONFIG/VERSION."""

import contextlib
import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pad_jax.errors import BadInput, describe, quote
from pad_jax.files import read_plain

INFO, FEATURES = 'dataset_info.json', 'features.json'
ARRAY_RECORD = 'array_record'
NUM_THREADS = 16
ENVIRONMENT = '(in an environment with tensorflow-cpu, see docs/train.md)'
# An unfinished preparation lies in VERSION.incomplete, which does not match.
_VERSION = re.compile(r'\d+\.\d+\.\d+')


def explain_building(data_dir: str | pathlib.Path, name: str) -> str:
    """Return the command of TFDS that prepares a data set."""
    manual = ' --manual_dir=DIR_OF_THE_ARCHIVES' if name == 'imagenet2012' else ''
    build = f'tfds build {name} --file_format={ARRAY_RECORD}{manual} --data_dir={shlex.quote(str(data_dir))}'
    return f'{build} {ENVIRONMENT}'


def find_prepared(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
    """Find the newest version of a data set: NAME or NAME/CONFIG, with or without a version; None without one."""
    folder = data_dir / name
    try:
        found = [folder, *(folder.iterdir() if folder.is_dir() else ())]
    except OSError as error:
        raise BadInput(f'{quote(folder)} cannot be read: {describe(error)}') from error
    found = [path for path in found if _VERSION.fullmatch(path.name) and (path / INFO).is_file()]
    return max(found, key=lambda version: [int(part) for part in version.name.split('.')], default=None)


def open_builder(folder: pathlib.Path):
    """Return TFDS's builder of a prepared data set; refuse one that is damaged or not stored as array_record."""
    # Imported here because it takes a second.
    import tensorflow_datasets as tfds

    try:
        json.loads(read_plain(folder / FEATURES), object_hook=lambda described: _check_classes(folder, described))
        builder = tfds.builder_from_directory(folder)
        info = builder.info
        formats = [file_format.value for file_format in (info.file_format, *(info.alternative_file_formats or ()))]
        _ = info.features, info.splits
    except BadInput:
        raise
    except Exception as error:  # a changed description fails in many ways
        problem = describe(error).rstrip('.')
        raise BadInput(f'cannot read {quote(folder)}: {problem}. Prepare the data set again') from error
    if ARRAY_RECORD not in formats:
        data_dir = folder.absolute().parents[2 if info.config_name else 1]
        raise BadInput(
            f'{quote(folder)} was prepared as {formats[0]}, which cannot be read in any order. Run tfds convert_format '
            f'--root_data_dir={shlex.quote(str(data_dir))} --out_file_format={ARRAY_RECORD} {ENVIRONMENT}'
        )
    return builder


def _check_classes(folder: pathlib.Path, described: dict) -> dict:
    """Refuse features that name a class outside of TFDS, whose module TFDS would import."""
    for key in ('pythonClassName', 'python_class_name', 'type'):
        named = described.get(key)
        if isinstance(named, str) and not named.startswith('tensorflow_datasets.core.features.'):
            message = f'refusing to import {named[:80]!r}, named by {quote(folder / FEATURES)}'
            raise BadInput(f'{message}: only classes of tensorflow_datasets are allowed')
    return described


def open_split(builder, split: str, keep_bytes: Sequence[str] = ()) -> Sequence[dict[str, Any]]:
    """Return the examples of a split, a dict of features each; the images `keep_bytes` stay encoded.

    Raises:
        BadInput: the split or one of its shards is missing or damaged.
    """
    import tensorflow_datasets as tfds

    shards, lengths = find_shards(builder, split), builder.info.splits[split].shard_lengths
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for shard, expected, found in zip(shards, lengths, pool.map(_count_records, shards), strict=True):
            if found != expected:
                raise BadInput(f'{quote(shard)} holds {found} records, expected {expected}. Prepare the data set again')
    decoders = {name: tfds.decode.SkipDecoding() for name in keep_bytes}
    return builder.as_data_source(split=split, decoders=decoders or None)


def find_shards(builder, split: str) -> list[pathlib.Path]:
    """Return the files of a split, which may be missing; raise `BadInput` for an unknown split."""
    try:
        info = builder.info.splits[split]
        files = info.filename_template.replace(filetype_suffix=ARRAY_RECORD)
        return [pathlib.Path(path) for path in files.sharded_filepaths(len(info.shard_lengths))]
    except Exception as error:
        raise BadInput(f'cannot read split {split} of {quote(builder.data_path)}: {describe(error)}') from error


def _count_records(shard: pathlib.Path) -> int:
    """Return the number of records that a shard itself states at its end."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        with contextlib.closing(ArrayRecordReader(str(shard))) as reader:
            return reader.num_records()
    except Exception as error:
        raise BadInput(f'cannot read {quote(shard)}: {describe(error)}') from error
