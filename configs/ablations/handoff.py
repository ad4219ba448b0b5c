"""Should static parameters start from their own draw, as in the base, or from the mean of the kernels?

    python -m pad_jax sweep configs/ablations/handoff.py --workdir=runs/handoff --config.data.path=FOLDER

Before training the mean is only another random draw. After 200 steps it is learned.
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
