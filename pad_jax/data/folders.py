"""Photos in class folders: `PATH/train/CLASS/*.png|jpg|jpeg` and `PATH/val/CLASS/...`."""

import logging
import os
import pathlib

import numpy as np

from pad_jax.data.images import ImageSplits, Record
from pad_jax.errors import BadInput, describe, quote
from pad_jax.files import read_plain

SUFFIXES = ('.png', '.jpg', '.jpeg')
SUFFIXES_TEXT = f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}'
LAYOUT = 'PATH/train/CLASS/*.png|jpg|jpeg and PATH/val/CLASS/...'

logger = logging.getLogger(__name__)


class FileRecords:
    """Labelled image files, sorted by class and then by name."""

    def __init__(self, paths: list[str], labels: list[int]):
        self._paths, self._labels = paths, labels

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Record:
        """Return one file; `BadInput` if it cannot be read."""
        path = self._paths[index]
        try:
            return Record(read_plain(path), self._labels[index], quote(path))
        except OSError as error:
            raise BadInput(f'cannot read the image {quote(path)}: {describe(error)}') from error


def open_folders(path: str | None, image_size: int = 0) -> ImageSplits:
    """List the photos of a folder; classes are the sorted names of the folders in `train`.

    Warnings give the number of ignored files, and the classes without an image to evaluate on.

    Raises:
        BadInput: the path is missing, empty or has another layout; there are fewer than two classes; a class has no
            training image; `val` has no image, or a class that `train` lacks.
    """
    del image_size
    root = _check_root(path)
    names = [entry.name for entry in _list_entries(root / 'train') if _is_folder(entry)]
    if len(names) < 2:
        found = f'only the class {names[0]}' if names else 'no class folder'
        raise BadInput(f'{quote(root / "train")} must hold at least two classes, got {found}: expected {LAYOUT}')
    unknown = [entry.name for entry in _list_entries(root / 'val') if _is_folder(entry) and entry.name not in names]
    if unknown:
        raise BadInput(f'{quote(root / "val")} has classes that train lacks: {", ".join(unknown)}')
    splits, ignored = [], []
    for split in ('train', 'val'):
        paths, labels = [], []
        for label, name in enumerate(names):
            found, others = _list_images(root / split / name)
            if split == 'train' and not found:
                raise BadInput(f'{quote(root / split / name)} holds no {SUFFIXES_TEXT} file')
            paths += found
            labels += [label] * len(found)
            ignored += others
        splits.append(FileRecords(paths, labels))
    if not paths:
        raise BadInput(f'{quote(root / "val")} holds no {SUFFIXES_TEXT} file in its class folders: expected {LAYOUT}')
    if ignored:
        message = 'ignored %d files that are not %s directly in a class folder, the first: %s'
        logger.warning(message, len(ignored), SUFFIXES_TEXT, quote(ignored[0]))
    unseen = [names[label] for label in np.setdiff1d(np.arange(len(names)), labels)]
    if unseen:
        listed = ', '.join(map(repr, unseen[:5])) + (', ...' if len(unseen) > 5 else '')
        message = '%s has no image of %d of the %d classes (%s), so they do not count in the accuracy'
        logger.warning(message, quote(root / 'val'), len(unseen), len(names), listed)
    return ImageSplits(tuple(names), *splits)


def _check_root(path: str | None) -> pathlib.Path:
    if not path:
        raise BadInput(f'path must name a folder with {LAYOUT}, got {path!r}')
    root = pathlib.Path(path).expanduser()
    if not root.exists():
        raise BadInput(f'the data folder {quote(root)} does not exist')
    if not root.is_dir():
        raise BadInput(f'{quote(root)} is not a folder: expected {LAYOUT}')
    if not _list_entries(root):
        raise BadInput(f'the data folder {quote(root)} is empty: expected {LAYOUT}')
    for split in ('train', 'val'):
        if not (root / split).is_dir():
            raise BadInput(f'{quote(root)} has no folder {split}/: expected {LAYOUT}')
    return root


def _list_entries(folder: pathlib.Path) -> list[os.DirEntry]:
    """List a folder by name, without hidden entries: ._x.jpg is not an image."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith('.')), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f'cannot list {quote(folder)}: {describe(error)}') from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; reading it will report the problem
        return False


def _list_images(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """List the images of a class folder, and its other files at any depth."""
    images, others = [], []
    for entry in _list_entries(folder) if folder.exists() else ():
        if _is_folder(entry):
            for parent, folders, files in os.walk(entry.path):
                folders[:] = sorted(name for name in folders if not name.startswith('.'))
                others += [os.path.join(parent, name) for name in sorted(files) if not name.startswith('.')]
        else:
            (images if entry.name.lower().endswith(SUFFIXES) else others).append(entry.path)
    return images, others
