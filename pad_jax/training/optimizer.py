"""Optimizers, learning rates and the average of parameters; weight decay acts on weights only."""

import functools
import math
import posixpath
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pad_jax.partition import Layout, walk_records

PyTree = Any
OPTIMIZERS = ('sgd', 'adamw')
RATE_SCHEDULES = ('cosine', 'linear', 'step', 'constant')

# Names of Flax. Shapes cannot decide: the bias of a dynamic layer is a matrix [K, F].
NOT_DECAYED = ('bias', 'scale')


def find_scales(records: Mapping[str, Any]) -> frozenset[str]:
    """Find the paths of the parameters of dynamic layers that scale like those of norms: φ, static generated values."""
    found = set()
    for path, record in walk_records(records):
        names = (record.scale, record.static if record.generated else None)
        found |= {posixpath.join(posixpath.dirname(path), name) for name in names if name is not None}
    return frozenset(found)


def decay_mask(params, scales: frozenset[str] = frozenset()):
    """Mark the parameters that weight decay applies to: weights, never biases, norms or `scales`."""

    def decays(path, _):
        return path[-1].key not in NOT_DECAYED and jax.tree_util.keystr(path, simple=True, separator='/') not in scales

    return jax.tree_util.tree_map_with_path(decays, params)


@functools.lru_cache
def make_rate_schedule(learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate over steps: linear warm-up from 0 to the peak, then a schedule over the remaining steps.

    `cosine` and `linear` fall to 0 at the last step. `step` divides by 10 after 1/3, 2/3 and 8/9 of all steps.

    Args:
      learning_rate: the peak, > 0.
      schedule: one of `RATE_SCHEDULES`.
      warmup_steps: at least 0, less than total_steps.
      total_steps: optimizer steps of the whole run.
    """
    remaining = total_steps - warmup_steps
    if schedule == 'cosine':
        main = optax.cosine_decay_schedule(learning_rate, remaining)
    elif schedule == 'linear':
        main = optax.linear_schedule(learning_rate, 0.0, remaining)
    elif schedule == 'step':
        drops = [round(total_steps * part) - warmup_steps for part in (1 / 3, 2 / 3, 8 / 9)]
        start = learning_rate * 0.1 ** sum(drop <= 0 for drop in drops)  # drops within the warm-up count too
        main = optax.piecewise_constant_schedule(start, {drop: 0.1 for drop in drops if drop > 0})
    else:
        main = optax.constant_schedule(learning_rate)
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps]) if warmup_steps else main


@functools.lru_cache
def make_temperature_schedule(temperature: float, steps: int) -> optax.Schedule:
    """Attention temperature over steps: linear from `temperature` to 1 over the first `steps`, then 1.

    Near-uniform attention early in training lets all kernels learn (DY-Conv, arXiv:1912.03458, section 3.2). Equal
    arguments give the same object, so jitted steps are shared.
    """
    return optax.linear_schedule(temperature, 1.0, steps) if steps else optax.constant_schedule(1.0)


@functools.lru_cache
def make_optimizer(
    name: str, rate: optax.Schedule, weight_decay: float, clip_norm: float, scales: frozenset[str] = frozenset()
) -> optax.GradientTransformation:
    """SGD with momentum 0.9 or AdamW; equal arguments give the same object, so jitted steps are shared.

    Args:
      name: one of `OPTIMIZERS`. `sgd` adds the decay to the gradient (L2), `adamw` decouples it.
      rate: of `make_rate_schedule`.
      weight_decay: at least 0; on weights only.
      clip_norm: global gradient norm above which gradients are scaled down; 0 = never.
      scales: of `find_scales`.
    """
    mask = functools.partial(decay_mask, scales=scales)
    if name == 'sgd':
        main = optax.chain(optax.add_decayed_weights(weight_decay, mask=mask), optax.sgd(rate, momentum=0.9))
    else:
        main = optax.adamw(rate, weight_decay=weight_decay, mask=mask)
    return optax.chain(optax.clip_by_global_norm(clip_norm), main) if clip_norm else main


def update_average(average: PyTree, current: PyTree, step: jax.Array, decay: float) -> PyTree:
    """Update an exponential moving average, corrected for its start.

    After t steps it is `Σ_i d^(t − i)·θ_i / Σ_i d^(t − i)` over the values θ_i after each step, for a decay d. It
    contains no initial parameters, so it serves short runs too.

    Args:
      average: average over the steps before; ignored at the first step.
      current: values after this step, of the same structure.
      step: int, steps done including this one: at least 1.
      decay: in (0, 1).

    >>> float(update_average(jnp.float32(2), jnp.float32(5), step=jnp.int32(2), decay=0.5))  # (0.5·2 + 5) / 1.5
    4.0
    """
    # (1 − d) / (1 − d^t), exactly 1 at the first step; computed as differences from 1 both would lose their digits.
    weight = jnp.expm1(math.log(decay)) / jnp.expm1(step * math.log(decay))
    return jax.tree.map(lambda old, new: ((1 - weight) * old + weight * new).astype(old.dtype), average, current)


def follow_handoff(average: PyTree, before: PyTree, after: PyTree) -> PyTree:
    """Correct the average of params after a round of the partition has replaced some of them.

    The average of a replaced parameter becomes the new value, as though it had always had it. After n steps that value
    keeps the share dⁿ. With a decay of 0.9999 that is a half after 6900 steps, so leave a run that many after its last
    round. Separate weights for each entry would average entries over different steps.

    Args:
      average: average of the params.
      before, after: params on either side of the round, of the same structure.
    """
    return jax.tree.map(lambda kept, old, new: jnp.where(old == new, kept, new), average, before, after)


@functools.partial(jax.jit, static_argnames='layout')
def hand_off_moments(optimizer_state: PyTree, layout: Layout, params: PyTree, old_masks: PyTree, new_masks: PyTree):
    """Give each position that turned static the moments of its factors; those of other positions stay.

        first moment = c · Σ_k m_k        second moment = (c · Σ_k √ν_k)²        c = λs / (λd · Σ_k π_k)

    A factor's gradient is λd·π_k·g and that of the shared parameter λs·g, so these gradients add up. The root mean
    square of a sum is at most the sum of theirs. So the second moment is not too small.

    Args:
      optimizer_state: of optax, with moments of momentum or Adam at any depth; no parameter is pruned.
      layout: reads the params, and moments, which have the same structure.
      old_masks, new_masks: before and after the round.
    """
    parts = layout.read(params, new_masks)

    def take_over(moments, power):
        def add(old, new, part, own):
            factor = part.copies_at * part.static_scale / part.dynamic_scale
            total = factor * jnp.sum(own.dynamic ** (1 / power), axis=0)
            return jnp.where(old & ~new, total**power, own.static)

        static = jax.tree.map(add, old_masks, new_masks, parts, layout.read(moments, new_masks))
        return layout.write(moments, new_masks, static)

    def follow(node):
        if isinstance(node, optax.TraceState):
            return node._replace(trace=take_over(node.trace, 1))
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(mu=take_over(node.mu, 1), nu=take_over(node.nu, 2))
        return node

    kinds = optax.TraceState, optax.ScaleByAdamState
    return jax.tree.map(follow, optimizer_state, is_leaf=lambda node: isinstance(node, kinds))
