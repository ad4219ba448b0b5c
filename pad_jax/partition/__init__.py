"""Iterative Mode Partition: which positions of a dynamic layer stay dynamic. Pure functions on pytrees.

masks       what is dynamic: masks, their granularity, merge and split
scores      what a position is worth: the table of criteria
selection   which positions are kept: an exact number of the best
schedules   how many after each round, and when the rounds come
handoff     what value a static parameter takes over
problem     what the above are told about a network
iterative   the step, the round, and all rounds
checks      what is refused, and in which words
counting    parameters of a Flax network: dynamic, static, other
compaction  a Flax network without what its masks make dead, and back
"""

from pad_jax.partition.checks import NothingSelected, PartitionError, UninformativeScores, check_informative
from pad_jax.partition.compaction import (
    compact,
    compact_params,
    expand,
    expand_params,
    pack_masks,
    unpack_masks,
)
from pad_jax.partition.counting import LayerCount, count_layers, plan_dynamic_positions, report_counts
from pad_jax.partition.handoff import HANDOFFS, hand_off_means
from pad_jax.partition.iterative import (
    NO_EXCLUSIONS,
    Exclusions,
    Partition,
    as_gates,
    iterative_mode_partition,
    partition_round,
    partition_step,
    score_positions,
    selection_targets,
)
from pad_jax.partition.layout import PartialParameter
from pad_jax.partition.masks import (
    GRANULARITIES,
    RESTS,
    SCALES,
    blend,
    count_dynamic,
    count_positions,
    dynamic_fraction,
    dynamic_share,
    gate_axis,
    group_size,
    init_masks,
    leaf_names,
    mask_granularity,
    mask_shape,
    merge,
    scale_factors,
    split,
)
from pad_jax.partition.problem import FLAX, PLAIN, Layout, Problem, Values, positions_of, sown_routing
from pad_jax.partition.schedules import SCHEDULES, round_fractions, round_steps
from pad_jax.partition.scores import CRITERIA, Criterion
from pad_jax.partition.selection import SCOPES, find_competitions, num_dynamic_positions, select_positions
