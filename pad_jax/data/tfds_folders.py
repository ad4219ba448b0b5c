"""Sets that TFDS prepared, as folders: DATA_DIR/NAME/VERSION or DATA_DIR/NAME/CONFIG/VERSION."""

import json
import pathlib
import re
import shlex

from pad_jax.errors import BadInput, quote

INFO, FEATURES = 'dataset_info.json', 'features.json'
ARRAY_RECORD, TFRECORD = 'array_record', 'tfrecord'
# What a preparation has not finished lies in VERSION.incomplete, which is no version.
_VERSION = re.compile(r'\d+\.\d+\.\d+')


def find_set(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """The newest version of a set under `root`, in whatever format; None without one.

    Args:
        name: NAME or NAME/CONFIG, with or without a version.

    Raises:
        BadInput: it cannot be looked for.
    """
    folder = root / name
    try:
        if _is_version(folder):
            return folder
        versions = list(filter(_is_version, folder.iterdir() if folder.is_dir() else ()))
    except OSError as error:
        raise BadInput(f'{quote(folder)} cannot be read: {error.strerror}') from error
    return max(versions, key=lambda version: [int(part) for part in version.name.split('.')], default=None)


def find_readable_set(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """As `find_set`, of a set of which single examples can be read.

    Raises:
        BadInput: it was prepared as TFRecord or the like, with the command that helps; features.json is missing.
    """
    folder = find_set(root, name)
    if folder is None:
        return None
    formats = available_formats(read_info(folder))
    if ARRAY_RECORD in formats:
        check_features(folder)
        return folder
    how = explain_converting(root, name) if TFRECORD in formats else 'delete it, then prepare it anew'
    raise BadInput(f'{quote(folder)} was prepared as {formats[0]}, which cannot be read in any order: {how}')


def explain_converting(root: pathlib.Path, name: str) -> str:
    """What to run where a set has no array_record files yet."""
    return f'run python -m pad_jax prepare convert --data-dir={shlex.quote(str(root))} --name={name}'


def read_info(folder: pathlib.Path) -> dict:
    """What dataset_info.json says of a set.

    Raises:
        BadInput: it cannot be read, or describes no set.
    """
    path = folder / INFO
    try:
        info = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise BadInput(f'{quote(path)} is no description of a TFDS set') from error
    if not isinstance(info, dict) or not info.keys() & {'fileFormat', 'splits'}:
        raise BadInput(f'{quote(path)} is no description of a TFDS set')
    return info


def check_features(folder: pathlib.Path) -> None:
    """Raises `BadInput` if a set lacks the file that says what a record is; TFDS would call it an old one."""
    if not (folder / FEATURES).is_file():
        raise BadInput(
            f'{quote(folder / FEATURES)} is missing: copy it from where the set was prepared, or delete the folder and '
            'prepare the set anew'
        )


def available_formats(info: dict) -> list[str]:
    """The formats of its files, the one that TFDS takes first; before it wrote any down there was but one.

    >>> available_formats({'fileFormat': 'tfrecord', 'alternativeFileFormats': ['array_record']})
    ['tfrecord', 'array_record']
    """
    return [info.get('fileFormat', TFRECORD), *info.get('alternativeFileFormats', ())]


def _is_version(folder: pathlib.Path) -> bool:
    return bool(_VERSION.fullmatch(folder.name)) and (folder / INFO).is_file()
