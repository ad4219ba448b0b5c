"""Files of images as Pillow reads them, whatever their suffix says.

What can be wrong with a file is one line: its place and the reason.
"""

import os
import re
import warnings
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

# What the content may be, whatever the suffix says: folders from the web hold WebP and GIF under .jpg.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP')

MOST_PIXELS = Image.MAX_IMAGE_PIXELS
MOST_SCANS = 100
"""Of a progressive JPEG, which has about ten. Each goes over all pixels, however few bytes it takes in the file."""

# open_image compares the size itself; Pillow would print a warning for the same.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
# ImageNet's photos hold some; what is amiss there is not the picture.
warnings.filterwarnings('ignore', module='PIL.TiffImagePlugin')


def open_image(file: BinaryIO, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The image with its header read; its pixels are decoded when they are asked for.

    Raises:
        Exception: of almost any kind, for `describe_failure` to describe.
    """
    limit = Image.MAX_IMAGE_PIXELS or MOST_PIXELS  # another library may have lifted Pillow's
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        # Pillow's own refusal, at twice its limit, which it doesn't say: "Image size (N pixels) exceeds limit ..."
        raise _TooLarge(int(re.search(r'\d+', str(error))[0]), limit) from error
    if image.width * image.height > limit:
        image.close()
        raise _TooLarge(image.width * image.height, limit, f' ({image.width} × {image.height})')
    if image.info.get('progressive'):
        _check_scans(file)
    return image


def _check_scans(file: BinaryIO) -> None:
    place = file.seek(0, os.SEEK_CUR)
    file.seek(0)
    # Within a scan no 0xff is followed by anything else than a zero or a mark.
    num_scans = file.read().count(b'\xff\xda')
    file.seek(place)
    if num_scans > MOST_SCANS:
        raise ValueError(f'{num_scans} scans, at most {MOST_SCANS} are decoded: save it anew')


class _TooLarge(Exception):
    """An image that would fill the memory, whether by accident or on purpose."""

    def __init__(self, pixels: int, limit: int, sides: str = ''):
        super().__init__(f'{pixels:,} pixels{sides}, at most {limit:,} are read: shrink it')


def turn_upright(image: Image.Image) -> Image.Image:
    """The image the way its camera says that it was held: itself, still undecoded, where it says nothing."""
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, palette and CMYK as RGB; transparency is dropped."""
    if image.mode == 'RGB':
        return image
    if image.mode.startswith('I') or image.mode == 'F':
        # 16-bit grey: Pillow would clip it to 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == 'P':
        image = image.convert('RGBA')
    return image.convert('RGB')


def describe_failure(place: str, error: Exception) -> str:
    """Why the image at that place cannot be read, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f'not a {", ".join(FORMATS[:-1])} or {FORMATS[-1]} file'
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = ' '.join(str(error).split()) or type(error).__name__
    return f'cannot read the image {place}: {reason}'
