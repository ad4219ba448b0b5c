"""How many experts does a dynamic layer need? The base has eight, and each token uses two.

python -m pad_jax sweep configs/ablations/num_experts.py --workdir=runs/num_experts --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'glue_minilm_pad.py',
            'variants': (
                ('experts_2', {'model.num_experts': 2}),
                ('experts_4', {'model.num_experts': 4}),
                ('experts_16', {'model.num_experts': 16}),
            ),
        }
    )
