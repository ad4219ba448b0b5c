"""MiniLM without mixtures, fine-tuned on one task of GLUE; see glue_minilm_pad.py.

python train.py --config=configs/glue_minilm_dense.py --workdir=runs/rte_dense --config.data.path=FOLDER
"""

from ml_collections import ConfigDict

from configs import glue_minilm_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.ffn = 'dense'
    return config
