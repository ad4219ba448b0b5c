"""Which positions should be dynamic? Compares the criteria; the base uses sensitivity.

python -m pad_jax sweep configs/ablations/criterion.py --workdir=runs/criterion --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    names = ('magnitude', 'random', 'grasp', 'synflow', 'variance')
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': tuple((name, {'partition.criterion': name}) for name in names),
        }
    )
