"""How many kernels does a dynamic convolution need? The base has four.

python -m pad_jax sweep configs/ablations/num_kernels.py --workdir=runs/num_kernels --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('kernels_1', {'model.num_kernels': 1}),
                ('kernels_2', {'model.num_kernels': 2}),
                ('kernels_8', {'model.num_kernels': 8}),
                ('kernels_16', {'model.num_kernels': 16}),
            ),
        }
    )
