"""Decoding of image files to normalised squares.

Resizing is bilinear with antialiasing: a triangle as wide as the pixels of the result, at least as those of the photo.
The filter reaches beyond a part as far as the photo does. So the middle equals that of a resized photo.
"""

import io
import math
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pad_jax.data.augment import choose_part

IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_STD = (255 * 0.229, 255 * 0.224, 255 * 0.225)

# Contents that are read, independent of the suffix: folders from the web contain WebP and GIF files named .jpg.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP')
MOST_PIXELS = Image.MAX_IMAGE_PIXELS
# A usual progressive JPEG has about ten scans. Each costs time for all pixels, but only a few bytes in the file.
MOST_SCANS = 100

# open_image compares the size itself; Pillow would print a warning too.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
# Some of ImageNet's photos contain damaged metadata beside an intact picture.
warnings.filterwarnings('ignore', module='PIL.TiffImagePlugin')


class Middle(NamedTuple):
    """The part of a photo that evaluation sees."""

    margin: float = 1.0  # shorter side of the resized photo / side of the middle square, at least 1
    is_reduced: bool = True  # decode a large JPEG at a fraction of its size, which is faster and nearly the same


def normalize(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], out: np.ndarray | None = None
) -> np.ndarray:
    """Compute (images − mean) / std channel by channel: uint8[..., H, W, C] to float32[..., H, W, C], or into `out`.

    >>> normalize(np.array([[[[0], [4]]]], np.uint8), (2.0,), (2.0,)).ravel().tolist()
    [-1.0, 1.0]
    """
    scale = 1 / np.asarray(std, np.float32)
    shift = np.asarray(mean, np.float32) * scale
    out = np.empty(images.shape, np.float32) if out is None else out
    width = images.shape[-2]
    # Whole rows at once: an inner loop over three channels takes seven times as long. In place: at 224² a batch of
    # 256 is 154 MB, and each temporary array would be another.
    rows = out.reshape(*images.shape[:-2], -1)
    rows[...] = images.reshape(rows.shape)
    rows *= np.tile(scale, width)
    rows -= np.tile(shift, width)
    return out


def decode(data: bytes, size: int, middle: Middle, part: np.ndarray | None = None) -> np.ndarray:
    """Decode an image file to uint8[size, size, 3]: its middle, or the random part that uint64[PART_WORDS] choose.

    A damaged file raises almost any exception.
    """
    with open_image(data) as image:
        image = turn_upright(image)
        width, height = image.size
        box = find_middle(width, height, size, middle.margin) if part is None else choose_part(width, height, part)
        if middle.is_reduced or part is not None:
            # JPEG decodes at an eighth, a quarter or half of its size for less work. Twice the wanted size leaves
            # enough to antialias.
            across, down = 2 * size / (box[2] - box[0]), 2 * size / (box[3] - box[1])
            image.draft(None, (math.ceil(width * across), math.ceil(height * down)))
        across, down = image.width / width, image.height / height
        return resize(to_rgb(image), (box[0] * across, box[1] * down, box[2] * across, box[3] * down), size)


def resize(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Resize the box (left, top, right, bottom) of an RGB image to uint8[size, size, 3].

    >>> resize(Image.new('RGB', (40, 20), (255, 0, 0)), (10, 0, 30, 20), 8)[0, 0].tolist()
    [255, 0, 0]
    """
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer

    left, top, right, bottom = box
    resized = Image.new('RGB', (size, size))
    crop = CropBox(left, top, right - left, bottom - top)
    Resizer().resize_pil(image, resized, ResizeOptions(ResizeAlg.convolution(FilterType.bilinear), crop_box=crop))
    return np.asarray(resized)


def find_middle(width: int, height: int, size: int, margin: float) -> tuple[float, float, float, float]:
    """Return the box of the middle `size` pixels of a photo whose shorter side is resized to `margin · size`.

    >>> find_middle(1024, 512, 224, 256 / 224)  # resized to 512 × 256; minus 144 pixels on the left, 16 at the top
    (288.0, 32.0, 736.0, 480.0)
    """
    shorter = round(margin * size)
    spans = []
    for side in (width, height):
        resized = shorter * side // min(width, height)
        start = round((resized - size) / 2)
        spans.append((start * side / resized, min((start + size) * side / resized, side)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def open_image(data: bytes) -> Image.Image:
    """Open an image and read its header; pixels are decoded later."""
    limit = Image.MAX_IMAGE_PIXELS or MOST_PIXELS  # another library may have lifted Pillow's limit
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError as error:
        # Pillow itself refuses at twice its limit: "Image size (N pixels) exceeds limit ..."
        pixels = int(re.search(r'\d+', str(error))[0])
    if pixels > limit:
        raise ValueError(f'{pixels:,} pixels, at most {limit:,} are read. Shrink it')
    # Within a scan 0xff is followed by a zero or a marker.
    num_scans = data.count(b'\xff\xda') if image.info.get('progressive') else 1
    if num_scans > MOST_SCANS:
        raise ValueError(f'{num_scans} scans, at most {MOST_SCANS} are decoded. Save it again')
    return image


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image as its camera was held; an image without that information stays undecoded."""
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert grey, palette and CMYK images to RGB; transparency is dropped."""
    if image.mode == 'RGB':
        return image
    if image.mode.startswith('I') or image.mode == 'F':
        # 16-bit grey: Pillow would clip it to 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == 'P':
        image = image.convert('RGBA')
    return image.convert('RGB')
