"""ImageNet, or photos laid out like it: prepared by TFDS as array_record, or in class folders."""

import pathlib

from pad_jax.data.folders import open_folders
from pad_jax.data.images import ImageSplits, Record
from pad_jax.data.prepared import explain_building, find_prepared, open_builder, open_split
from pad_jax.errors import BadInput, describe, quote

NAME = 'imagenet2012'
SPLITS = ('train', 'validation')
EXPECTED = f'a data_dir of TFDS that holds {NAME}/VERSION, or a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG'


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
