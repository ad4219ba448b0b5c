"""Should positions compete in the whole network, as in the base, or within their layer?

python -m pad_jax sweep configs/ablations/scope.py --workdir=runs/scope --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (('layer', {'partition.scope': 'layer'}),),
        }
    )
