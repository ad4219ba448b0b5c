"""configs/digits_resnet10_pad.py with a random partition.

python train.py --config=configs/digits_resnet10_random.py --workdir=runs/digits_random
"""

from ml_collections import ConfigDict

from configs import digits_resnet10_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.criterion = 'random'
    return config
