import numpy as np
import pytest

from pad_jax.data import make_source
from pad_jax.errors import BadInput


def open_digits(batch_size, **changes):
    return make_source('digits', **({'batch_size': batch_size, 'image_size': 8} | changes))


def test_the_split_is_stratified_and_the_same_for_every_seed_and_loses_no_scan():
    one, other = open_digits(4, seed=0), open_digits(4, seed=1)
    assert one.spec == other.spec
    assert (one.spec.num_train, one.spec.num_eval, one.image_shape) == (1442, 355, (8, 8, 1))
    assert one.spec.class_names == tuple('0123456789')
    assert (one.augmentation.crop_padding, one.augmentation.flip) == (1, False)
    for split in ('train', 'eval'):
        np.testing.assert_array_equal(getattr(one, split).labels, getattr(other, split).labels)
    share = np.bincount(one.eval.labels) / (np.bincount(one.train.labels) + np.bincount(one.eval.labels))
    assert share.min() > 0.19 and share.max() <= 0.2
    source = open_digits(4)
    scans = np.concatenate([source.train.pixels, source.eval.pixels])
    assert scans.shape == (1797, 8, 8, 1)
    assert scans.max() == 16 and scans.min() == 0
    # The scans are all different, so a scan in both splits would show as a repetition.
    assert len(np.unique(scans.reshape(1797, -1), axis=0)) == 1797


def test_training_pixels_have_mean_zero_and_deviation_one():
    source = open_digits(1442)
    images = source.scoring_batch(0, 1442)['image']
    assert images.shape == (1442, 8, 8, 1)
    assert abs(images.mean(dtype=np.float64)) < 1e-5
    assert abs(images.std(dtype=np.float64) - 1) < 1e-5


@pytest.mark.parametrize(
    'wrong, message',
    [
        ({'image_size': 32}, 'image_size must be 8 for the digits, got 32'),
        ({'path': '/data'}, "the digits are embedded and read no path, got '/data'"),
    ],
)
def test_refuses(wrong, message):
    with pytest.raises(BadInput, match=message):
        open_digits(4, **wrong)
