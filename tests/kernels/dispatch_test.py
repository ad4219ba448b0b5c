"""The choice of a plan of mixtures, and its small parts."""

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.kernels.dispatch import BLOCK_SIZES, Blocks, Ragged, choose_mixture_plan, rank_slots


def test_the_choice_follows_platform_and_shape():
    assert choose_mixture_plan(2048, 8, 2, 'cpu') == 'blocks'
    assert choose_mixture_plan(2048, 8, 2, 'gpu') == 'blocks'
    assert choose_mixture_plan(2048, 8, 2, 'tpu') == 'ragged'
    # Every expert computes every token anyway, or padding costs more than that.
    assert choose_mixture_plan(2048, 8, 8, 'cpu') == 'dense'
    assert choose_mixture_plan(16, 8, 2, 'cpu') == 'dense'
    # Fewer slots than experts: on CPU only the chosen experts are read, one after another.
    assert [choose_mixture_plan(tokens, 8, 2, 'cpu') for tokens in (1, 3, 4)] == ['slots', 'slots', 'dense']
    assert [choose_mixture_plan(1, 8, 2, platform) for platform in ('gpu', 'tpu')] == ['dense', 'dense']
    (tokens,) = jax.export.symbolic_shape('n')
    assert choose_mixture_plan(tokens, 8, 2, 'cpu') == 'dense'


def test_rows_of_blocks_hold_every_division_of_the_slots():
    small = BLOCK_SIZES[-1]
    for num_slots in range(1, 3 * small):
        # At worst every expert but one has a single slot in a block of its own.
        for num_experts in (1, 2, 5):
            counts = [1] * min(num_experts - 1, num_slots - 1)
            counts.append(num_slots - len(counts))
            assert sum(-(-count // small) for count in counts) * small <= Blocks.count_rows(num_slots, num_experts)
            assert Ragged.count_rows(num_slots, num_experts) == num_slots


def test_ranks_are_counted_slot_by_slot():
    experts = np.random.default_rng(0).integers(0, 5, size=(13, 2))  # 4 experts, 4 itself is nowhere
    ranks, counts = rank_slots(jnp.asarray(experts), 4)
    seen = [0] * 5
    for n, s in np.ndindex(13, 2):
        if experts[n, s] < 4:
            assert ranks[n, s] == seen[experts[n, s]]
        seen[experts[n, s]] += 1
    assert counts.tolist() == seen[:4]
