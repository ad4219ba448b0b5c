"""Fully dynamic counterpart of configs/imagenet_resnet18_pad.py.

    python train.py --config=configs/imagenet_resnet18_dynamic.py --workdir=runs/resnet18_dynamic \
        --config.data.path=FOLDER

Written for one accelerator with 80 GB, or several whose number divides the batch of 256. Its accuracy has not been
measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet18_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.dynamic_fraction = 1.0
    return config
