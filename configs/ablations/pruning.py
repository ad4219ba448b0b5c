"""Do static parameters help, or only fewer dynamic ones? Compares with pruned networks of the same κ.

    python -m pad_jax sweep configs/ablations/pruning.py --workdir=runs/pruning --config.data.path=FOLDER

In a pruned network, positions that are not dynamic are zero. κ is 0.3 as in the base, 0.1 and 0.5.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('pruned', {'partition.prune': True}),
                ('kappa_0.1', {'partition.dynamic_fraction': 0.1}),
                ('pruned_0.1', {'partition.prune': True, 'partition.dynamic_fraction': 0.1}),
                ('kappa_0.5', {'partition.dynamic_fraction': 0.5}),
                ('pruned_0.5', {'partition.prune': True, 'partition.dynamic_fraction': 0.5}),
            ),
        }
    )
