import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pad_jax.data import decoding
from pad_jax.data.augment import PART_WORDS, choose_part
from pad_jax.data.decoding import IMAGENET_MEAN, IMAGENET_STD, Middle, decode, find_middle, normalize
from pad_jax.data.ordering import VIEW, draw_bits
from tests.data.photos import claim_size, encode, make_photo

EXACT = Middle(margin=256 / 224, is_reduced=False)
SQUARE = Middle()


def test_golden_numbers():
    images = np.array([0, 100, 255], np.uint8).reshape(1, 1, 1, 3)
    found = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    # (0 − .485) / .229, (100/255 − .456) / .224, (1 − .406) / .225.
    np.testing.assert_allclose(found.ravel(), [-2.117904, -0.285014, 2.64], rtol=1e-5)
    assert found.dtype == np.float32
    # 375 becomes 256 and 500 becomes 341 (341.33): 224 of each, from 16 and from 58 (58.5, to even).
    left, top, right, bottom = find_middle(500, 375, 224, 256 / 224)
    assert (top, bottom) == (16 * 375 / 256, 240 * 375 / 256)
    np.testing.assert_allclose((left, right), (58 * 500 / 341, 282 * 500 / 341), rtol=1e-15)


def weigh(length, resized):
    """float64[resized, length]: a triangle around each new pixel, as wide as the wider of the two kinds of pixels."""
    scale = length / resized
    centers = (np.arange(resized) + 0.5) * scale
    distances = (np.arange(length) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.maximum(1 - abs(distances), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_and_cut(pixels, size, margin):
    """The slow twin of `decode`: the shorter side becomes `margin · size`, the middle is cut out."""
    height, width, _ = pixels.shape
    shorter = round(size * margin)
    down, across = shorter * height // min(height, width), shorter * width // min(height, width)
    rows, columns = weigh(height, down), weigh(width, across)
    resized = np.einsum('yh,xw,hwc->yxc', rows, columns, pixels.astype(np.float64), optimize=True)
    top, left = round((down - size) / 2), round((across - size) / 2)
    return resized[top : top + size, left : left + size]


# Shrunk much, a little, and enlarged; wide, tall, square; a line of pixels; odd differences, which round.
@pytest.mark.parametrize(
    'width, height, size',
    [(160, 120, 32), (97, 131, 56), (60, 60, 56), (20, 30, 56), (300, 2, 16), (1, 50, 8), (45, 31, 7), (9, 5, 1)],
)
@pytest.mark.parametrize('margin', [1, 256 / 224])
def test_evaluation_sees_the_middle_of_the_antialiased_photo(width, height, size, margin):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = decode(encode(Image.fromarray(pixels), 'PNG'), size, Middle(margin))
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    # Both directions are rounded to whole numbers: half of one, and at most half of one more.
    assert abs(found - resize_and_cut(pixels, size, margin)).max() <= 1 + 1e-9


@pytest.mark.parametrize('middle', [SQUARE, EXACT])
def test_an_image_of_the_right_size_stays_as_it_is(middle):
    """Images of CIFAR are never resampled."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = decode(encode(Image.fromarray(pixels), 'PNG'), 32, middle)
    assert (found == pixels).all() == (middle is SQUARE)


def test_a_thread_of_pixels_stays_small():
    assert decode(encode(Image.new('RGB', (1, 50_000)), 'PNG'), 64, SQUARE).shape == (64, 64, 3)


def draw_part(number=0):
    return draw_bits(0, number, VIEW, PART_WORDS)


def test_training_sees_the_part_resized_with_antialiasing():
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    found = decode(encode(Image.fromarray(pixels), 'PNG'), 16, EXACT, draw_part())
    box = choose_part(160, 120, draw_part())
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR, box=box)
    assert abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize('part', [None, draw_part(3)])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(part):
    image = Image.open(io.BytesIO(make_photo(0, (40, 30)))).resize((640, 480), Image.Resampling.BICUBIC)
    small, whole = (decode(encode(image, format), 16, SQUARE, part).astype(int) for format in ('JPEG', 'PNG'))
    assert abs(small - whole).max() < 6


@pytest.mark.parametrize(
    ('size', 'middle', 'part', 'decoded'),
    [
        (12, SQUARE, draw_part(), (48, 48)),
        (13, SQUARE, draw_part(), (96, 96)),
        (24, SQUARE, None, (48, 48)),
        (25, SQUARE, None, (96, 96)),
        (12, EXACT, draw_part(), (48, 48)),
        (12, EXACT, None, (96, 96)),
    ],
)
def test_a_jpeg_is_reduced_if_twice_the_wanted_size_is_left(monkeypatch, size, middle, part, decoded):
    """The part has 50 × 50 of 96 × 96 pixels, the middle all of them; exact middles are never reduced."""
    found, resize = [], decoding.resize
    monkeypatch.setattr(decoding, 'choose_part', lambda width, height, bits: (23, 23, 73, 73))
    monkeypatch.setattr(decoding, 'resize', lambda image, *rest: found.append(image.size) or resize(image, *rest))
    decode(make_photo(0, (96, 96)), size, middle, part)
    assert found == [decoded]


RED, BLUE = (200, 30, 40), (20, 60, 220)


def two_colours(size=(40, 40)):
    """Red on the left, blue on the right."""
    image = Image.new('RGB', size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def both_views(data):
    words = np.zeros(PART_WORDS, np.uint64)
    words[:2] = int(0.999 * 2**64), 2**63
    return decode(data, 16, EXACT), decode(data, 16, EXACT, words)


def turned(orientation):
    notes = Image.Exif()
    notes[ExifTags.Base.Orientation] = orientation
    return notes


# Rec. 601: 0.299 · 200 + 0.587 · 30 + 0.114 · 40 = 82 and 0.299 · 20 + 0.587 · 60 + 0.114 · 220 = 66.
GREYS = (82,) * 3, (66,) * 3


@pytest.mark.parametrize(
    'content, expected',
    [
        (encode(two_colours().convert('CMYK')), (RED, BLUE)),
        (encode(two_colours().convert('L')), GREYS),
        (encode(two_colours().quantize(16), 'PNG'), (RED, BLUE)),
        (encode(two_colours().convert('RGBA'), 'PNG'), (RED, BLUE)),
        *((encode(two_colours(), format), (RED, BLUE)) for format in ('PNG', 'WEBP', 'BMP')),
        (encode(two_colours(), exif=b'Exif\0\0no notes'), (RED, BLUE)),
        (encode(two_colours(), exif=turned(3)), (BLUE, RED)),  # held upside down
    ],
    ids=['cmyk', 'grey', 'palette', 'transparent', 'png', 'webp', 'bmp', 'damaged notes', 'turned'],
)
def test_every_content_becomes_upright_rgb(content, expected):
    for view in both_views(content):
        for side, colour in zip((view[:, :6], view[:, -6:]), expected):
            assert abs(side.astype(int) - colour).max() <= 12


def test_parts_are_chosen_of_the_upright_photo():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 30, 3), np.uint8))
    stored = image.transpose(Image.Transpose.ROTATE_90)  # to be turned by 90° clockwise
    found = decode(encode(stored, 'PNG', exif=turned(6)), 16, EXACT, draw_part())
    np.testing.assert_array_equal(found, decode(encode(image, 'PNG'), 16, EXACT, draw_part()))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    pixels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels), 'PNG'), 8, SQUARE)[..., 0], pixels >> 8)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('sides', [(100_000, 100_000), (12_000, 12_000)])
def test_an_image_that_claims_to_be_huge_is_not_decoded(sides, monkeypatch):
    message = f'{sides[0] * sides[1]:,} pixels, at most 89,478,485 are read. Shrink it'
    with pytest.raises(ValueError, match=message):
        decode(claim_size(*sides), 8, SQUARE)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)  # as another library may set it
    with pytest.raises(ValueError, match=message):
        decode(claim_size(*sides), 8, SQUARE)


def test_a_photo_of_a_thousand_scans_is_not_decoded():
    """Each scan takes 141 bytes of the file, and a sixth of a second at the most pixels that are read."""
    content = encode(Image.effect_noise((100, 100), 50).convert('RGB'), progressive=True)
    last = content.rindex(b'\xff\xda')
    assert decode(content, 8, SQUARE).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r'scans, at most 100 are decoded\. Save it again'):
        decode(content[:-2] + content[last:-2] * 1000 + content[-2:], 8, SQUARE)
    # Bytes behind the image, as phones write a video there, and a note with a preview are not scans of it.
    preview = b'\xff\xe1' + (2002).to_bytes(2) + b'\xff\xda' * 1000
    for whole in (content + b'\xff\xda' * 1000, content[:2] + preview + content[2:]):
        np.testing.assert_array_equal(decode(whole, 8, SQUARE), decode(content, 8, SQUARE))


def make_segment(marker, data):
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2) + data


def make_chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


# Notes that Pillow refuses, or cannot write back, with the place behind which they are put into a file.
NOTES = {
    'jpeg exif': ('JPEG', 2, make_segment(0xE1, b'Exif\0\0no notes')),
    'jpeg exif of four bytes': ('JPEG', 2, make_segment(0xE1, b'Exif\0\0II*\0')),
    'jpeg jfif': ('JPEG', 2, make_segment(0xE0, b'JFIF\0')),
    'jpeg pictures': ('JPEG', 2, make_segment(0xE2, b'MPF\0II*\0\x08\0\0\0' + b'\xff' * 30)),
    'jpeg colours': ('JPEG', 2, make_segment(0xEE, b'Adobe\0')),
    'png exif': ('PNG', 33, make_chunk(b'eXIf', b'no notes')),
    'png profile': ('PNG', 33, make_chunk(b'iCCP', b'abc')),
    'png text': ('PNG', 33, make_chunk(b'zTXt', b'a\0\0' + zlib.compress(b'0' * (3 << 20)))),
    'png size': ('PNG', 33, make_chunk(b'pHYs', b'ab')),
    'png damaged text': ('PNG', 33, make_chunk(b'tEXt', b'words')[:-1] + b'!'),
}


@pytest.mark.parametrize('name', NOTES)
def test_notes_about_a_picture_do_not_decide_whether_it_can_be_read(name):
    format, place, note = NOTES[name]
    content = encode(two_colours(), format)
    found = decode(content[:place] + note + content[place:], 16, SQUARE)
    np.testing.assert_array_equal(found, decode(content, 16, SQUARE))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    content = encode(image, 'PNG', exif=turned(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content, 8, SQUARE), np.asarray(expected))


def test_a_damaged_picture_stays_unreadable():
    content = encode(two_colours(), 'PNG')
    with pytest.raises(OSError):
        decode(content[: len(content) // 2], 16, SQUARE)


# Sides at which an edge that is subtracted and added again as a float passes the side.
@pytest.mark.parametrize('sides', [(1500, 1001), (739, 243), (971, 465), (639, 51)])
def test_every_random_part_lies_inside_its_photo(sides):
    image = Image.new('RGB', sides)
    for number in range(200):
        left, top, right, bottom = choose_part(*sides, draw_part(number))
        for shrunk in (1, 2, 8):
            small = image.resize((-(-sides[0] // shrunk), -(-sides[1] // shrunk)), Image.Resampling.NEAREST)
            across, down = small.width / sides[0], small.height / sides[1]
            box = left * across, top * down, right * across, bottom * down
            assert decoding.resize(small, box, 4).shape == (4, 4, 3)
