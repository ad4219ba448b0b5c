"""Is a partially dynamic network as good as a fully dynamic one? This is the question of the paper; base: κ = 0.3.

    python -m pad_jax sweep configs/ablations/networks.py --workdir=runs/networks --config.data.path=FOLDER

Further variants: the static network, other κ, and a random partition.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('static', {'model.conv': 'static'}),
                ('dynamic', {'partition.dynamic_fraction': 1.0}),
                ('kappa_0.1', {'partition.dynamic_fraction': 0.1}),
                ('kappa_0.5', {'partition.dynamic_fraction': 0.5}),
                ('random', {'partition.criterion': 'random'}),
            ),
        }
    )
