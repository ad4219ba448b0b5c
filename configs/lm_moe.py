"""A language model with a fully dynamic mixture of experts, on bytes. Minutes on a CPU.

python train.py --config=configs/lm_moe.py --workdir=runs/lm_moe
"""

from ml_collections import ConfigDict

from configs import lm_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.dynamic_fraction = 1.0
    return config
