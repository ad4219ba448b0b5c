import numpy as np
import pytest
from PIL import Image

from pad_jax.data.distortions import FILL, OPERATIONS, Distortion, make_distortion


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


def test_shifts_are_shares_of_the_sides_and_filled_with_the_mean():
    # 150 / 331 of 331 pixels at the end of the scale.
    image = Image.new('RGB', (331, 2), (255, 0, 0))
    shifted = np.array(apply('translate_x', image, 1.0))
    assert (shifted[0, :180] == (255, 0, 0)).all() and (shifted[0, 182:] == FILL).all()
    back = np.array(apply('translate_x', image, -1.0))
    assert (back[0, :149] == FILL).all() and (back[0, 151:] == (255, 0, 0)).all()
    upwards = np.array(apply('translate_y', image.transpose(Image.Transpose.ROTATE_90), 1.0))
    assert (upwards[:180, 0] == (255, 0, 0)).all() and (upwards[182:, 0] == FILL).all()


def test_shear_and_rotation_move_by_what_they_say():
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
    jitter = Distortion(color_jitter=0.5, randaugment_layers=0, randaugment_magnitude=0)
    pixels = np.full((1, 1, 3), 100, np.uint8)
    # Order 0: brightness, contrast, saturation. Three quarters of [0.5, 1.5] is 1.25; a grey pixel has no contrast.
    words = np.array([0, 3 * 2**62, 0, 0], np.uint64)
    assert jitter.apply(pixels, words).tolist() == [[[125, 125, 125]]]
    # Factors 1.5 of brightness and 0.5 of contrast. Brightness first: 150 and 255 (300, cut), then half as far from
    # their mean 203. Contrast first (order 2): 125 and 175 around 150, then 187 and 255 (262, cut).
    pair, most, least = np.array(grey(100, 200)), 2**64 - 1, 0
    found = jitter.apply(pair, np.array([0, most, least, 2**63], np.uint64))
    assert found[0, :, 0].tolist() == [176, 229]
    found = jitter.apply(pair, np.array([2, least, most, 2**63], np.uint64))
    assert found[0, :, 0].tolist() == [187, 255]


def test_randaugment_applies_the_drawn_operations_in_turn():
    pixels = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    names = list(OPERATIONS)
    distortion = Distortion(color_jitter=0.0, randaugment_layers=2, randaugment_magnitude=4)
    for first in range(14):
        for sign in (0, 1):
            words = np.array([first + 14 * 5, sign, 5, 1 - sign], np.uint64)
            image = OPERATIONS[names[first]](Image.fromarray(pixels), 0.4 if sign else -0.4)
            expected = OPERATIONS[names[5]](image, -0.4 if sign else 0.4)
            np.testing.assert_array_equal(distortion.apply(pixels, words), np.asarray(expected))


def test_nothing_to_distort_is_nothing():
    assert make_distortion(0.0, 0, 9) is None
    assert make_distortion(0.0, 1, 9).num_words == 2
    assert make_distortion(0.1, 0, 9).num_words == 4
