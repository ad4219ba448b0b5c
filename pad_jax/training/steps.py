"""The steps of training and evaluation: pure functions, written once for one replica.

Axis letters: B the replica's examples, A microbatches, O outputs.

With `axis_name` they run inside pmap or shard_map over that axis and average over it; without, on their own. A batch
is a dict of what the task's network is called with and of `label` [B], in evaluation with `weight` float32[B].
"""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from pad_jax.partition import FLAX, Problem, sown_routing
from pad_jax.training.finiteness import accept_finite, check_finite
from pad_jax.training.mixup import PARTNER, draw_share, mix_neighbours
from pad_jax.training.optimizer import update_average
from pad_jax.training.state import TrainState
from pad_jax.training.tasks import Task, summarize_routers


def train_step(
    state: TrainState,
    batch,
    *,
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    temperature: optax.Schedule,
    accumulate_steps: int = 1,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    ema_decay: float = 0.0,
    most_nonfinite: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step, which changes nothing but the counts where what it makes is not finite.

    Args:
      temperature: attention temperature as a function of the step, from `setup.make_temperature`.
      model: with `axis_name` of its own, its norms and routers take their statistics over all replicas.
      accumulate_steps: A, microbatches that the replica's examples are split into; their gradients are averaged, so
        memory falls and the step stays the same but for batch statistics and the balance of routers. Divides B.
      label_smoothing: see `Task.losses`.
      mixup: α of `mixup`, 0 for none; else B is even.
      ema_decay: in [0, 1), of the state's average; 0 where it keeps none.
      most_nonfinite: see `accept_finite`.

    Returns:
      (new state, metrics): loss (the task's, on smoothed and mixed labels, without that of routers), gradient_norm, and
      as far as there are such: accuracy in [0, 1], temperature, and what `summarize_routers` says.
    """
    current = temperature(state.step)
    # Drawn anew for each step, replica and microbatch; what is mixed, for each step alone.
    step_key = jax.random.fold_in(state.key, state.step)
    if mixup:
        share = draw_share(step_key, mixup)
        batch = mix_neighbours(batch, share)
    if axis_name is not None:
        step_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis_name))

    def measure(outputs, labels):
        return {'loss': task.losses(outputs, labels, label_smoothing), **task.hits(outputs, labels)}

    def loss_fn(params, batch_stats, batch, key):
        variables = state.replace(params=params, batch_stats=batch_stats).variables
        rngs = dict(zip(('dropout', 'routing'), jax.random.split(key), strict=True))
        (outputs, aux), updates = task.apply(
            model, variables, batch, current, train=True, rngs=rngs, mutable=['batch_stats']
        )
        found = measure(outputs, batch['label'])
        if mixup:
            partners = measure(outputs, batch[PARTNER])
            found = {name: share * found[name] + (1 - share) * partners[name] for name in found}
        router_loss, reported = summarize_routers(aux)
        means = {name: jnp.mean(values) for name, values in found.items()}
        return means['loss'] + router_loss, (updates.get('batch_stats', batch_stats), {**means, **reported})

    def add_microbatch(carry, microbatch):
        gradients, batch_stats, sums = carry
        number, batch = microbatch
        (_, (batch_stats, values)), new_gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, batch_stats, batch, jax.random.fold_in(step_key, number)
        )
        gradients, sums = jax.tree.map(jnp.add, (gradients, sums), (new_gradients, values))
        return (gradients, batch_stats, sums), None

    if accumulate_steps == 1:
        (_, (batch_stats, values)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, batch, step_key
        )
    else:
        # Every A-th example, not B / A in a row: so a microbatch of all replicas together, and with it the statistics
        # of norms that are synchronised, doesn't depend on the number of replicas.
        microbatches = jax.tree.map(
            lambda leaf: leaf.reshape(-1, accumulate_steps, *leaf.shape[1:]).swapaxes(0, 1), batch
        )
        first = jax.tree.map(lambda leaf: leaf[0], microbatches)
        shapes = jax.eval_shape(loss_fn, state.params, state.batch_stats, first, step_key)[1][1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (state.params, shapes))
        carry, _ = jax.lax.scan(
            add_microbatch, (zeros[0], state.batch_stats, zeros[1]), (jnp.arange(accumulate_steps), microbatches)
        )
        gradients, batch_stats, values = carry
        gradients, values = jax.tree.map(lambda leaf: leaf / accumulate_steps, (gradients, values))
    if axis_name is not None:
        gradients, batch_stats, values = jax.lax.pmean((gradients, batch_stats, values), axis_name)
    metrics = {**values, 'gradient_norm': optax.tree.norm(gradients)}
    if task.heated:
        metrics['temperature'] = jnp.asarray(current, jnp.float32)

    def learn():
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        learned = {'params': optax.apply_updates(state.params, updates), 'batch_stats': batch_stats}
        average = update_average(state.average, learned, state.step + 1, ema_decay) if ema_decay else state.average
        return {**learned, 'optimizer_state': optimizer_state, 'average': average}

    # Of means over all replicas, so they decide alike.
    is_finite = check_finite(values['loss'], gradients, batch_stats)
    return accept_finite(state, learn, is_finite, most_nonfinite), metrics


def eval_step(
    state: TrainState,
    batch,
    *,
    task: Task,
    model: nn.Module,
    temperature: optax.Schedule,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Weighted sums over a batch: loss, accuracy, weight. Rows of weight 0 count in none of them.

    The temperature is that of the state's step, as the network was trained with it. Where the state keeps an average,
    that takes the place of its parameters and of its batch statistics. A task that collects also gets the `outputs`
    [B, O] of all replicas' examples, in the order of the batch.
    """
    current = temperature(state.step)
    outputs, _ = task.apply(model, state.averaged_variables, batch, current, train=False)
    weight = batch['weight']
    values = {'loss': task.losses(outputs, batch['label']), **task.hits(outputs, batch['label'])}
    # Not a product: rows that only fill up a batch may have any loss.
    sums = {name: jnp.sum(jnp.where(weight > 0, found * weight, 0)) for name, found in values.items()}
    sums['weight'] = jnp.sum(weight)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
        if task.collects:
            outputs = jax.lax.all_gather(outputs, axis_name, tiled=True)
    return {**sums, 'outputs': outputs} if task.collects else sums


@functools.lru_cache
def make_problem(task: Task, model: nn.Module, scales: str) -> Problem:
    """The network as the partition sees it; equal arguments give the same object, so its jitted functions are shared.

    A scoring batch holds, for a task that is heated, the scalar `temperature` besides what the network reads. Norms
    take the statistics of that batch and don't store them: a network that has not been trained has no running
    statistics worth using. (SynFlow's output goes through fresh ones, mean 0 and variance 1, which leave a positive
    network positive.) Nothing is dropped out, and routers add no noise or loss.
    """

    def apply(params, gates, batch, train):
        variables = {'params': params, 'partition': gates}
        collections = ['batch_stats', 'intermediates']
        return task.apply(model, variables, batch, batch.get('temperature'), train=train, mutable=collections)

    def loss(params, gates, batch):
        (outputs, _), _ = apply(params, gates, batch, task.scored_in_training_mode)
        return task.losses(outputs, batch['label']).mean()

    def output(params, gates, batch):
        (outputs, _), _ = apply(params, gates, batch, False)
        return outputs

    def routing(params, gates, batch):
        _, updates = apply(params, gates, batch, task.scored_in_training_mode)
        return sown_routing(updates['intermediates'], gates)

    return Problem(loss, FLAX[scales], output, routing)
