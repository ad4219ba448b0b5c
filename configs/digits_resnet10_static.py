"""Static counterpart of configs/digits_resnet10_pad.py.

python train.py --config=configs/digits_resnet10_static.py --workdir=runs/digits_static
"""

from ml_collections import ConfigDict

from configs import digits_resnet10_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.conv = 'static'
    return config
