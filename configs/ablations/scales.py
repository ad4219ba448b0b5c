"""Do the scale factors λd and λs matter? The base has both.

python -m pad_jax sweep configs/ablations/scales.py --workdir=runs/scales --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('none', {'partition.scales': 'none'}),
                ('static', {'partition.scales': 'static'}),
                ('dynamic', {'partition.scales': 'dynamic'}),
            ),
        }
    )
