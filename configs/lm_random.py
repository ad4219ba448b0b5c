"""The language model of configs/lm_pad.py with random positions dynamic, κ = 0.5. Minutes on a CPU.

python train.py --config=configs/lm_random.py --workdir=runs/lm_random
"""

from ml_collections import ConfigDict

from configs import lm_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.criterion = 'random'
    return config
