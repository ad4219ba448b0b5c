"""How should a language model be partitioned? In the base once, by neuron, before the first of 1,500 steps.

    python -m pad_jax sweep configs/ablations/partition_lm.py --workdir=runs/partition_lm --seeds=5

With --config.data.name=corpus --config.data.path=FOLDER the models learn your own texts. Further variants: a partition
after 10 % or 30 % of the steps, with both handoffs; no scale factors; four rounds; and a partition by element.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    return ConfigDict(
        {
            'base': 'lm_pad.py',
            'variants': (
                ('step_150', {'partition.start_step': 150}),
                ('step_150_mean', {'partition.start_step': 150, 'partition.handoff': 'mean'}),
                ('step_450', {'partition.start_step': 450}),
                ('step_450_mean', {'partition.start_step': 450, 'partition.handoff': 'mean'}),
                ('no_scales', {'partition.scales': 'none'}),
                ('rounds_4', {'partition.rounds': 4, 'partition.start_step': 150, 'partition.every_steps': 100}),
                ('element', {'partition.granularity': 'element'}),
            ),
        }
    )
