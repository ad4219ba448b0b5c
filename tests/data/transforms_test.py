import numpy as np
import pytest
from PIL import Image

from pad_jax.data import transforms


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
    found = transforms.crop_and_flip(images, bits, padding, flip)
    np.testing.assert_array_equal(found, crop_one_by_one(images, bits, padding, flip))
    np.testing.assert_array_equal(images, before)
    assert found.dtype == np.uint8


def test_every_crop_and_both_sides_are_as_likely():
    # 9,000 draws over 3 × 3 places and 2 sides: 500 each, deviation 21.7; 6 σ.
    images = np.broadcast_to(np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1), (9000, 3, 3, 1))
    bits = np.random.Philox(0).random_raw((9000, 3))
    found = transforms.crop_and_flip(images, bits, 1, flip=True).reshape(9000, 9)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 18
    assert abs(counts - 500).max() < 6 * 21.7


def test_normalize_by_channel():
    images = np.array([0, 100, 255], np.uint8).reshape(1, 1, 1, 3)
    found = transforms.normalize(images, transforms.IMAGENET_MEAN, transforms.IMAGENET_STD)
    # (0 − .485) / .229, (100/255 − .456) / .224, (1 − .406) / .225.
    np.testing.assert_allclose(found.ravel(), [-2.117904, -0.285014, 2.64], rtol=1e-5)
    assert found.dtype == np.float32


def test_crop_keeps_the_middle_and_leaves_the_right_size_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    found = transforms.center_crop_and_resize(Image.fromarray(pixels), 8)
    np.testing.assert_array_equal(found, pixels[:, 2:10])
    np.testing.assert_array_equal(
        transforms.center_crop_and_resize(Image.fromarray(pixels.transpose(1, 0, 2)), 8),
        found.transpose(1, 0, 2),
    )


def test_shrinking_antialiases():
    # A checkerboard of single pixels is grey when every pixel counts, black or white when one is picked.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = transforms.center_crop_and_resize(Image.fromarray(board).convert('RGB'), 8)
    assert abs(found.astype(int) - 127.5).max() < 2


def test_a_thread_of_pixels_stays_small():
    assert transforms.center_crop_and_resize(Image.new('RGB', (1, 50_000)), 64).shape == (64, 64, 3)
