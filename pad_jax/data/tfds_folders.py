"""Sets that TFDS prepared, as folders: DATA_DIR/NAME/VERSION or DATA_DIR/NAME/CONFIG/VERSION."""

import pathlib
import re
import shlex

from pad_jax.data.text_tables import shorten
from pad_jax.errors import BadInput, quote
from pad_jax.files import list_children, read_json

INFO, FEATURES = 'dataset_info.json', 'features.json'
ARRAY_RECORD, TFRECORD = 'array_record', 'tfrecord'
# Of the set and of its splits; protobuf reads either spelling.
_FILE_NAMES = frozenset({'name', 'filepathTemplate', 'filepath_template'})
_CLASS_NAMES = frozenset({'pythonClassName', 'python_class_name', 'type'})
_OWN_CLASSES = 'tensorflow_datasets.core.features.'
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
        info = read_json(path)
    except (OSError, ValueError) as error:
        raise BadInput(f'{quote(path)} is no description of a TFDS set') from error
    if not isinstance(info, dict) or not info.keys() & {'fileFormat', 'splits'}:
        raise BadInput(f'{quote(path)} is no description of a TFDS set')
    formats = [info.get('fileFormat', ''), *_as_list(info.get('alternativeFileFormats', []))]
    splits = _as_list(info.get('splits', []))
    if not all(isinstance(name, str) for name in formats) or not all(isinstance(split, dict) for split in splits):
        raise BadInput(f'{quote(path)} is no description of a TFDS set')
    for named in (info, *splits):
        for key in _FILE_NAMES & named.keys():
            if not isinstance(named[key], str) or '/' in named[key] or named[key] == '..':
                raise BadInput(f'{quote(path)}: {key} {shorten(str(named[key]))!r} is no name of files in its folder')
    return info


def _as_list(value) -> list:
    return value if isinstance(value, list) else [None]


def check_features(folder: pathlib.Path) -> None:
    """Raises `BadInput` if a set lacks the file that says what a record is, or that names classes of others than TFDS.

    TFDS would call a set without that file an old one; and it imports whatever module a class is said to be of.
    """
    path = folder / FEATURES
    if not path.is_file():
        raise BadInput(
            f'{quote(path)} is missing: copy it from where the set was prepared, or delete the folder and prepare the '
            'set anew'
        )
    try:
        level = [read_json(path)]
    except (OSError, ValueError) as error:
        raise BadInput(f'{quote(path)} is no description of features') from error
    while level:
        for described in level:
            for key in _CLASS_NAMES & described.keys() if isinstance(described, dict) else ():
                named = described[key]  # no text where a feature is called so
                if isinstance(named, str) and not named.startswith(_OWN_CLASSES):
                    raise BadInput(f'{quote(path)}: {key} {shorten(named)!r} is none of TFDS: its code is not run')
        level = [below for described in level for below in list_children(described)]


def available_formats(info: dict) -> list[str]:
    """The formats of its files, the one that TFDS takes first; before it wrote any down there was but one.

    >>> available_formats({'fileFormat': 'tfrecord', 'alternativeFileFormats': ['array_record']})
    ['tfrecord', 'array_record']
    """
    return [info.get('fileFormat', TFRECORD), *info.get('alternativeFileFormats', ())]


def _is_version(folder: pathlib.Path) -> bool:
    return bool(_VERSION.fullmatch(folder.name)) and (folder / INFO).is_file()
