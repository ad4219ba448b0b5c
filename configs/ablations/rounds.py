"""Do several rounds before training find a better partition? The base takes one.

python -m pad_jax sweep configs/ablations/rounds.py --workdir=runs/rounds --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('rounds_2', {'partition.rounds': 2}),
                ('rounds_4', {'partition.rounds': 4}),
                ('rounds_8', {'partition.rounds': 8}),
            ),
        }
    )
