"""The steps of training and evaluation: pure functions, written once for one replica.

Axis letters: B the replica's examples, A microbatches, H, W, C image axes.

With `axis_name` they run inside pmap or shard_map over that axis and average over it; without, on their own. A batch
is a dict of `image` float32[B, H, W, C] and `label` int32[B], in evaluation with `weight` float32[B].
"""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from pad_jax.partition import FLAX, Problem, sown_routing
from pad_jax.training.optimizer import make_temperature_schedule
from pad_jax.training.state import TrainState


def train_step(
    state: TrainState,
    batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    temperature: float,
    temperature_steps: int,
    accumulate_steps: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step.

    Args:
      temperature, temperature_steps: see `make_temperature_schedule`.
      model: with `axis_name` of its own, its norms take their statistics over all replicas.
      accumulate_steps: A, microbatches that the replica's examples are split into; their gradients are averaged, so
        memory falls and the step stays the same but for batch statistics. Divides B.

    Returns:
      (new state, metrics): loss (nats per example), accuracy in [0, 1], gradient_norm, temperature.
    """
    current = make_temperature_schedule(temperature, temperature_steps)(state.step)

    def loss_fn(params, batch_stats, batch):
        variables = {'params': params, 'partition': state.masks, 'batch_stats': batch_stats}
        (logits, _), updates = model.apply(variables, batch['image'], current, train=True, mutable=['batch_stats'])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()
        correct = jnp.mean(logits.argmax(-1) == batch['label'])
        return loss, (updates.get('batch_stats', batch_stats), correct)

    def add_microbatch(carry, batch):
        gradients, batch_stats, loss, accuracy = carry
        value, found = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch_stats, batch)
        (new_loss, (batch_stats, new_accuracy)), new_gradients = value, found
        gradients = jax.tree.map(jnp.add, gradients, new_gradients)
        return (gradients, batch_stats, loss + new_loss, accuracy + new_accuracy), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    carry = (zeros, state.batch_stats, jnp.float32(0), jnp.float32(0))
    if accumulate_steps == 1:
        carry, _ = add_microbatch(carry, batch)
    else:
        # Every A-th example, not B / A in a row: so a microbatch of all replicas together, and with it the statistics
        # of norms that are synchronised, doesn't depend on the number of replicas.
        microbatches = jax.tree.map(
            lambda leaf: leaf.reshape(-1, accumulate_steps, *leaf.shape[1:]).swapaxes(0, 1), batch
        )
        carry, _ = jax.lax.scan(add_microbatch, carry, microbatches)
    gradients, batch_stats, loss, accuracy = carry
    gradients, loss, accuracy = jax.tree.map(lambda leaf: leaf / accumulate_steps, (gradients, loss, accuracy))
    if axis_name is not None:
        gradients, batch_stats, loss, accuracy = jax.lax.pmean((gradients, batch_stats, loss, accuracy), axis_name)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    metrics = {
        'loss': loss,
        'accuracy': accuracy,
        'gradient_norm': optax.tree.norm(gradients),
        'temperature': jnp.asarray(current, jnp.float32),
    }
    new_state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        optimizer_state=optimizer_state,
    )
    return new_state, metrics


def eval_step(
    state: TrainState,
    batch,
    *,
    model: nn.Module,
    temperature: float,
    temperature_steps: int,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Weighted sums over a batch: loss, correct, weight. Rows of weight 0 count in none of them.

    The temperature is that of the state's step, as the network was trained with it.
    """
    current = make_temperature_schedule(temperature, temperature_steps)(state.step)
    logits, _ = model.apply(state.variables, batch['image'], current, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    weight = batch['weight']
    sums = {
        'loss': jnp.sum(losses * weight),
        'correct': jnp.sum((logits.argmax(-1) == batch['label']) * weight),
        'weight': jnp.sum(weight),
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


@functools.lru_cache
def make_problem(model: nn.Module, scales: str) -> Problem:
    """The network as the partition sees it; equal arguments give the same object, so its jitted functions are shared.

    A scoring batch holds the scalar `temperature` besides image and label. Norms take the statistics of that batch
    and don't store them: a network that has not been trained has no running statistics worth using. (SynFlow's
    output goes through fresh ones, mean 0 and variance 1, which leave a positive network positive.)
    """

    def apply(params, gates, batch, train):
        variables = {'params': params, 'partition': gates}
        return model.apply(
            variables, batch['image'], batch['temperature'], train=train, mutable=['batch_stats', 'intermediates']
        )

    def loss(params, gates, batch):
        (logits, _), _ = apply(params, gates, batch, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()

    def output(params, gates, batch):
        (logits, _), _ = apply(params, gates, batch, train=False)
        return logits

    def routing(params, gates, batch):
        _, updates = apply(params, gates, batch, train=True)
        return sown_routing(updates['intermediates'], gates)

    return Problem(loss, FLAX[scales], output, routing)
