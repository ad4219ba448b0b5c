"""The shape of OLMoE-1B-7B with a partially dynamic mixture of experts, κ = 0.5 by neuron. Written for a pod.

    python train.py --config=configs/lm_olmoe_pad.py --workdir=runs/olmoe --config.data.path=FOLDER \
        --config.data.vocabulary=TOKENIZER

FOLDER holds text files or JSON lines, and TOKENIZER is a tokenizer.json. Sizes and recipe are those of Muennighoff et
al., "OLMoE: Open Mixture-of-Experts Language Models", arXiv:2409.02060. It was never run here.
"""

from ml_collections import ConfigDict

from configs import lm_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.name = 'olmoe'
    config.model.num_experts = 64
    config.model.num_selected = 8
    config.model.balance_coefficient = 0.0
    config.model.z_coefficient = 1e-3
    config.model.switch_coefficient = 1e-2
    config.model.num_layers = 16
    config.model.width = 2048
    config.model.num_heads = 16
    config.model.ffn_width = 1024
    config.model.vocab_size = 50304
    config.model.max_length = 4096
    config.model.dtype = 'bfloat16'
    config.model.remat = True
    config.data.name = 'corpus'
    config.data.holdout = 0.001
    config.data.batch_size = 1024
    config.data.max_length = 4096
    config.partition.batch_size = 64
    config.optim.learning_rate = 4e-4
    config.optim.warmup_steps = 2500
    config.train.steps = 250_000
    config.train.eval_every_steps = 5000
    config.train.checkpoint_every_steps = 1000
    return config
