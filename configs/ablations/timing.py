"""When should the partition happen? In the base it comes before the first of about 1,200 steps.

python -m pad_jax sweep configs/ablations/timing.py --workdir=runs/timing --config.data.path=FOLDER
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'cifar_resnet10_pad.py',
            'variants': (
                ('step_40', {'partition.start_step': 40}),
                ('step_200', {'partition.start_step': 200}),
                ('step_600', {'partition.start_step': 600}),
                ('rounds_from_100', {'partition.rounds': 4, 'partition.start_step': 100, 'partition.every_steps': 100}),
            ),
        }
    )
