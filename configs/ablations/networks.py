"""The paper's question: is a partially dynamic network, κ = 0.3 in the base, as good as a fully dynamic one?

Beside them a static one, other κ, and a partition drawn at random.

python -m pad_jax sweep configs/ablations/networks.py --workdir=runs/networks --config.data.path=FOLDER
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
