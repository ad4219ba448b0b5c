"""Partially dynamic ResNet-10 of a quarter of the width, on colour photos of 32×32 in folders. Sized for a CPU.

    python train.py --config=configs/cifar_resnet10_pad.py --workdir=runs/cifar --config.data.path=FOLDER

FOLDER holds train/CLASS/*.png and val/CLASS/*.png.
"""

from ml_collections import ConfigDict

from configs import digits_resnet10_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = 'folder'
    config.data.batch_size = 128
    config.data.image_size = 32
    config.data.crop_padding = 4
    config.data.flip = True
    config.partition.batch_size = 128
    config.optim.weight_decay = 5e-4
    config.optim.warmup_steps = 0
    config.train.epochs = 30.0
    config.train.temperature_share = 1 / 6
    config.train.eval_every_steps = 100
    config.train.checkpoint_every_steps = 100
    return config
