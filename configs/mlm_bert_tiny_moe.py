"""BERT-tiny with a fully dynamic mixture of experts, pretrained on texts. Never run to its end here.

    python train.py --config=configs/mlm_bert_tiny_moe.py --workdir=runs/mlm_moe --config.data.path=FOLDER

FOLDER holds text files or JSON lines; see configs/mlm_bert_tiny_pad.py.
"""

from ml_collections import ConfigDict

from configs import mlm_bert_tiny_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.dynamic_fraction = 1.0
    return config
