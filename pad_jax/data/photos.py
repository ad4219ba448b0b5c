"""Photos in class folders, and ImageNet or photos laid out like it, prepared by TFDS as array_record."""

import itertools
import logging
import os
import pathlib
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pad_jax.data.images import ImageSplits, Record
from pad_jax.data.ordering import choose_held
from pad_jax.data.prepared import NUM_THREADS, explain_building, find_prepared, find_shards, open_builder, open_split
from pad_jax.errors import BadInput, describe, quote
from pad_jax.files import measure_file, reach, read_plain

SUFFIXES = ('.png', '.jpg', '.jpeg')
SUFFIXES_TEXT = f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}'
EVAL_FOLDERS = ('val', 'validation', 'test')
LAYOUT = 'PATH/train/CLASS/*.png|jpg|jpeg and PATH/val/CLASS/...'
NAME = 'imagenet2012'
FILES_AT_ONCE = 1000  # whose sizes a thread asks for
SPLITS = ('train', 'validation')
EXPECTED = f'a data_dir of TFDS that holds {NAME}/VERSION, or a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG'

logger = logging.getLogger(__name__)


class FileRecords:
    """Labelled image files, sorted by class and then by name."""

    def __init__(self, paths: list[str], labels: list[int]):
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, mask: np.ndarray) -> 'FileRecords':
        """Return the files where bool[N] is True."""
        return FileRecords(*(list(itertools.compress(column, mask)) for column in (self.paths, self.labels)))

    def list_files(self) -> list[str]:
        """Return 'CLASS/NAME SIZE' of each file."""

        def describe_from(start: int) -> list[str]:
            paths = self.paths[start : start + FILES_AT_ONCE]
            return ['/'.join(path.split(os.sep)[-2:]) + f' {measure_file(path)}' for path in paths]

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return [*itertools.chain(*pool.map(describe_from, range(0, len(self), FILES_AT_ONCE)))]

    def read(self, index: int) -> Record:
        """Return one file; `BadInput` if it cannot be read."""
        path = self.paths[index]
        try:
            return Record(read_plain(path), self.labels[index], quote(path))
        except OSError as error:
            raise BadInput(f'cannot read the image {quote(path)}: {describe(error)}') from error


def open_folders(path: str | None, image_size: int = 0, holdout: float = 0.0) -> ImageSplits:
    """List the photos of a folder; classes are the sorted names of the folders in `train`.

    Names are compared in Unicode's composed form. A warning gives the number of ignored files.

    Args:
        path: folder with `train` and one of `EVAL_FOLDERS`.
        image_size: ignored.
        holdout: share in [0, 1) of each class of `train` to evaluate on, if no folder has that purpose.

    Raises:
        BadInput: the path has another layout, or a class lacks images.
    """
    del image_size
    root, eval_name = _check_root(path, holdout)
    train = _find_classes(root / 'train')
    names = sorted(train)
    if len(names) < 2:
        found = f'only the class {names[0]}' if names else 'no class folder'
        raise BadInput(f'{quote(root / "train")} must hold at least two classes, got {found}: expected {LAYOUT}')
    found, ignored = _list_split(train, names)
    for label in sorted(set(range(len(names))) - set(found.labels)):
        raise BadInput(f'{quote(train[names[label]])} holds no {SUFFIXES_TEXT} file')
    if eval_name is None:
        held = choose_held(np.array(found.labels), holdout)
        splits, place = (found.select(~held), found.select(held)), f'the held-out part of {quote(root / "train")}'
    else:
        folders, place = _find_classes(root / eval_name), quote(root / eval_name)
        unknown = [name for name in folders if name not in train]
        if unknown:
            raise BadInput(f'{place} has classes that train lacks: {", ".join(unknown)}')
        evaluation, others = _list_split(folders, names)
        splits, ignored = (found, evaluation), ignored + others
    if eval_name != 'val':
        logger.info('evaluation uses %s', place)
    if ignored:
        message = 'ignored %d files that are not %s directly in a class folder, the first: %s'
        logger.warning(message, len(ignored), SUFFIXES_TEXT, quote(ignored[0]))
    return ImageSplits(tuple(names), *splits)


