"""A dense language model with as many multiply-adds a token as configs/lm_moe.py, on bytes. Minutes on a CPU.

python train.py --config=configs/lm_dense.py --workdir=runs/lm_dense
"""

from ml_collections import ConfigDict

from configs import lm_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.ffn = 'dense'
    config.model.ffn_width = 2 * 128  # of the k = 2 experts of a token
    return config
