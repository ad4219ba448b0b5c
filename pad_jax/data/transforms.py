"""What happens to images between the disk and the network. Pure functions of arrays.

Legend: B batch, H/W space, C channels, P padding, S side of the square that the network sees.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_STD = (255 * 0.229, 255 * 0.224, 255 * 0.225)


class Preprocessing(NamedTuple):
    """How a picture becomes what a network is evaluated on: (pixels − mean) / std of a view of it.

    Attributes:
        pixels: colours and range of the stored pixels, in words.
        view: which part of a picture is seen, and how it is resized, in words.
        mean, std: of each channel, in units of the stored pixels.
    """

    pixels: str
    view: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalize(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], out: np.ndarray | None = None
) -> np.ndarray:
    """(images − mean) / std, channel by channel: uint8[..., H, W, C] -> float32[..., H, W, C].

    Mean and standard deviation are in units of the stored pixels (0..255 for photos). The result is written into
    `out`, where there is one.

    >>> normalize(np.array([[[[0], [4]]]], np.uint8), (2.0,), (2.0,)).ravel().tolist()
    [-1.0, 1.0]
    """
    scale = 1 / np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) * scale
    out = np.empty(images.shape, np.float32) if out is None else out
    width = images.shape[-2]
    # Whole rows at once: an inner loop over three channels takes seven times as long. And in place: at 224² a batch of
    # 256 is 154 MB, and each temporary array would be another.
    rows = out.reshape(*images.shape[:-2], -1)
    rows[...] = images.reshape(rows.shape)
    rows *= np.tile(scale, width)
    rows -= np.tile(shift, width)
    return out


def crop_and_flip(images: np.ndarray, bits: np.ndarray, padding: int, flip: bool) -> np.ndarray:
    """Pads each image with black, crops the original size at a random place, and flips every other one.

    Args:
        images: uint8[B, H, W, C].
        bits: uint64[B, 3], random; for each image the top, the left and the side that it faces.
        padding: pixels on every side, at least 0. Each of the (2P + 1)² crops is equally likely.
        flip: whether an image is mirrored, with probability 1/2.

    Returns:
        uint8[B, H, W, C], a new array.

    >>> image = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> crop_and_flip(image, np.array([[0, 1, 0]], np.uint64), padding=1, flip=True)[0, ..., 0].tolist()
    [[0, 0], [1, 2]]
    >>> crop_and_flip(image, np.array([[1, 1, 1]], np.uint64), padding=1, flip=True)[0, ..., 0].tolist()
    [[2, 1], [4, 3]]
    """
    height, width = images.shape[1:3]
    padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    top, left = (bits[:, :2] % np.uint64(2 * padding + 1)).astype(np.int64).T
    # [B, 2P + 1, 2P + 1, C, H, W], a view; picking one window an image copies no more than the result.
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    cropped = np.ascontiguousarray(np.moveaxis(windows[np.arange(len(images)), top, left], 1, -1))
    if flip:
        mirrored = bits[:, 2] % np.uint64(2) == 1
        cropped[mirrored] = cropped[mirrored, :, ::-1]
    return cropped


def center_crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
    """Cuts the middle square and resizes it to `size` (bilinear, antialiased): uint8[S, S, 3].

    The same as resizing the shorter side and then cutting the middle, without ever holding what lies beside
    it: a picture of 1 × 50,000 pixels stays small.

    Args:
        image: RGB.
        size: pixels, at least 1.

    >>> center_crop_and_resize(Image.new('RGB', (40, 20), (255, 0, 0)), 8)[0, 0].tolist()
    [255, 0, 0]
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box), np.uint8)
