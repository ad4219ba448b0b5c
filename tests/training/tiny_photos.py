"""The smallest run on photos."""

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
