"""BERT-base as a partially dynamic mixture of experts, κ = 0.5, on one task of GLUE. Sized for a GPU.

    python train.py --config=configs/glue_bert_base_moe.py --workdir=runs/rte_base --config.data.path=FOLDER \
        --config.model.pretrained=WEIGHTS

WEIGHTS is a folder with model.safetensors, config.json and vocab.txt of BERT-base, uncased. The recipe is the quick
start of the authors' code, because the paper does not state its own. Its accuracy has not been measured here.
"""

from ml_collections import ConfigDict

from configs import glue_minilm_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.name = 'bert_base'
    config.model.pretrained = ''
    config.optim.learning_rate = 2e-5
    return config
