"""The paper's question on texts: is half of a mixture of experts, κ = 0.5 in the base, as good as all of it?

Beside them the dense network, and a partition drawn at random.

python -m pad_jax sweep configs/ablations/networks_glue.py --workdir=runs/networks_glue --config.data.path=FOLDER
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
