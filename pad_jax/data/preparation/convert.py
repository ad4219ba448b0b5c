"""Turns a set that TFDS prepared as TFRecord, of which no single example can be read, into array_record."""

import json
import os
import pathlib
import shutil

from pad_jax.data.preparation.folders import check_folder, check_room, fill_folder, stage_folder
from pad_jax.data.preparation.progress import CountProgress
from pad_jax.data.preparation.records import write_file
from pad_jax.data.preparation.tfrecord import read_records
from pad_jax.data.tfds_folders import (
    ARRAY_RECORD,
    INFO,
    TFRECORD,
    available_formats,
    check_features,
    find_set,
    read_info,
)
from pad_jax.errors import BadInput, quote


def convert_tfrecord(
    data_dir: str | os.PathLike,
    name: str,
    *,
    output_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes for every TFRecord file of a set an array_record file with the same records in the same order.

    They are checked against their CRCs, and their number against dataset_info.json. That file, written last, is what
    says which files TFDS reads: an interrupted conversion has changed nothing. The TFRecord files stay; but TFDS reads
    a set in one format only, so that who needs both gives an `output_dir`.

    Args:
        data_dir: TFDS's.
        name: of the set, as `imagenet2012` or `glue/rte`, or with a version as `imagenet2012/5.1.0`; without one the
            newest.
        output_dir: the data_dir of the new set; None puts its files beside the old ones.
        overwrite: whether array_record files that are there may be replaced.

    Returns:
        The folder of the set.

    Raises:
        BadInput: there is no such set, or it is not in TFRecord, or has been converted; a file is missing; a record
            is damaged, with file and index; there is no room; it cannot be written.
    """
    root = check_folder(data_dir, '--data-dir')
    leads_out = pathlib.PurePath(name).is_absolute() or '..' in pathlib.PurePath(name).parts
    folder = None if leads_out else find_set(root, name)
    if folder is None:
        raise BadInput(f'{quote(root)} holds no set {name!r}: expected {name}/VERSION/{INFO}')
    info = read_info(folder)
    formats = available_formats(info)
    if TFRECORD not in formats:
        raise BadInput(f'{quote(folder)} was prepared as {", ".join(formats)}, not as {TFRECORD}: nothing to convert')
    check_features(folder)
    if output_dir is None:
        if ARRAY_RECORD in formats and not overwrite:
            raise BadInput(f'{quote(folder)} holds {ARRAY_RECORD} already: --overwrite writes it anew')
        target, staged = folder, stage_folder(folder)
        others = [name for name in formats if name != ARRAY_RECORD]
    else:
        target = pathlib.Path(output_dir).expanduser() / folder.relative_to(root)
        staged, others = fill_folder(target, overwrite), []
    files = _list_files(folder)
    check_room(target, sum(source.stat().st_size for source, _, _ in files))

    with staged as staging, CountProgress(f'converting {name}', len(files), 'files') as progress:
        for source, written, num_records in files:
            found, _ = write_file(staging / written, read_records(source))
            if found != num_records:
                raise BadInput(f'{quote(source)} has {found} records, {quote(folder / INFO)} says {num_records}')
            progress.advance()
        if output_dir is not None:
            for path in _list_descriptions(folder):
                shutil.copyfile(path, staging / path.name)
        info |= {'fileFormat': ARRAY_RECORD, 'alternativeFileFormats': others}
        (staging / INFO).write_text(json.dumps(info, indent=2), encoding='utf-8')
        if output_dir is None:
            for path in [*(staging / written for _, written, _ in files), staging / INFO]:
                path.replace(folder / path.name)
    return target


def _list_descriptions(folder: pathlib.Path) -> list[pathlib.Path]:
    """What TFDS keeps beside the records: features.json, and the names of labels."""
    return [path for pattern in ('*.json', '*.txt') for path in sorted(folder.glob(pattern))]


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
