"""The smallest run on photos, and the smallest folders of them."""

import numpy as np
from PIL import Image

# Twelve examples to train on and six to evaluate on.
PHOTOS = {
    'model.num_classes': 3,
    'data.name': 'imagenet',
    'data.batch_size': 8,
    'data.augment': 'resized_crop',
    'data.crop_padding': 0,
    'partition.dynamic_fraction': 1.0,
    'data.on_bad': 'skip',
}


def write_classes(root, num_train, num_val, seed=0):
    """Write ROOT/train/CLASS/NUMBER.png and ROOT/val/CLASS/NUMBER.png of random pixels in two classes."""
    for split, count in (('train', num_train), ('val', num_val)):
        for label, name in enumerate(('cat', 'dog')):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng([seed, label, number]).integers(0, 255, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{number}.png')
