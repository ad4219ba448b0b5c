"""The shape of OLMoE-1B-7B: a fully dynamic mixture of experts. Written for a pod.

    python train.py --config=configs/lm_olmoe_moe.py --workdir=runs/olmoe --config.data.path=FOLDER \
        --config.data.vocabulary=TOKENIZER

See configs/lm_olmoe_pad.py. It was never run here.
"""

from ml_collections import ConfigDict

from configs import lm_olmoe_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.dynamic_fraction = 1.0
    return config
