"""A partially dynamic ResNet-50 at 224², κ = 0.3, on ImageNet in the usual folders.

    python train.py --config=configs/imagenet_resnet50_pad.py --workdir=runs/resnet50 --config.data.path=FOLDER

Written for one host with 8 accelerators. Its accuracy has not been measured here.
"""

from ml_collections import ConfigDict

from configs import digits_resnet10_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.name = 'resnet50'
    config.model.num_classes = 1000
    config.model.width_multiplier = 1.0
    config.model.stem = 'imagenet'
    config.model.dtype = 'bfloat16'
    config.partition.batch_size = 256
    config.data.name = 'imagenet'
    config.data.batch_size = 256
    config.data.image_size = 224
    config.data.augment = 'resized_crop'
    config.data.crop_padding = 0
    config.data.flip = True
    config.optim.warmup_steps = 25000
    config.train.epochs = 100.0
    config.train.temperature_epochs = 15.0
    config.train.eval_every_steps = 5000
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 5000
    return config
