"""What a run does for layers with static columns, and for mixtures of experts; others stay as they are."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pad_jax.layers import index_dynamic_columns, measure_similarity
from pad_jax.training.state import TrainState

Params = Mapping[str, Any]


def index_columns(state: TrainState) -> TrainState:
    """The state with the columns that its masks leave dynamic, once there was a round: the step compiles anew."""
    return state.replace(columns=index_dynamic_columns(state.masks) if int(state.round) else {})


def forget_columns(state: TrainState) -> TrainState:
    """The state as the partition wants it: scoring needs the gates of all columns."""
    return state.replace(columns={})


def compare_experts(params: Params, masks: Params, scales: str) -> dict[str, float]:
    """`expert_similarity`: the mean over mixtures of the mean cosine between their experts; {} without mixtures."""
    found = _measure(params, masks, scales=scales)
    if not found:
        return {}
    return {'expert_similarity': float(jnp.mean(jnp.stack(list(found.values()))))}


_measure = jax.jit(measure_similarity, static_argnames='scales')
