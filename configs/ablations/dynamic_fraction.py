"""How much of a network must be dynamic? κ from 5 % to 100 % of the positions; the base has 30 %.

python -m pad_jax sweep configs/ablations/dynamic_fraction.py --workdir=runs/dynamic_fraction --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    fractions = (0.05, 0.1, 0.2, 0.5, 0.7, 1.0)
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': tuple((f'kappa_{kappa:g}', {'partition.dynamic_fraction': kappa}) for kappa in fractions),
        }
    )
