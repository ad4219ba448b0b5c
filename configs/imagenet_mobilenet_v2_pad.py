"""Partially dynamic MobileNetV2 on ImageNet, trained like configs/imagenet_resnet50_pad.py.

    python train.py --config=configs/imagenet_mobilenet_v2_pad.py --workdir=runs/mobilenet --config.data.path=FOLDER

Add --config.model.width_multiplier=0.5 for half the width. Written for one accelerator with 80 GB, or several whose
number divides the batch of 256. Its accuracy has not been measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.name = 'mobilenet_v2'
    config.optim.weight_decay = 4e-5
    return config
