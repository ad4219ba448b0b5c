import re

import pytest

from pad_jax import data
from pad_jax.errors import BadInput


@pytest.mark.parametrize('name', data.SOURCES)
@pytest.mark.parametrize(
    'wrong, message',
    [
        ({'batch_size': 0}, 'batch_size must be at least 1, got 0'),
        ({'image_size': -8}, 'image_size must be at least 1, got -8'),
        ({'seed': -1}, 'seed must be in [0, 2**64), got -1'),
        ({'on_bad': 'ignore'}, "on_bad must be one of stop, skip, got 'ignore'"),
        ({'crop_padding': -1}, 'crop_padding must be in [0, image_size] = [0, 8], got -1'),
        ({'crop_padding': 9}, 'crop_padding must be in [0, image_size] = [0, 8], got 9'),
    ],
)
def test_every_source_checks_every_argument(name, wrong, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        data.make_source(name, **({'batch_size': 4, 'image_size': 8} | wrong))


def test_refuses_an_unknown_source():
    with pytest.raises(BadInput, match="data name must be one of digits, folder, imagenet, got 'mnist'"):
        data.make_source('mnist', batch_size=4, image_size=8)


def test_passes_its_arguments_on():
    source = data.make_source('digits', batch_size=6, image_size=8, seed=3, on_bad='skip', crop_padding=2, flip=True)
    assert (source.batch_size, source.seed, source.crop_padding, source.flip) == (6, 3, 2, True)
    assert source.train_batch(0)['image'].shape == (6, 8, 8, 1)
    assert source.skipped == []
