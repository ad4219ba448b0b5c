import numpy as np
import pytest
from PIL import Image

from pad_jax.data import augment
from pad_jax.data.augment import FILL, OPERATIONS, Augmentation, crop_and_flip
from pad_jax.data.ordering import AUGMENTATION, DISTORTION, VIEW, draw_bits

HALF = 2**63


def crop_one_by_one(images, bits, padding, flip):
    """The slow twin of crop_and_flip."""
    result = np.zeros_like(images)
    size = 2 * padding + 1
    for image, (top, left, side), out in zip(images, bits.tolist(), result):
        height, width, _ = image.shape
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + top % size - padding, x + left % size - padding
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[y, width - 1 - x if flip and side % 2 else x] = image[from_y, from_x]
    return result


@pytest.mark.parametrize('padding', [0, 1, 3, 5])
@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('shape', [(6, 4, 5, 3), (3, 2, 2, 1)])
def test_crop_and_flip_equals_a_loop(padding, flip, shape):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, shape, np.uint8)
    bits = rng.integers(0, 2**64, (shape[0], 3), np.uint64)
    before = images.copy()
    found = crop_and_flip(images, bits, padding, flip)
    np.testing.assert_array_equal(found, crop_one_by_one(images, bits, padding, flip))
    np.testing.assert_array_equal(images, before)
    assert found.dtype == np.uint8


def bits_of(area, ratio, left=0, top=0):
    """Words whose first draw has that share of the range of areas, and of log-ratios."""
    words = np.zeros(augment.PART_WORDS, np.uint64)
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
    assert augment.choose_part(100, 100, bits_of(area, ratio, left, top)) == expected


def test_a_draw_that_does_not_fit_makes_way_for_the_next():
    bits = bits_of(0.999999, 0.0)  # nearly all of the area, at 3/4: higher than the photo
    bits[2:4] = HALF, HALF
    assert augment.choose_part(100, 100, bits) == (0, 0, 73, 73)


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
    bits = np.full(augment.PART_WORDS, 2**64 - 1, np.uint64)
    assert augment.choose_part(width, height, bits) == expected


def grey(*values):
    return Image.fromarray(np.repeat(np.array([values], np.uint8)[..., None], 3, axis=2))


def apply(name, image, strength):
    return np.asarray(OPERATIONS[name](image, strength)).tolist()


@pytest.mark.parametrize(
    'name, strength, values, expected',
    [
        ('identity', 0.9, (10, 200), (10, 200)),
        ('auto_contrast', 0.0, (50, 100, 150), (0, 127, 255)),
        # 1 + 0.9 · 0.5 = 1.45 times as bright: 145, cut at 255; and 0.55 times.
        ('brightness', 0.5, (100, 200), (145, 255)),
        ('brightness', -0.5, (100, 200), (55, 110)),
        # Away from the mean 150, and towards it: 150 ∓ 50 · 1.45 = 77.5 and 222.5; 150 ∓ 50 · 0.55 = 122.5 and 177.5.
        ('contrast', 0.5, (100, 200), (77, 222)),
        ('contrast', -0.5, (100, 200), (122, 177)),
        # Above 256 · 0.5 = 128 everything is turned: 255 − 200.
        ('solarize', 0.5, (100, 200), (100, 55)),
        ('solarize', -0.5, (100, 200), (100, 55)),
        # 8 − 4 bits stay at the end of the scale: 0x64 -> 0x60, 0xff -> 0xf0.
        ('posterize', 1.0, (0x64, 0xFF), (0x60, 0xF0)),
    ],
)
def test_golden_colours(name, strength, values, expected):
    assert apply(name, grey(*values), strength) == np.asarray(grey(*expected)).tolist()


def test_saturation_moves_colours_from_grey():
    # Grey is 0.299 · 200 + 0.587 · 100 + 0.114 · 100 = 129.9; 130 + 1.9 · 70 = 263 and 130 − 1.9 · 30 = 73.
    assert apply('color', Image.new('RGB', (1, 1), (200, 100, 100)), 1.0) == [[[255, 73, 73]]]
    assert apply('color', Image.new('RGB', (1, 1), (200, 100, 100)), -1.0) == [[[137, 127, 127]]]


