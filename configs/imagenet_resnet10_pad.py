"""Partially dynamic ResNet-10 on ImageNet, trained like configs/imagenet_resnet50_pad.py.

    python train.py --config=configs/imagenet_resnet10_pad.py --workdir=runs/resnet10 --config.data.path=FOLDER

Written for one accelerator with 80 GB, or several whose number divides the batch of 256. Its accuracy has not been
measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.name = 'resnet10'
    return config
