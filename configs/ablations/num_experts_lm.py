"""Do experts pay in a language model, and how many? The base has eight, fully dynamic, and each token uses two.

    python -m pad_jax sweep configs/ablations/num_experts_lm.py --workdir=runs/num_experts_lm --seeds=5

With --config.data.name=corpus --config.data.path=FOLDER the models learn your own texts. All variants have equal
multiply-adds a token, except for the router. That includes the dense network.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'lm_moe.py',
            'variants': (
                ('dense', {'model.ffn': 'dense', 'model.ffn_width': 256}),
                ('experts_4', {'model.num_experts': 4}),
                ('experts_16', {'model.num_experts': 16}),
            ),
        }
    )
