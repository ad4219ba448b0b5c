"""Timing of the benchmarks: compiled ahead of the clock, in turn, the median over repeats."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Call = Callable[[], Any]


def compile_call(forward: Callable, mode: str, *inputs) -> Call:
    """Compiles `forward`, or in mode 'forward+backward' its value and gradients by all inputs, ahead of the clock."""

    def both(cotangent, *inputs):
        y, pull = jax.vjp(forward, *inputs)
        return y, pull(cotangent)

    if mode == 'forward':
        compiled = jax.jit(forward).lower(*inputs).compile()
        return functools.partial(compiled, *inputs)
    size = jax.eval_shape(forward, *inputs)
    cotangent = jax.random.normal(jax.random.key(1), size.shape, jnp.float32).astype(size.dtype)
    compiled = jax.jit(both).lower(cotangent, *inputs).compile()
    return functools.partial(compiled, cotangent, *inputs)


def time_interleaved(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Median seconds of each call until its result is there; one untimed round first, then all of them in turn."""
    return {name: statistics.median(seconds) for name, seconds in sample_interleaved(calls, repeats).items()}


def sample_interleaved(calls: Mapping[str, Call], repeats: int, pause: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each call in each round, as `time_interleaved` measures them, with a pause before each call."""
    seconds = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(pause)
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds
