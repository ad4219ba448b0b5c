"""Does it help that the rest is static, or only that less is dynamic? The same networks, plainly pruned.

python -m pad_jax sweep configs/ablations/pruning.py --workdir=runs/pruning --config.data.path=FOLDER

What is not dynamic is then zero and no parameter; at the base's κ = 0.3, and beside the partially dynamic ones at 0.1
and 0.5.
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
