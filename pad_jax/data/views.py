"""What a network sees of a photo of any size: a random part in training, the middle in evaluation.

Both resize by antialiased bilinear interpolation: a triangle as wide as the pixels of the result, at least as those of
the photo (Pillow's `BILINEAR`, computed by SIMD instructions). The filter reaches beyond the edges of a part as far as
there is photo, so that the middle is the same as if the whole photo had been resized and then cut.

Legend: S side of the square that the network sees.
"""

import dataclasses
import io
import math

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image, ImageOps

from pad_jax.data import transforms
from pad_jax.data.decoding import open_image, to_rgb, turn_upright
from pad_jax.data.distortions import Distortion, as_fraction

# Szegedy et al. 2015, "Going deeper with convolutions": share of the area, and width / height.
LEAST_AREA = 0.08
LEAST_RATIO, MOST_RATIO = 3 / 4, 4 / 3
TRIES = 10
CROP_WORDS = 2 * TRIES + 2
# Evaluation sees the middle 224 of 256 pixels, whatever the size.
MARGIN = 256 / 224
BILINEAR = ResizeAlg.convolution(FilterType.bilinear)

AUGMENTS = ('crop', 'resized_crop')

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the photo."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What training does to photos.

    Attributes:
      augment: one of `AUGMENTS`: the middle, moved by up to `crop_padding` pixels; or a random part.
      crop_padding: pixels in [0, S].
      flip: whether they are mirrored with probability 1/2.
      distortion: of what is left; None for none.
    """

    augment: str
    crop_padding: int
    flip: bool
    distortion: Distortion | None

    @property
    def num_words(self) -> int:
        """Random words that an image takes."""
        return CROP_WORDS + 1 + (self.distortion.num_words if self.distortion else 0)

    def view(self, data: bytes, size: int, bits: np.ndarray) -> np.ndarray:
        """A file and random uint64[num_words] -> uint8[S, S, 3].

        Raises:
            Exception: as `open_image` does.
        """
        crop, (mirror, *distorted) = bits[:CROP_WORDS], bits[CROP_WORDS:]
        if self.augment == 'crop':
            crop_bits = np.array([[*crop[-2:], mirror]], np.uint64)
            (pixels,) = transforms.crop_and_flip(view_middle(data, size)[None], crop_bits, self.crop_padding, self.flip)
        else:
            pixels = view_part(data, size, crop, mirrored=self.flip and int(mirror) % 2 == 1)
        return self.distortion.apply(pixels, np.array(distorted)) if self.distortion else pixels


def view_middle(data: bytes, size: int) -> np.ndarray:
    """The middle of a photo, as evaluation sees it: uint8[S, S, 3].

    Raises:
        Exception: as `open_image` does.
    """
    with open_image(io.BytesIO(data)) as image:
        image = to_rgb(turn_upright(image))
        return resize(image, find_middle(*image.size, size), size)


def view_part(data: bytes, size: int, bits: np.ndarray, mirrored: bool = False) -> np.ndarray:
    """The part of a photo that uint64[CROP_WORDS] choose, left and right exchanged or not: uint8[S, S, 3].

    Raises:
        Exception: as `open_image` does.
    """
    with open_image(io.BytesIO(data)) as image:
        image = turn_upright(image)
        width, height = image.size
        left, top, right, bottom = choose_part(width, height, bits)
        # JPEG decodes at an eighth, a quarter or half of its size for less work. Twice the size that is wanted leaves
        # something to antialias.
        image.draft(None, (math.ceil(2 * size * width / (right - left)), math.ceil(2 * size * height / (bottom - top))))
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, right * across, bottom * down)
        return resize(to_rgb(image), box, size, mirrored)


def resize(image: Image.Image, box: Box, size: int, mirrored: bool = False) -> np.ndarray:
    """The box of an RGB image as uint8[S, S, 3].

    >>> resize(Image.new('RGB', (40, 20), (255, 0, 0)), (10, 0, 30, 20), 8)[0, 0].tolist()
    [255, 0, 0]
    """
    left, top, right, bottom = box
    resized = Image.new('RGB', (size, size))
    options = ResizeOptions(BILINEAR, crop_box=CropBox(left, top, right - left, bottom - top))
    Resizer().resize_pil(image, resized, options)
    return np.asarray(ImageOps.mirror(resized) if mirrored else resized)


def find_middle(width: int, height: int, size: int) -> Box:
    """Where the middle `size` pixels lie once the shorter side is resized to 256 / 224 of that.

    >>> find_middle(1024, 512, 224)  # resized to 512 × 256, of which 144 pixels go on the left and 16 at the top
    (288.0, 32.0, 736.0, 480.0)
    """
    shorter = round(MARGIN * size)
    spans = []
    for side in (width, height):
        resized = shorter * side // min(width, height)
        start = round((resized - size) / 2)
        spans.append((start * side / resized, min((start + size) * side / resized, side)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def choose_part(width: int, height: int, bits: np.ndarray) -> tuple[int, int, int, int]:
    """A random part of a photo: area uniform in [0.08, 1] of it, log(width / height) uniform in ± log(4/3).

    The first of ten draws that fits; if none does, the largest middle part of the nearest ratio.

    Args:
        bits: uint64[CROP_WORDS], random: two words for each draw, and the place.

    Returns:
        Left, top, right, bottom.
    """
    for area_bits, ratio_bits in bits[:-2].reshape(TRIES, 2):
        area = width * height * (LEAST_AREA + (1 - LEAST_AREA) * as_fraction(area_bits))
        ratio = LEAST_RATIO * (MOST_RATIO / LEAST_RATIO) ** as_fraction(ratio_bits)
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(bits[-2]) % (width - across + 1)
            top = int(bits[-1]) % (height - down + 1)
            return left, top, left + across, top + down
    across = min(width, max(round(height * MOST_RATIO), 1))
    down = min(height, max(round(width / LEAST_RATIO), 1))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
