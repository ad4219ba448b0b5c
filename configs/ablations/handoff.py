"""Should a static parameter start from its own draw, as in the base, or from the mean of the kernels that it replaces?

Before training that is one draw or another; after 200 steps the mean is something learned.

python -m pad_jax sweep configs/ablations/handoff.py --workdir=runs/handoff --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('mean', {'partition.handoff': 'mean'}),
                ('late', {'partition.start_step': 200}),
                ('late_mean', {'partition.start_step': 200, 'partition.handoff': 'mean'}),
            ),
        }
    )
