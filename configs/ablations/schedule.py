"""Which dynamic fractions should four rounds pass? The base reaches κ in one round.

python -m pad_jax sweep configs/ablations/schedule.py --workdir=runs/schedule --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('exponential', {'partition.rounds': 4}),
                ('linear', {'partition.rounds': 4, 'partition.schedule': 'linear'}),
            ),
        }
    )
