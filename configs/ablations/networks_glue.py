"""Is a partially dynamic mixture of experts as good as a fully dynamic one? Base: κ = 0.5, on texts.

    python -m pad_jax sweep configs/ablations/networks_glue.py --workdir=runs/networks_glue --config.data.path=FOLDER

Further variants: the dense network and a random partition.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'glue_minilm_pad.py',
            'variants': (
                ('dense', {'model.ffn': 'dense'}),
                ('dynamic', {'partition.dynamic_fraction': 1.0}),
                ('random', {'partition.criterion': 'random'}),
            ),
        }
    )
