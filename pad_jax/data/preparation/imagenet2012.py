"""ImageNet (ILSVRC 2012) from its two tars, as TFDS prepares imagenet2012.

Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge". The tar of the training images holds one
tar for each class, `n01440764.tar`; the validation images lie flat, and TFDS carries their labels.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from pad_jax.data.preparation.folders import check_folder, check_room, check_vacant, fill_folder
from pad_jax.data.preparation.jpegs import as_rgb_jpeg
from pad_jax.data.preparation.progress import CountProgress
from pad_jax.data.preparation.records import Serializer, write_info, write_split
from pad_jax.data.preparation.tars import Member, MemberReader, list_members
from pad_jax.errors import BadInput, quote

NAME = 'imagenet2012'
TARS = {
    'train': 'ILSVRC2012_img_train.tar',
    'validation': 'ILSVRC2012_img_val.tar',
    'test': 'ILSVRC2012_img_test.tar',
}
OPTIONAL = 'test'
NUM_CLASSES = 1000
NUM_IMAGES = {'train': 1_281_167, 'validation': 50_000, 'test': 100_000}
_VALIDATION_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')
# Of a serialised example beside its image: the names and the lengths of three features. It was 78 with a short name.
_OVERHEAD = 80


class LabelledMember(NamedTuple):
    """An image and its class as nXXXXXXXX; test images have none."""

    member: Member
    label: str | None


def prepare_imagenet2012(
    manual_dir: str | os.PathLike, data_dir: str | os.PathLike, *, overwrite: bool = False, subset: bool = False
) -> pathlib.Path:
    """Writes DATA_DIR/imagenet2012/VERSION: train, validation, and test where its tar is there.

    Images keep their bytes, but for those that `as_rgb_jpeg` converts. They are read straight from the tars, in the
    order in which they are written.

    Args:
        manual_dir: the folder of the tars.
        data_dir: TFDS's; made where it is missing.
        overwrite: whether a set that is there may be replaced.
        subset: whether fewer classes and images than ImageNet has will do.

    Returns:
        The folder of the set.

    Raises:
        BadInput: a tar is missing, cut short or damaged; an image is; classes or images are missing or unknown; the
            set is there already; there is no room; it cannot be written.
    """
    import tensorflow_datasets as tfds

    root = pathlib.Path(data_dir).expanduser()
    # A data_dir without the set: one that is there would be opened.
    builder = tfds.builder(NAME, data_dir=root / 'none', file_format='array_record')
    folder = root / NAME / str(builder.version)
    check_vacant(folder, overwrite)
    paths = _find_tars(check_folder(manual_dir, '--manual-dir'))
    splits = {split: _list_split(split, path, builder.info.features['label'].names) for split, path in paths.items()}
    if not subset:
        _check_complete(splits, paths)
    sizes = {split: sum(item.member.size + _OVERHEAD for item in items) for split, items in splits.items()}
    check_room(folder, sum(sizes.values()))

    serialize = Serializer(builder.info.features)
    with fill_folder(folder, overwrite) as target:
        written = []
        for split, items in splits.items():
            with MemberReader(paths[split]) as reader:

                def read(number: int, items=items, reader=reader, path=paths[split]) -> bytes:
                    member, label = items[number]
                    image = as_rgb_jpeg(reader.read(member), f'{member.name!r} in {quote(path)}')
                    label = -1 if label is None else label
                    return serialize({'file_name': member.name, 'image': image, 'label': label})

                keys = [item.member.name for item in items]
                written.append(write_split(target, NAME, split, keys, read, sizes[split]))
        write_info(target, builder, written)
    return folder


def _find_tars(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    paths = {split: folder / name for split, name in TARS.items()}
    missing = [path.name for split, path in paths.items() if split != OPTIONAL and not path.is_file()]
    if missing:
        raise BadInput(
            f'{quote(folder)} has no {" and no ".join(missing)}: register at https://image-net.org/download-images, '
            f'download {"it" if len(missing) == 1 else "them"} and put {"it" if len(missing) == 1 else "them"} there'
        )
    return {split: path for split, path in paths.items() if path.is_file()}


def _list_split(split: str, path: pathlib.Path, class_names: Sequence[str]) -> list[LabelledMember]:
    if split == 'train':
        return _list_train(path, class_names)
    members = list(list_members(path))
    if split == OPTIONAL:
        return [LabelledMember(member, None) for member in members]
    labels = _read_validation_labels()
    return [LabelledMember(member, _find_label(member.name, labels, path)) for member in members]


def _list_train(path: pathlib.Path, class_names: Sequence[str]) -> list[LabelledMember]:
    tars = list(list_members(path))
    known = set(class_names)
    for tar in tars:
        if tar.name.removesuffix('.tar') not in known:
            raise BadInput(f'{quote(path)} holds {tar.name!r}: expected a tar for each class, as n01440764.tar')
    found = []
    with CountProgress(f'reading {path.name}', len(tars), 'classes') as progress:
        for tar in tars:
            label = tar.name.removesuffix('.tar')
            found += [LabelledMember(member, label) for member in list_members(path, tar)]
            progress.advance()
    return found


def _read_validation_labels() -> list[str]:
    import tensorflow_datasets as tfds

    path = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt')
    return path.read_text(encoding='utf-8').split()


def _find_label(name: str, labels: Sequence[str], path: pathlib.Path) -> str:
    """The label by the number in the name; TFDS takes the place among the sorted names, of a whole set the same."""
    match = _VALIDATION_NAME.fullmatch(name)
    if not match or not 1 <= int(match[1]) <= len(labels):
        raise BadInput(
            f'{quote(path)} holds {name!r}: expected ILSVRC2012_val_00000001.JPEG to '
            f'ILSVRC2012_val_{len(labels):08}.JPEG'
        )
    return labels[int(match[1]) - 1]


def _check_complete(splits: dict[str, list[LabelledMember]], paths: dict[str, pathlib.Path]) -> None:
    subset = '--subset prepares what is there'
    num_classes = len({item.label for item in splits['train']})
    if num_classes != NUM_CLASSES:
        raise BadInput(f'{quote(paths["train"])} has {num_classes} classes with images, not {NUM_CLASSES}: {subset}')
    for split, items in splits.items():
        if len(items) != NUM_IMAGES[split]:
            raise BadInput(f'{quote(paths[split])} has {len(items)} images, not {NUM_IMAGES[split]}: {subset}')
