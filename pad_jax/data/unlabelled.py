"""New image files, read and prepared like those that a network was evaluated on."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pad_jax.data.decoding import Middle, normalize
from pad_jax.data.images import ImageKind, Photos
from pad_jax.data.photos import SUFFIXES, SUFFIXES_TEXT, FileRecords, walk
from pad_jax.errors import BadInput, quote
from pad_jax.files import reach

# Shares of red, green and blue in the grey of a picture.
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def describe_preprocessing(kind: ImageKind, size: int) -> dict[str, Any]:
    """Describe how images are prepared for evaluation, as values for JSON that `prepare_images` takes."""
    return {**kind.preprocessing._asdict(), 'size': size, **kind.middle._asdict()}


def find_images(paths: Sequence[str | pathlib.Path]) -> list[str]:
    """List image files: the files that are named, and those of folders at any depth, by name.

    Raises:
        BadInput: a path does not exist, or a folder holds no image.
    """
    found = []
    for path in map(reach, paths):
        if path.is_dir():
            names = (os.path.join(parent, name) for parent, _, files in walk(path) for name in files)
            images = [name for name in names if name.lower().endswith(SUFFIXES)]
            if not images:
                raise BadInput(f'{quote(path)} holds no {SUFFIXES_TEXT} file')
            found += images
        elif path.exists():
            found.append(str(path))
        else:
            raise BadInput(f'{quote(path)} does not exist')
    return found


def prepare_images(paths: Sequence[str], described: Mapping[str, Any]) -> np.ndarray:
    """Read image files as float32[N, size, size, channels], normalised.

    Args:
        paths: of `find_images`.
        described: of `describe_preprocessing`.

    Raises:
        BadInput: a file cannot be read.
    """
    middle = Middle(described['margin'], described['is_reduced'])
    photos = Photos(FileRecords(list(paths), [0] * len(paths)), described['size'], middle)
    with ThreadPoolExecutor() as pool:
        pixels = np.stack([pixels for pixels, _ in pool.map(photos.load, range(len(photos)))])
    if len(described['mean']) == 1:
        pixels = (pixels @ _LUMA)[..., None]
    pixels = pixels * np.float32(described['white'] / 255)
    return normalize(pixels, tuple(described['mean']), tuple(described['std']))
