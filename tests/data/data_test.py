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
        ({'crop_padding': -1}, 'crop_padding must be in [0, 8] for augment=crop, got -1'),
        ({'crop_padding': 9}, 'crop_padding must be in [0, 8] for augment=crop, got 9'),
    ],
)
def test_every_source_checks_every_argument(name, wrong, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        data.make_source(name, **({'batch_size': 4, 'image_size': 8} | wrong))


def test_passes_its_arguments_on():
    source = data.make_source('digits', batch_size=6, image_size=8, seed=3, on_bad='skip', crop_padding=2, flip=True)
    assert (source.batch_size, source.seed) == (6, 3)
    assert (source.augmentation.crop_padding, source.augmentation.flip) == (2, True)
    assert source.train_batch(0)['image'].shape == (6, 8, 8, 1)
    assert source.skipped == []


@pytest.mark.parametrize(
    'name, wrong, message',
    [
        ('mnist', {}, "data name must be one of digits, folder, imagenet, got 'mnist'"),
        ('folder', {'augment': 'none'}, "augment of folder must be one of crop, got 'none'"),
        ('digits', {'augment': 'resized_crop'}, "augment of digits must be one of crop, got 'resized_crop'"),
        ('folder', {'augment': 'resized_crop'}, "augment of folder must be one of crop, got 'resized_crop'"),
        (
            'imagenet',
            {'augment': 'resized_crop', 'crop_padding': 2},
            'crop_padding must be in [0, 0] for augment=resized_crop, got 2',
        ),
        ('digits', {'color_jitter': 0.4}, 'data.color_jitter and data.randaugment_layers must be 0 for digits'),
        ('digits', {'randaugment_layers': 1}, 'must be 0 for digits, which have no colours'),
    ],
)
def test_refuses_unknown_sources_and_augmentation_without_effect(name, wrong, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        data.make_source(name, **({'batch_size': 4, 'image_size': 8} | wrong))
