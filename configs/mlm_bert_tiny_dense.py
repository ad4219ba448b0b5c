"""Dense BERT-tiny, pretrained on texts. Never run to its end here.

    python train.py --config=configs/mlm_bert_tiny_dense.py --workdir=runs/mlm_dense --config.data.path=FOLDER

FOLDER holds text files or JSON lines; see configs/mlm_bert_tiny_pad.py.
"""

from ml_collections import ConfigDict

from configs import mlm_bert_tiny_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.ffn = 'dense'
    return config
