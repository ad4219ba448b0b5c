"""Adds array_record files to a set that TFDS prepared as TFRecord, of which no single example can be read."""

import json
import os
import pathlib

from pad_jax.data.preparation.folders import check_folder, check_room, stage_folder
from pad_jax.data.preparation.progress import CountProgress
from pad_jax.data.preparation.records import write_file
from pad_jax.data.preparation.tfrecord import read_records
from pad_jax.data.text_tables import quote
from pad_jax.data.tfds_folders import ARRAY_RECORD, INFO, TFRECORD, available_formats, find_set, read_info
from pad_jax.errors import BadInput

ALTERNATIVES = 'alternativeFileFormats'


def convert_tfrecord(data_dir: str | os.PathLike, name: str, *, overwrite: bool = False) -> pathlib.Path:
    """Writes beside every TFRecord file of a set an array_record file with the same records in the same order.

    dataset_info.json then names array_record as a further format, as TFDS's own converter has it: TensorFlow goes on
    reading the TFRecord files, `tfds.data_source` reads the others. It is written last, so that an interrupted
    conversion has changed nothing; records are checked against their CRCs, and their number against that file.

    Args:
        data_dir: TFDS's.
        name: of the set, as `imagenet2012` or `glue/rte`, or with a version as `imagenet2012/5.1.0`; without one the
            newest.
        overwrite: whether array_record files that are there may be replaced.

    Returns:
        The folder of the set.

    Raises:
        BadInput: there is no such set, or it is not in TFRecord, or has been converted; a file is missing; a record
            is damaged, with file and index; there is no room; it cannot be written.
    """
    root = check_folder(data_dir, '--data-dir')
    folder = find_set(root, name)
    if folder is None:
        raise BadInput(f'{quote(root)} holds no set {name!r}: expected {name}/VERSION/{INFO}')
    info = read_info(folder)
    formats = available_formats(info)
    if TFRECORD not in formats:
        raise BadInput(f'{quote(folder)} was prepared as {", ".join(formats)}, not as {TFRECORD}: nothing to convert')
    if ARRAY_RECORD in formats and not overwrite:
        raise BadInput(f'{quote(folder)} holds {ARRAY_RECORD} already: --overwrite writes it anew')
    files = _list_files(folder)
    check_room(folder, sum(source.stat().st_size for source, _, _ in files))

    with stage_folder(folder) as staging, CountProgress(f'converting {name}', len(files), 'files') as progress:
        for source, target, num_records in files:
            found, _ = write_file(staging / target, read_records(source))
            if found != num_records:
                raise BadInput(f'{quote(source)} has {found} records, {quote(folder / INFO)} says {num_records}')
            progress.advance()
        for _, target, _ in files:
            (staging / target).replace(folder / target)
        if ARRAY_RECORD not in formats:
            info[ALTERNATIVES] = [*info.get(ALTERNATIVES, []), ARRAY_RECORD]
            (staging / INFO).write_text(json.dumps(info, indent=2), encoding='utf-8')
            (staging / INFO).replace(folder / INFO)
    return folder


def _list_files(folder: pathlib.Path) -> list[tuple[pathlib.Path, str, int]]:
    """Of every file: where it is, the name of its twin, and how many records it must hold."""
    import tensorflow_datasets as tfds

    files = []
    try:
        for split in tfds.builder_from_directory(folder).info.splits.values():
            sources, targets = (
                split.filename_template.replace(filetype_suffix=suffix).sharded_filepaths(split.num_shards)
                for suffix in (TFRECORD, ARRAY_RECORD)
            )
            files += [
                (pathlib.Path(source), target.name, length)
                for source, target, length in zip(sources, targets, split.shard_lengths, strict=True)
            ]
    except Exception as error:
        # A folder that is incomplete or was changed fails in many ways, none of them this program's fault.
        raise BadInput(
            f'cannot read {quote(folder)}: {" ".join(str(error).split()) or type(error).__name__}'
        ) from error
    missing = [source.name for source, _, _ in files if not source.is_file()]
    if missing:
        raise BadInput(f'{quote(folder)} lacks {len(missing)} of its {len(files)} files, the first {missing[0]}')
    return files
