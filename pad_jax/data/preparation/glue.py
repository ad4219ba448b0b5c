"""GLUE from the archives that its tasks are distributed in, or from their folders, as TFDS prepares glue.

TFDS's builder reads the rows. What it would download is taken from a folder instead: the zip of the task, or the
folder that it unpacks into; for MRPC the files of its authors and the list that divides them, or GLUE's own folder;
for ax its only file.
"""

import logging
import os
import pathlib
import tempfile
import zipfile

from pad_jax.data.glue import GLUE_TASKS
from pad_jax.data.glue_files import read_glue_file
from pad_jax.data.preparation.folders import check_folder, check_vacant, fill_folder, format_size
from pad_jax.data.preparation.progress import CountProgress
from pad_jax.data.preparation.records import Serializer, write_info, write_split
from pad_jax.data.preparation.tars import check_name
from pad_jax.errors import BadInput, quote
from pad_jax.files import open_plain

logger = logging.getLogger(__name__)

MRPC_FILES = {
    'train': 'msr_paraphrase_train.txt',
    'test': 'msr_paraphrase_test.txt',
    'dev_ids': 'data_mrpc_dev_ids.tsv',
}
AX_FILE = 'AX.tsv'
MOST_UNPACKED = 2**31
"""Bytes of a task's tables: all of GLUE has less than half as many."""
OPTIONAL = 'test'
"""To be predicted, without labels; folders that people keep often lack it."""


def prepare_glue(
    task: str, manual_dir: str | os.PathLike, data_dir: str | os.PathLike, *, overwrite: bool = False
) -> pathlib.Path:
    """Writes DATA_DIR/glue/TASK/VERSION with all of its splits, but for a test split whose file is not there.

    Args:
        task: a configuration of TFDS's glue: the nine tasks, mnli_matched, mnli_mismatched and ax.
        manual_dir: where the files lie.
        data_dir: TFDS's; made where it is missing.
        overwrite: whether a set that is there may be replaced.

    Returns:
        The folder of the set.

    Raises:
        BadInput: there is no such task; its files are missing or damaged, or lead out of their folder; a row cannot
            be read; the set is there already; it cannot be written.
    """
    import tensorflow_datasets.text.glue as tfds_glue

    names = list(tfds_glue.Glue.builder_configs)
    if task not in names:
        raise BadInput(f'--task must be one of {", ".join(names)}, got {task!r}')
    root = pathlib.Path(data_dir).expanduser()
    # A data_dir without the set: one that is there would be opened.
    builder = tfds_glue.Glue(config=task, data_dir=str(root / 'none'), file_format='array_record')
    folder = root / 'glue' / task / str(builder.version)
    check_vacant(folder, overwrite)
    source = check_folder(manual_dir, '--manual-dir')
    serialize = Serializer(builder.info.features)
    with fill_folder(folder, overwrite) as target:
        written = []
        for split, payloads in _read_splits(builder, source, target, serialize).items():
            read, num_bytes = list(payloads.values()).__getitem__, sum(map(len, payloads.values()))
            written.append(write_split(target, 'glue', split, list(payloads), read, num_bytes))
        write_info(target, builder, written)
    return folder


class _LocalFiles:
    """Stands where a builder of TFDS expects its download manager."""

    def __init__(self, config, manual_dir: pathlib.Path, unpacked: pathlib.Path):
        self._config, self._manual_dir, self._unpacked = config, manual_dir, unpacked

    def download_and_extract(self, url: str) -> str:
        """The folder that holds the task's own, unpacked unless it lies there already."""
        own = self._manual_dir / self._config.data_dir
        if own.is_dir():
            return str(self._manual_dir)
        archive = self._manual_dir / url.rsplit('/', 1)[-1]
        if not archive.is_file():
            raise BadInput(
                f'{quote(self._manual_dir)} has neither {archive.name} nor {own.name}/: download {url} and put it there'
            )
        _unpack(archive, self._unpacked, self._config.data_dir)
        return str(self._unpacked)

    def download(self, urls: str | dict[str, str]) -> str | dict[str, str]:
        """The files that are not in archives: MRPC's by their roles, or the one of ax."""
        is_one = isinstance(urls, str)
        named = {'ax': (AX_FILE, urls)} if is_one else {role: (MRPC_FILES[role], url) for role, url in urls.items()}
        missing = [f'{name} (from {url})' for name, url in named.values() if not (self._manual_dir / name).is_file()]
        if missing:
            other = '' if is_one else f', nor {GLUE_TASKS["mrpc"].folder}/'
            raise BadInput(f'{quote(self._manual_dir)} has no {" and no ".join(missing)}{other}: put them there')
        found = {role: str(self._manual_dir / name) for role, (name, _) in named.items()}
        return found['ax'] if is_one else found