def _check_root(path: str | None, holdout: float) -> tuple[pathlib.Path, str | None]:
    """Return the folder, and the name of the one inside it to evaluate on."""
    if not path:
        raise BadInput(f'path must name a folder with {LAYOUT}, got {path!r}')
    root = reach(path)
    if not root.is_dir():
        problem = 'is not a folder' if root.exists() else 'does not exist'
        raise BadInput(f'{quote(root)} {problem}: expected {LAYOUT}')
    present = [name for name in EVAL_FOLDERS if (root / name).is_dir()]
    if present and holdout:
        raise BadInput(f'holdout must be 0 for {quote(root)}, which has {present[0]}/, got {holdout:g}')
    missing = [name for name in ('train', *([] if holdout else present[:1] or ['val'])) if not (root / name).is_dir()]
    if missing:
        advice = ', or data.holdout=0.2' if missing == ['val'] else ''
        raise BadInput(f'the data folder {quote(root)} has no folder {missing[0]}/: expected {LAYOUT}{advice}')
    return root, None if holdout else present[0]


def _find_classes(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the class folders by name, in Unicode's composed form."""
    found = {}
    for name in next(walk(folder))[1]:
        composed = unicodedata.normalize('NFC', name)
        if composed in found:
            raise BadInput(f'{quote(folder)} has two folders with the name {composed!r} in different Unicode forms')
        found[composed] = folder / name
    return found


def _list_split(folders: dict[str, pathlib.Path], names: list[str]) -> tuple[FileRecords, list[str]]:
    """List the images of a split, and the other files of its class folders at any depth."""
    paths, labels, ignored = [], [], []
    for label, name in enumerate(names):
        for parent, _, files in walk(folders[name]) if name in folders else ():
            is_class = pathlib.Path(parent) == folders[name]
            for file in files:
                if is_class and file.lower().endswith(SUFFIXES):
                    labels.append(label)
                    paths.append(os.path.join(parent, file))
                else:
                    ignored.append(os.path.join(parent, file))
    return FileRecords(paths, labels), ignored


def walk(folder: pathlib.Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder as `os.walk`, by name and without hidden entries: ._x.jpg is not an image.

    Links are followed. A folder that links lead to again is left out.

    Raises:
        BadInput: a folder cannot be listed.
    """

    def refuse(error: OSError):
        raise BadInput(f'cannot list {quote(error.filename)}: {describe(error)}') from error

    seen = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:], files = (sorted(name for name in names if not name.startswith('.')) for names in (folders, files))
        yield parent, folders, files


class PreparedRecords:
    """The photos of a split prepared by TFDS."""

    def __init__(self, folder: pathlib.Path, builder, split: str, num_classes: int):
        self._examples, self._shards = open_split(builder, split, keep_bytes=('image',)), find_shards(builder, split)
        self._place, self._num_classes = f'split {split} of {quote(folder)}', num_classes

    def __len__(self) -> int:
        return len(self._examples)

    def list_files(self) -> list[str]:
        """Return 'NAME SIZE' of each shard."""
        return [f'{path.name} {measure_file(path)}' for path in self._shards]

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


def open_imagenet(path: str | None, image_size: int = 0, holdout: float = 0.0) -> ImageSplits:
    """Open prepared photos or photos in folders; the arguments are those of `open_folders`.

    Raises:
        BadInput: there is no data, or it is damaged in a way that can be found without decoding.
    """
    root = reach(path or '').absolute()
    if path and root.is_dir():
        prepared = find_prepared(root, NAME) or find_prepared(root.parent, root.name)
        if prepared and holdout:
            raise BadInput(f'holdout must be 0 for {quote(prepared)}, which has the split {SPLITS[1]}, got {holdout:g}')
        if prepared:
            return _open_prepared(prepared)
        if any((root / name).is_dir() for name in ('train', *EVAL_FOLDERS)):
            return open_folders(path, image_size, holdout)
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
    names = tuple(getattr(features['label'], 'names', None) or ())
    if not names:
        raise BadInput(f'the feature label of {quote(folder)} has no classes')
    return ImageSplits(names, *(PreparedRecords(folder, builder, split, len(names)) for split in SPLITS))
