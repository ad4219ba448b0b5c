"""MiniLM upcycled to a fully dynamic mixture of experts, on one task of GLUE; see glue_minilm_pad.py.

python train.py --config=configs/glue_minilm_moe.py --workdir=runs/rte_moe --config.data.path=FOLDER
"""

from ml_collections import ConfigDict

from configs import glue_minilm_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.dynamic_fraction = 1.0
    return config
