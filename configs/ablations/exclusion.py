"""Which layers must be dynamic? Whole stages stay dynamic or static, and κ applies to the others.

python -m pad_jax sweep configs/ablations/exclusion.py --workdir=runs/exclusion --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('first_dynamic', {'partition.keep_dynamic': 'stage1'}),
                ('last_dynamic', {'partition.keep_dynamic': 'stage4'}),
                ('first_static', {'partition.keep_static': 'stage1'}),
                ('last_static', {'partition.keep_static': 'stage4'}),
            ),
        }
    )
