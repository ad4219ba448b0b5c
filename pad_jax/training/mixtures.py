"""What a run does for mixtures of experts alone; all of it leaves a network without any as it is."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pad_jax.layers import measure_similarity

Params = Mapping[str, Any]


def compare_experts(params: Params, masks: Params, scales: str) -> dict[str, float]:
    """`expert_similarity`: the mean over mixtures of the mean cosine between their experts; {} without mixtures."""
    found = _measure(params, masks, scales=scales)
    if not found:
        return {}
    return {'expert_similarity': float(jnp.mean(jnp.stack(list(found.values()))))}


_measure = jax.jit(measure_similarity, static_argnames='scales')