def _unpack(archive: pathlib.Path, target: pathlib.Path, folder: str) -> None:
    """Unpacks the tables in one folder of an archive."""
    place = quote(archive)
    try:
        file = open_plain(archive)
    except OSError as error:
        raise BadInput(f'{place} cannot be read: {error.strerror}') from error
    try:
        with file, zipfile.ZipFile(file) as zipped:
            names = {name: check_name(name, place) for name in zipped.namelist()}
            wanted = [
                name
                for name, path in names.items()
                if pathlib.PurePosixPath(path).parent.as_posix() == folder and path.endswith('.tsv')
            ]
            if not wanted:
                raise BadInput(f'{place} has no {folder}/*.tsv')
            size = sum(zipped.getinfo(name).file_size for name in wanted)
            if size > MOST_UNPACKED:
                raise BadInput(
                    f'{place} unpacks to {format_size(size)}, at most {format_size(MOST_UNPACKED)} are taken'
                )
            with CountProgress(f'unpacking {archive.name}', len(wanted), 'files') as progress:
                for name in wanted:
                    zipped.extract(name, target)
                    progress.advance()
    except BadInput:
        raise
    except Exception as error:  # Each way of compressing fails in its own ways.
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the archive's
        raise BadInput(f'{place} is no zip, damaged or cut short: {error}') from error


def _read_splits(
    builder, manual_dir: pathlib.Path, target: pathlib.Path, serialize: Serializer
) -> dict[str, dict[int, bytes]]:
    """What TFDS stores of every split: its name, then the index of each row and the row serialised."""
    mrpc = manual_dir / GLUE_TASKS['mrpc'].folder
    if builder.builder_config.name == 'mrpc' and mrpc.is_dir():
        rows = _read_mrpc(mrpc)
        return {split: {row['idx']: serialize(row) for row in split_rows} for split, split_rows in rows.items()}
    splits = {}
    with tempfile.TemporaryDirectory(dir=target) as unpacked:
        files = _LocalFiles(builder.builder_config, manual_dir, pathlib.Path(unpacked))
        for generator in builder._split_generators(files):
            arguments = generator.gen_kwargs
            mrpc_files = arguments.get('mrpc_files')  # of which two splits share one
            role = OPTIONAL if arguments['split'] == OPTIONAL else 'train'
            path = pathlib.Path(mrpc_files[role] if mrpc_files else arguments['data_file'])
            if path.is_file():
                splits[str(generator.name)] = _read_rows(builder, arguments, path, serialize)
            elif arguments['split'] != OPTIONAL:
                raise BadInput(f'{quote(path.parent)} has no {path.name}')
    return splits


def _read_rows(builder, arguments: dict, path: pathlib.Path, serialize: Serializer) -> dict[int, bytes]:
    payloads, labelled = {}, False
    try:
        for index, row in builder._generate_examples(**arguments):
            payloads[index] = serialize(row)
            labelled |= row['label'] != -1
    except Exception as error:
        # A file that is damaged or has other columns fails in many ways, none of them this program's fault.
        after = f' after row {max(payloads)}' if payloads else ''
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise BadInput(f'{quote(path)} cannot be read{after}: {reason}') from error
    if not labelled and arguments['split'] != OPTIONAL:
        raise BadInput(f'{quote(path)} has no labels in a column {builder.builder_config.label_column!r}')
    if not arguments.get('mrpc_files'):
        _check_lost_rows(builder.builder_config.name, arguments['split'], path, len(payloads))
    return payloads


def _check_lost_rows(task: str, split: str, path: pathlib.Path, num_rows: int) -> None:
    """TFDS leaves out rows with too few columns, and says nothing. QQP is known to have some."""
    has_header = task != 'cola' or split == OPTIONAL
    with path.open(encoding='utf-8') as file:
        num_lost = sum(bool(line.rstrip('\n')) for line in file) - has_header - num_rows
    if num_lost and not (task in GLUE_TASKS and GLUE_TASKS[task].has_broken_rows):
        raise BadInput(f'{quote(path)} has {num_lost} rows with too few columns, beside {num_rows} whole ones')
    if num_lost:
        logger.warning('%s: left out %d rows with too few columns, as TFDS does', quote(path), num_lost)


def _read_mrpc(folder: pathlib.Path) -> dict[str, list[dict]]:
    """MRPC as GLUE divided it; TFDS knows only how to divide it anew, which gives the same rows other indices."""
    task = GLUE_TASKS['mrpc']
    splits = {}
    for split, name in (('train', 'train.tsv'), ('validation', 'dev.tsv'), (OPTIONAL, 'test.tsv')):
        if split == OPTIONAL and not (folder / name).is_file():
            continue
        examples = read_glue_file(folder / name, task, labelled=split != OPTIONAL)
        labels = [-1] * len(examples.ids) if examples.labels is None else examples.labels.tolist()
        splits[split] = [
            {**dict(zip(task.features, texts)), 'label': label, 'idx': index}
            for index, (*texts, label) in enumerate(zip(*examples.texts, labels, strict=True))
        ]
    return splits
