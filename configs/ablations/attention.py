"""Do inputs choose between kernels at all? Variants: a wider attention, and one that is sharp from the first step.

    python -m pad_jax sweep configs/ablations/attention.py --workdir=runs/attention --config.data.path=FOLDER

The attention of the base has one to four hidden units: 1/16 of the input channels of its layer. The base also starts
at a high temperature, which falls in the first sixth of the run.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    sharp = {'train.temperature': 1.0, 'train.temperature_share': 0.0}
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('wide', {'model.reduction': 2}),
                ('sharp', sharp),
                ('wide_and_sharp', {'model.reduction': 2, **sharp}),
            ),
        }
    )