def test_shifts_shears_and_rotations_move_by_what_they_say():
    # 150 / 331 of 331 pixels at the end of the scale.
    image = Image.new('RGB', (331, 2), (255, 0, 0))
    shifted = np.array(apply('translate_x', image, 1.0))
    assert (shifted[0, :180] == (255, 0, 0)).all() and (shifted[0, 182:] == FILL).all()
    back = np.array(apply('translate_x', image, -1.0))
    assert (back[0, :149] == FILL).all() and (back[0, 151:] == (255, 0, 0)).all()
    upwards = np.array(apply('translate_y', image.transpose(Image.Transpose.ROTATE_90), 1.0))
    assert (upwards[:180, 0] == (255, 0, 0)).all() and (upwards[182:, 0] == FILL).all()
    column = Image.new('RGB', (101, 101))
    column.paste((255, 255, 255), (50, 0, 51, 101))
    # 0.3 of the row: the white column of row 100 comes from 0.3 · 100 = 30 pixels further right.
    sheared = np.array(apply('shear_x', column, 1.0))
    assert sheared[100, :, 0].argmax() == 20 and sheared[0, :, 0].argmax() == 50
    flat = column.transpose(Image.Transpose.ROTATE_90)
    assert np.array(apply('shear_y', flat, 1.0))[:, 100, 0].argmax() == 20
    # By 30° about the middle: 40 rows above it the column lies 40 · tan 30° = 23.1 pixels to the left.
    turned = np.array(apply('rotate', column, 1.0))
    assert abs(int(turned[10, :, 1].argmax()) - (50 - 23)) <= 1


def test_there_are_fourteen_and_no_magnitude_changes_little():
    assert len(OPERATIONS) == 14
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    for name in OPERATIONS.keys() - {'auto_contrast', 'equalize'}:
        np.testing.assert_array_equal(apply(name, image, 0.0), np.asarray(image))


def test_jitter_multiplies_by_factors_in_a_drawn_order():
    jitter = Augmentation(color_jitter=0.5)
    pixels = np.full((1, 1, 3), 100, np.uint8)
    # Order 0: brightness, contrast, saturation. Three quarters of [0.5, 1.5] is 1.25; a grey pixel has no contrast.
    words = np.array([0, 3 * 2**62, 0, 0], np.uint64)
    assert jitter.distort(pixels, words).tolist() == [[[125, 125, 125]]]
    # Factors 1.5 of brightness and 0.5 of contrast. Brightness first: 150 and 255 (300, cut), then half as far from
    # their mean 203. Contrast first (order 2): 125 and 175 around 150, then 187 and 255 (262, cut).
    pair, most, least = np.array(grey(100, 200)), 2**64 - 1, 0
    found = jitter.distort(pair, np.array([0, most, least, 2**63], np.uint64))
    assert found[0, :, 0].tolist() == [176, 229]
    found = jitter.distort(pair, np.array([2, least, most, 2**63], np.uint64))
    assert found[0, :, 0].tolist() == [187, 255]


def test_randaugment_applies_the_drawn_operations_in_turn():
    pixels = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    names = list(OPERATIONS)
    distortion = Augmentation(randaugment_layers=2, randaugment_magnitude=4)
    for first in range(14):
        for sign in (0, 1):
            words = np.array([first + 14 * 5, sign, 5, 1 - sign], np.uint64)
            image = OPERATIONS[names[first]](Image.fromarray(pixels), 0.4 if sign else -0.4)
            expected = OPERATIONS[names[5]](image, -0.4 if sign else 0.4)
            np.testing.assert_array_equal(distortion.distort(pixels, words), np.asarray(expected))


def test_words_are_drawn_for_the_global_batch():
    augmentation = Augmentation('resized_crop', 0, True, color_jitter=0.4, randaugment_layers=1)
    words = augmentation.draw(5, 2, 4)
    for found, use, count in zip(words, (AUGMENTATION, VIEW, DISTORTION), (3, augment.PART_WORDS, 6), strict=True):
        np.testing.assert_array_equal(found, draw_bits(5, 2, use, 4 * count).reshape(4, count))
    for found, whole in zip(augmentation.draw(5, 2, 4, slice(1, 3)), words, strict=True):
        np.testing.assert_array_equal(found, whole[1:3])
    assert Augmentation().draw(5, 2, 4).part.shape == (4, 0)


def test_images_are_moved_then_distorted():
    augmentation = Augmentation('crop', 1, True, color_jitter=0.4, randaugment_layers=1)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    words = augmentation.draw(0, 2, 4)
    moved = crop_and_flip(images, words.move, 1, flip=True)
    expected = np.stack([augmentation.distort(*pair) for pair in zip(moved, words.distortion)])
    np.testing.assert_array_equal(augmentation.apply(images, words), expected)
    assert (expected != moved).any()
