"""Iterative Mode Partition: the choice of the positions that stay dynamic. Pure functions on pytrees.

- masks: their granularity, merge and split.
- criteria: scores of positions.
- selection: an exact number of the best positions.
- rounds: one round, all rounds, their schedules, the handoff, and advice on scores that tell nothing.
- layout: the network as the partition sees it.
"""

from pad_jax.partition.criteria import CRITERIA, Criterion, as_gates, score_positions
from pad_jax.partition.layout import Layout, Part, PartialParameter, Problem, positions_of, walk_records
from pad_jax.partition.masks import (
    GRANULARITIES,
    SCALES,
    count_dynamic,
    count_positions,
    dynamic_fraction,
    dynamic_share,
    group_size,
    init_masks,
    leaf_names,
    mask_granularity,
    mask_shape,
    merge,
    scale_factors,
    split,
)
from pad_jax.partition.rounds import (
    HANDOFFS,
    PAPER,
    SCHEDULES,
    Partition,
    PartitionError,
    Recipe,
    UninformativeScores,
    check_informative,
    hand_off_means,
    iterative_mode_partition,
    partition_round,
    partition_step,
    round_fractions,
)
from pad_jax.partition.selection import SCOPES, find_competitions, num_dynamic_positions, select_positions
