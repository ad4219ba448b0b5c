"""Optimizers and learning rates, from optax; weight decay only on weights."""

import functools

import jax
import optax

OPTIMIZERS = ('sgd', 'adamw')
RATE_SCHEDULES = ('cosine', 'linear', 'step', 'constant')

# Every parameter is covered by one of the two, by the last name of its path. Shapes can't tell: the bias of a
# dynamic layer is a matrix [K, F].
DECAYED = frozenset(
    {
        *('kernel', 'static_kernel', 'squeeze', 'expand', 'tensor', 'into_latent', 'out_of_latent'),
        *('neurons', 'static_neurons', 'gate', 'noise', 'embedding'),
    }
)
# A static vector of attention is a scale, as those of norms are.
NOT_DECAYED = frozenset({'bias', 'scale', 'phi', 'static_tensor'})


def decay_mask(params):
    """Which parameters weight decay applies to: weights, never biases, norms or scale parameters.

    Raises:
      ValueError: for a parameter that no rule covers.
    """

    def decays(path, _):
        name = path[-1].key
        if name not in DECAYED | NOT_DECAYED:
            full = jax.tree_util.keystr(path, simple=True, separator='/')
            raise ValueError(f'no weight decay rule for parameter {full}; add {name!r} to DECAYED or NOT_DECAYED')
        return name in DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def make_rate_schedule(learning_rate: float, schedule: str, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate over steps: linear warm-up from 0 to its peak, then a schedule over the remaining steps.

    `cosine` and `linear` fall to 0 at the last step, `step` divides by 10 after 1/3, 2/3 and 8/9 of the steps (epochs
    30, 60 and 80 of 90), `constant` stays.

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
        start = learning_rate * 0.1 ** sum(drop <= 0 for drop in drops)  # those that the warm-up has passed
        main = optax.piecewise_constant_schedule(start, {drop: 0.1 for drop in drops if drop > 0})
    else:
        main = optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), main], [warmup_steps])


def make_temperature_schedule(temperature: float, steps: int) -> optax.Schedule:
    """Attention temperature over steps: linear from `temperature` to 1 over the first `steps`, then 1.

    (DY-Conv, arXiv:1912.03458, section 3.2: near-uniform attention early on lets all kernels learn.)
    """
    return optax.linear_schedule(temperature, 1.0, steps) if steps else optax.constant_schedule(1.0)


@functools.lru_cache
def make_optimizer(
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
    total_steps: int,
) -> optax.GradientTransformation:
    """SGD with momentum 0.9 or AdamW; equal arguments give the same object, so jitted steps are shared.

    Args:
      name: one of `OPTIMIZERS`. With `sgd` the decay is added to the gradient (L2), with `adamw` it is decoupled.
      learning_rate, schedule, warmup_steps, total_steps: see `make_rate_schedule`.
      weight_decay: at least 0; on weights only.
      clip_norm: global gradient norm above which gradients are scaled down; 0 = never.
    """
    rate = make_rate_schedule(learning_rate, schedule, warmup_steps, total_steps)
    if name == 'sgd':
        main = optax.chain(optax.add_decayed_weights(weight_decay, mask=decay_mask), optax.sgd(rate, momentum=0.9))
    else:
        main = optax.adamw(rate, weight_decay=weight_decay, mask=decay_mask)
    return optax.chain(optax.clip_by_global_norm(clip_norm), main) if clip_norm else main
