"""Fully dynamic counterpart of configs/digits_resnet10_pad.py.

python train.py --config=configs/digits_resnet10_dynamic.py --workdir=runs/digits_dynamic
"""

from ml_collections import ConfigDict

from configs import digits_resnet10_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.dynamic_fraction = 1.0
    return config
