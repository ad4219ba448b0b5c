"""A dense decoder with as many multiply-adds a token as OLMoE-1B-7B. Written for a pod.

    python train.py --config=configs/lm_olmoe_dense.py --workdir=runs/olmoe_dense --config.data.path=FOLDER \
        --config.data.vocabulary=TOKENIZER

See configs/lm_olmoe_pad.py. It was never run here.
"""

from ml_collections import ConfigDict

from configs import lm_olmoe_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.ffn = 'dense'
    config.model.ffn_width = 8 * 1024  # of the k = 8 experts of a token
    return config
