"""How fine must the choice be? The base selects single elements; coarser gates share one choice.

python -m pad_jax sweep configs/ablations/granularity.py --workdir=runs/granularity --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('output', {'partition.granularity': 'output'}),
                ('input', {'partition.granularity': 'input'}),
                ('spatial', {'partition.granularity': 'spatial'}),
                ('layer', {'partition.granularity': 'layer'}),
            ),
        }
    )
