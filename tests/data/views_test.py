import io
import math

import numpy as np
import pytest
from PIL import ExifTags, Image

from pad_jax.data import transforms, views
from pad_jax.data.distortions import Distortion
from pad_jax.data.ordering import VIEW, draw_bits
from tests.data.photos import encode, make_photo

HALF = 2**63


def weigh(length, resized):
    """float64[resized, length]: a triangle around each new pixel, as wide as the wider of the two kinds of pixels."""
    scale = length / resized
    centers = (np.arange(resized) + 0.5) * scale
    distances = (np.arange(length) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.maximum(1 - abs(distances), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_and_cut(pixels, size):
    """The slow twin of what evaluation sees: the shorter side becomes 256 / 224 of `size`, the middle is cut out."""
    height, width, _ = pixels.shape
    shorter = round(size * 256 / 224)
    down, across = shorter * height // min(height, width), shorter * width // min(height, width)
    resized = np.einsum('yh,xw,hwc->yxc', weigh(height, down), weigh(width, across), pixels.astype(np.float64))
    top, left = round((down - size) / 2), round((across - size) / 2)
    return resized[top : top + size, left : left + size]


# Shrunk much, a little, and enlarged; wide, tall, square; a line of pixels; odd differences, which round.
@pytest.mark.parametrize(
    'width, height, size',
    [(160, 120, 32), (97, 131, 56), (60, 60, 56), (20, 30, 56), (300, 2, 16), (1, 50, 8), (45, 31, 7), (9, 5, 1)],
)
def test_evaluation_sees_the_middle_of_the_antialiased_photo(width, height, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = views.view_middle(encode(Image.fromarray(pixels), 'PNG'), size)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    # Both directions are rounded to whole numbers: half of one, and at most half of one more.
    assert abs(found - resize_and_cut(pixels, size)).max() <= 1


def test_imagenet_in_numbers():
    # 375 becomes 256 and 500 becomes 341 (341.33): 224 of each, from 16 and from 58 (58.5, to even).
    left, top, right, bottom = views.find_middle(500, 375, 224)
    assert (top, bottom) == (16 * 375 / 256, 240 * 375 / 256)
    np.testing.assert_allclose((left, right), (58 * 500 / 341, 282 * 500 / 341), rtol=1e-15)


def bits_of(area, ratio, left=0, top=0):
    """Words whose first draw has that share of the range of areas, and of log-ratios."""
    words = np.zeros(views.CROP_WORDS, np.uint64)
    words[:2] = int(area * 2**64), int(ratio * 2**64)
    words[-2:] = left, top
    return words


@pytest.mark.parametrize(
    'area, ratio, left, top, expected',
    [
        # Half of [0.08, 1] is 0.54 of 100 × 100 = 5,400; half of ± log(4/3) is a square of √5,400 = 73.48.
        (0.5, 0.5, 0, 0, (0, 0, 73, 73)),
        # 100 − 73 + 1 = 28 places: 30 mod 28 = 2 and 27.
        (0.5, 0.5, 30, 27, (2, 27, 75, 100)),
        # The least: 800 at 3/4: √600 = 24.49 by √1066.7 = 32.66.
        (0.0, 0.0, 0, 0, (0, 0, 24, 33)),
        # A quarter of the range of areas is 0.31 of it, of the ratios (4/3)^(-1/2): √2684.7 = 51.81, √3579.6 = 59.83.
        (0.25, 0.25, 0, 0, (0, 0, 52, 60)),
    ],
)
def test_golden_parts(area, ratio, left, top, expected):
    assert views.choose_part(100, 100, bits_of(area, ratio, left, top)) == expected


def test_a_draw_that_does_not_fit_makes_way_for_the_next():
    bits = bits_of(0.999999, 0.0)  # nearly all of the area, at 3/4: higher than the photo
    bits[2:4] = HALF, HALF
    assert views.choose_part(100, 100, bits) == (0, 0, 73, 73)


@pytest.mark.parametrize(
    'width, height, expected',
    [
        # Nothing of a ratio in [3/4, 4/3] fits a draw: the middle of the nearest ratio.
        (1000, 30, (480, 0, 520, 30)),
        (30, 1000, (0, 480, 30, 520)),
        (1, 1, (0, 0, 1, 1)),
        (50_000, 1, (24_999, 0, 25_000, 1)),
    ],
)
def test_the_middle_where_no_draw_fits(width, height, expected):
    bits = np.full(views.CROP_WORDS, 2**64 - 1, np.uint64)
    assert views.choose_part(width, height, bits) == expected


def test_the_law_of_parts():
    draws = [views.choose_part(4000, 3000, draw_bits(0, number, VIEW, views.CROP_WORDS)) for number in range(4000)]
    left, top, right, bottom = np.array(draws).T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 4000).all() and (bottom <= 3000).all()
    areas, ratios = (right - left) * (bottom - top) / 12e6, (right - left) / (bottom - top)
    # Sides are rounded to whole pixels.
    assert 0.0795 < areas.min() < 0.085 and 0.95 < areas.max() <= 1
    assert 0.749 < ratios.min() < 0.755 and 1.325 < ratios.max() < 1.335
    # Small parts always fit, so they are uniform: 4,000 · 0.2 / 0.92 = 870 and more in each.
    # Two equal counts of about 1,200 differ by √2,400.
    first, second = np.histogram(areas, [0.08, 0.28, 0.48])[0]
    assert abs(first - second) < 6 * math.sqrt(2400) and first > 870
    # log(ratio) is symmetric among the small: mean 0, deviation 0.166 / √870.
    assert abs(np.log(ratios[areas < 0.28]).mean()) < 6 * 0.166 / math.sqrt(870)
    # Places, too: the middle of a small part lies on either side as often.
    assert abs(np.mean((left + right)[areas < 0.28] > 4000) - 0.5) < 6 * 0.5 / math.sqrt(870)


def plain(**changes):
    return views.Augmentation(
        **({'augment': 'resized_crop', 'crop_padding': 0, 'flip': False, 'distortion': None} | changes)
    )


def draw(augmentation, number=0):
    return draw_bits(0, number, VIEW, augmentation.num_words)


def test_training_sees_the_part_resized_with_antialiasing():
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    data = encode(Image.fromarray(pixels), 'PNG')
    bits = draw(plain())
    left, top, right, bottom = views.choose_part(160, 120, bits[: views.CROP_WORDS])
    found = plain().view(data, 16, bits)
    box = (left, top, right, bottom)
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR, box=box)
    assert abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_every_other_one_is_mirrored():
    data, sides = make_photo(0), []
    for number in range(64):
        bits = draw(plain(), number)
        straight, found = plain().view(data, 16, bits), plain(flip=True).view(data, 16, bits)
        sides.append((found == straight[:, ::-1]).all() and not (found == straight).all())
        assert sides[-1] or (found == straight).all()
    assert 16 < sum(sides) < 48


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same():
    image = Image.open(io.BytesIO(make_photo(0, (40, 30)))).resize((640, 480), Image.Resampling.BICUBIC)
    bits = bits_of(0.9, 0.6)
    small, whole = (views.view_part(encode(image, format), 16, bits).astype(int) for format in ('JPEG', 'PNG'))
    assert abs(small - whole).max() < 6


def test_the_padded_crop_moves_what_evaluation_sees():
    data, augmentation = make_photo(0), plain(augment='crop', crop_padding=3, flip=True)
    for number in range(8):
        bits = draw(augmentation, number)
        words = bits[[views.CROP_WORDS - 2, views.CROP_WORDS - 1, views.CROP_WORDS]]
        expected = transforms.crop_and_flip(views.view_middle(data, 16)[None], words[None], 3, flip=True)
        np.testing.assert_array_equal(augmentation.view(data, 16, bits), expected[0])


def test_what_is_left_is_distorted_under_words_of_its_own():
    distortion, data = Distortion(0.4, 2, 9), make_photo(0)
    augmentation = plain(flip=True, distortion=distortion)
    bits = draw(augmentation)
    assert len(bits) == views.CROP_WORDS + 1 + distortion.num_words
    undistorted = plain(flip=True).view(data, 16, bits[: views.CROP_WORDS + 1])
    expected = distortion.apply(undistorted, bits[views.CROP_WORDS + 1 :])
    np.testing.assert_array_equal(augmentation.view(data, 16, bits), expected)
    assert (expected != undistorted).any()


RED, BLUE = (200, 30, 40), (20, 60, 220)


def two_colours(size=(40, 40)):
    """Red on the left, blue on the right."""
    image = Image.new('RGB', size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def both_views(data):
    return views.view_middle(data, 16), views.view_part(data, 16, bits_of(0.999, 0.5))


def assert_two_colours(view, left=RED, right=BLUE, tolerance=12):
    assert abs(view[:, :6].astype(int) - left).max() <= tolerance
    assert abs(view[:, -6:].astype(int) - right).max() <= tolerance


def in_cmyk(image):
    return image.convert('CMYK')


def in_palette(image):
    return image.quantize(16)


def transparent(image):
    return image.convert('RGBA')


def as_it_is(image):
    return image


@pytest.mark.parametrize(
    'mode, format',
    [
        (in_cmyk, 'JPEG'),
        (in_palette, 'PNG'),
        (lambda image: image.convert('RGBA'), 'PNG'),
        (lambda image: image, 'PNG'),
    ],
    ids=['cmyk', 'palette', 'transparent', 'png under the name of a jpeg'],
)
def test_whatever_the_content_it_becomes_rgb(mode, format):
    for view in both_views(encode(mode(two_colours()), format)):
        assert_two_colours(view)


def test_grey_becomes_rgb():
    # Rec. 601: 0.299 · 200 + 0.587 · 30 + 0.114 · 40 = 82 and 0.299 · 20 + 0.587 · 60 + 0.114 · 220 = 66.
    for view in both_views(encode(two_colours().convert('L'))):
        assert_two_colours(view, (82,) * 3, (66,) * 3)


def test_it_lies_the_way_its_camera_says():
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 3  # held upside down
    for view in both_views(encode(two_colours(), exif=turned)):
        assert_two_colours(view, BLUE, RED)


def test_damaged_notes_of_a_camera_leave_the_picture():
    for view in both_views(encode(two_colours(), exif=b'Exif\0\0no notes')):
        assert_two_colours(view)


def test_parts_are_chosen_of_the_upright_photo():
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # to be turned by 90° clockwise
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 30, 3), np.uint8))
    stored = image.transpose(Image.Transpose.ROTATE_90)
    bits = draw(plain())
    found = plain().view(encode(stored, 'PNG', exif=turned), 16, bits)
    np.testing.assert_array_equal(found, plain().view(encode(image, 'PNG'), 16, bits))
