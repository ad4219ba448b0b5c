"""Photos in class folders, and ImageNet or photos laid out like it, prepared by TFDS as array_record."""

import logging
import os
import pathlib

import numpy as np

from pad_jax.data.images import ImageSplits, Record
from pad_jax.data.prepared import explain_building, find_prepared, open_builder, open_split
from pad_jax.errors import BadInput, describe, quote
from pad_jax.files import read_plain

SUFFIXES = ('.png', '.jpg', '.jpeg')
SUFFIXES_TEXT = f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}'
LAYOUT = 'PATH/train/CLASS/*.png|jpg|jpeg and PATH/val/CLASS/...'
NAME = 'imagenet2012'
SPLITS = ('train', 'validation')
EXPECTED = f'a data_dir of TFDS that holds {NAME}/VERSION, or a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG'

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
        BadInput: the path has another layout, or a class lacks images.
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
    missing = [split for split in ('train', 'val') if not (root / split).is_dir()]
    if missing:
        problem = f'has no folder {missing[0]}/' if _list_entries(root) else 'is empty'
        raise BadInput(f'the data folder {quote(root)} {problem}: expected {LAYOUT}')
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


class PreparedRecords:
    """The photos of a split prepared by TFDS."""

    def __init__(self, folder: pathlib.Path, builder, split: str, num_classes: int):
        self._examples = open_split(builder, split, keep_bytes=('image',))
        self._place, self._num_classes = f'split {split} of {quote(folder)}', num_classes

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, index: int) -> Record:
        """Return one photo; `BadInput` if its record cannot be read."""
        place = f'record {index} of {self._place}'
        try:
            row = self._examples[index]
            data, label, name = row['image'], int(row['label']), row.get('file_name', b'').decode('utf-8')
        except Exception as error:  # a damaged shard raises RuntimeError, KeyError and others
            raise BadInput(f'cannot read {place}: {describe(error)}') from error
        if not 0 <= label < self._num_classes:
            problem = f'{place} has the label {label}, expected 0 to {self._num_classes - 1}'
            raise BadInput(f'{problem}. Prepare the data set again')
        return Record(data, label, f'{name!r} ({place})' if name else f'of {place}')


def open_imagenet(path: str | None, image_size: int = 0) -> ImageSplits:
    """Open prepared photos or photos in folders.

    Raises:
        BadInput: there is no data, or it is damaged in a way that can be found without decoding.
    """
    root = pathlib.Path(path or '').expanduser().absolute()
    if path and root.is_dir():
        prepared = find_prepared(root, NAME) or find_prepared(root.parent, root.name)
        if prepared:
            return _open_prepared(prepared)
        if (root / 'train').is_dir() or (root / 'val').is_dir():
            return open_folders(path, image_size)
    problem = 'holds no photos' if root.is_dir() else 'is not a folder' if root.exists() else 'does not exist'
    found = f'{quote(path)} {problem}; ' if path else ''
    build = explain_building(path or 'DIR', NAME)
    raise BadInput(f'{found}data.path must name {EXPECTED}. Prepare the former by {build}')


def _open_prepared(folder: pathlib.Path) -> ImageSplits:
    builder = open_builder(folder)
    features, splits = builder.info.features, builder.info.splits
    missing = [f'feature {name}' for name in ('image', 'label') if name not in features]
    missing += [f'split {name}' for name in SPLITS if name not in splits]
    if missing:
        raise BadInput(f'{quote(folder)} has no {" and no ".join(missing)}')
    number, names = getattr(features['label'], 'num_classes', 0), tuple(getattr(features['label'], 'names', None) or ())
    if not number:
        raise BadInput(f'the feature label of {quote(folder)} has no classes')
    if len(names) != number:
        raise BadInput(f'{quote(folder)} names {len(names)} classes, expected {number}. Prepare the data set again')
    return ImageSplits(names, *(PreparedRecords(folder, builder, split, number) for split in SPLITS))
