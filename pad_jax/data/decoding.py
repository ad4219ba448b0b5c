"""Decoding of image files to normalised squares.

Resizing is bilinear with antialiasing: a triangle as wide as the pixels of the result, at least as those of the photo.
The filter reaches beyond a part as far as the photo does. So the middle equals that of a resized photo.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from pad_jax.data.augment import choose_part

IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_STD = (255 * 0.229, 255 * 0.224, 255 * 0.225)

# Contents that are read, independent of the suffix: folders from the web contain WebP and GIF files named .jpg.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP')
MOST_PIXELS = Image.MAX_IMAGE_PIXELS
# A usual progressive JPEG has about ten scans. Each costs time for all pixels, but only a few bytes in the file.
MOST_SCANS = 100
# Turns and mirrorings that undo the orientation of EXIF.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bytes of a JPEG marker. Within a scan 0xff is followed by a zero or a restart (0xd0 to 0xd7).
_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
# Segments that only describe a picture. Adobe's tells how its colours are stored, unless it is cut.
_ADOBE, _ADOBE_BYTES = 0xEE, 16
_NOTES = {*range(0xE0, 0xF0), 0xFE} - {_ADOBE}

# open_image compares the size itself; Pillow would print a warning too.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
# Some of ImageNet's photos contain damaged metadata beside an intact picture.
warnings.filterwarnings('ignore', module='PIL.TiffImagePlugin')
warnings.filterwarnings('ignore', message='Image appears to be a malformed MPO|Invalid APNG')


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

    A damaged picture raises almost any exception. Damaged notes about a picture, such as EXIF, are ignored.
    """
    try:
        return _decode(data, size, middle, part)
    except Exception:
        bare = remove_notes(data)
        if bare == data:
            raise
    return _decode(bare, size, middle, part)


def _decode(data: bytes, size: int, middle: Middle, part: np.ndarray | None) -> np.ndarray:
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

    # In steps of a 1024th of a pixel, differences and sums of edges are exact: a part at the right edge stays inside.
    left, top, right, bottom = (round(1024 * edge) / 1024 for edge in box)
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
    if image.info.get('progressive'):
        num_scans = sum(marker == _SCAN for marker, _, _ in find_segments(data))
        if num_scans > MOST_SCANS:
            raise ValueError(f'{num_scans} scans, at most {MOST_SCANS} are decoded. Save it again')
    return image


def find_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of the segments of a JPEG, up to the end of the image.

    A preview in a note or a video behind the image has markers too, which do not count. The data of a scan lies
    between its segment and the next one.
    """
    position = 0
    while found := _MARKER.search(data, position):
        marker, start, position = found[0][1], found.start(), found.end()
        if marker == _END:
            return
        if marker != _START:
            position += int.from_bytes(data[position : position + 2])
        yield marker, start, position


def remove_notes(data: bytes) -> bytes:
    """Return a JPEG or PNG without what only describes its picture; other data is returned as it is."""
    kept, end = [], 0
    if data.startswith(b'\xff\xd8'):
        for marker, start, after in find_segments(data):
            if marker in _NOTES or (marker == _ADOBE and after - start < _ADOBE_BYTES):
                kept.append(data[end:start])
                end = after
    elif data.startswith(b'\x89PNG\r\n\x1a\n'):
        position = 8
        while position < len(data):
            after = position + 12 + int.from_bytes(data[position : position + 4])
            kind = data[position + 4 : position + 8]
            if kind[:1].islower() and kind != b'tRNS':  # the first letter of a needed chunk is a capital
                kept.append(data[end:position])
                end = after
            position = after
    return b''.join([*kept, data[end:]])


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image as its camera was held; an image without that information stays undecoded."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF raises almost anything, and leaves the picture as it is
        turn = None
    return image if turn is None else image.transpose(turn)


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
