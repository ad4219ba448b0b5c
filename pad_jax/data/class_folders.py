"""The layout `PATH/train/CLASS/*.png|jpg|jpeg`, `PATH/val/CLASS/...`: which files there are, and what they show.

Folders are listed; no file is opened.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from pad_jax.errors import BadInput, quote

SUFFIXES = ('.png', '.jpg', '.jpeg')
LAYOUT = 'PATH/train/CLASS/*.png|jpg|jpeg and PATH/val/CLASS/...'

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LabelledFiles:
    """One split, sorted by class and then by name. `labels` are int32[N]."""

    paths: list[str]
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """`class_names[label]` is the folder that files of a label lie in."""

    root: pathlib.Path
    class_names: tuple[str, ...]
    train: LabelledFiles
    val: LabelledFiles


def list_class_folders(path: str | None) -> ClassFolders:
    """Lists a folder; classes are the sorted names of the folders in `train`. Says how many files are ignored.

    Raises:
        BadInput: the path is missing, empty or not laid out as above; there are fewer than two classes; a class has
            no training image; `val` has none at all, or a class that `train` lacks.
    """
    root = _check_root(path)
    class_names = _class_names(root / 'train')
    unknown = sorted(set(_folders(root / 'val')) - set(class_names))
    if unknown:
        raise BadInput(f'{quote(root / "val")} has classes that train lacks: {", ".join(unknown)}')
    splits, ignored = [], []
    for split in ('train', 'val'):
        paths, counts = [], []
        for name in class_names:
            found = _image_paths(root / split / name)
            if split == 'train' and not found:
                raise BadInput(f'{quote(root / split / name)} holds no {_suffixes()} file')
            paths += found
            counts.append(len(found))
            ignored += _other_files(root / split / name, found)
        splits.append(LabelledFiles(paths, np.repeat(np.arange(len(class_names), dtype=np.int32), counts)))
    train, val = splits
    if not val.paths:
        raise BadInput(f'{quote(root / "val")} holds no {_suffixes()} file in its class folders: expected {LAYOUT}')
    if ignored:
        logger.warning(
            'ignored %d files that are not %s directly in a class folder, the first: %s',
            len(ignored),
            _suffixes(),
            quote(ignored[0]),
        )
    return ClassFolders(root, class_names, train, val)


def warn_of_unseen(folders: ClassFolders, labels: np.ndarray) -> None:
    """Says which classes no evaluation example has, given the labels of those in use."""
    names = folders.class_names
    unseen = sorted(set(names) - {names[label] for label in np.unique(labels)})
    if unseen:
        logger.warning(
            '%s has no image of %d of the %d classes (%s): the accuracy says nothing about them',
            quote(folders.root / 'val'),
            len(unseen),
            len(names),
            ', '.join(map(repr, unseen[:5])) + (', ...' if len(unseen) > 5 else ''),
        )


def _check_root(path: str | None) -> pathlib.Path:
    if not path:
        raise BadInput(f'path must name a folder with {LAYOUT}, got {path!r}')
    root = pathlib.Path(path).expanduser()
    if not root.exists():
        raise BadInput(f'the data folder {quote(root)} does not exist')
    if not root.is_dir():
        raise BadInput(f'{quote(root)} is not a folder: expected {LAYOUT}')
    if not _entries(root):
        raise BadInput(f'the data folder {quote(root)} is empty: expected {LAYOUT}')
    for split in ('train', 'val'):
        if not (root / split).is_dir():
            raise BadInput(f'{quote(root)} has no folder {split}/: expected {LAYOUT}')
    return root


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    names = _folders(folder)
    if len(names) < 2:
        found = f'only the class {names[0]}' if names else 'no class folder'
        raise BadInput(f'{quote(folder)} must hold at least two classes, got {found}: expected {LAYOUT}')
    return tuple(names)


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    """What the folder holds, by name. Hidden entries are left out: ._x.jpg is no image."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith('.')), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f'cannot list {quote(folder)}: {error.strerror}') from error


def _folders(folder: pathlib.Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: whoever reads it says so
        return False


def _image_paths(folder: pathlib.Path) -> list[str]:
    if not folder.exists():
        return []
    return [e.path for e in _entries(folder) if e.name.lower().endswith(SUFFIXES) and not _is_folder(e)]


def _other_files(folder: pathlib.Path, images: Sequence[str]) -> list[str]:
    """Files at any depth of a class folder that are not among its images; hidden ones are meant to be left out."""
    if not folder.exists():
        return []
    known, found = set(images), []
    for entry in _entries(folder):
        if not _is_folder(entry):
            found += [] if entry.path in known else [entry.path]
            continue
        for parent, folders, files in os.walk(entry.path):
            folders[:] = sorted(name for name in folders if not name.startswith('.'))
            found += [os.path.join(parent, name) for name in sorted(files) if not name.startswith('.')]
    return found


def _suffixes() -> str:
    return f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}'
