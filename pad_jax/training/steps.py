"""Steps of training and evaluation: pure functions, written once for one replica.

With `axis_name` they run inside pmap or shard_map over that axis and average over it; without, they stand by
themselves. A batch is a dict with the inputs of the task's network and `label` [B], in evaluation also `weight`
float32[B]. Here B counts the examples of one replica.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict

from pad_jax.layers.factors import read_routing
from pad_jax.partition import Layout, Problem, leaf_names
from pad_jax.training.optimizer import update_average
from pad_jax.training.state import Faults, TrainState
from pad_jax.training.tasks import Task, summarize_routers

PyTree = Any
ON_NONFINITE = ('stop', 'skip')
PARTNER = 'partner_label'
# Folded into a step's key for mixup: a number that no replica has.
_MIXUP_STREAM = 2**32 - 1


def train_step(
    state: TrainState,
    batch,
    *,
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    temperature: optax.Schedule | None = None,
    accumulate_steps: int = 1,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    ema_decay: float = 0.0,
    most_nonfinite: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step; if its results are not finite, only the counts of the state change.

    Args:
      model: if it has an `axis_name`, its norms and routers take their statistics over all replicas.
      temperature: attention temperature over steps, None for a network that takes none.
      accumulate_steps: A, number of microbatches that the replica's examples are split into; divides B. Their gradients
        are averaged, so memory falls. Only batch statistics and the balance of routers differ from one large step.
      label_smoothing: see `Task.losses`.
      mixup: α of mixup (arXiv:1710.09412), 0 = none; otherwise B is even.
      ema_decay: in [0, 1), of the state's average; 0 if the state keeps none.
      most_nonfinite: see `accept_finite`.

    Returns:
      (new state, metrics). `loss` is that of the task on smoothed and mixed labels, without the loss of routers. Others
      are `gradient_norm` and, where they exist, `accuracy` in [0, 1], `temperature` and those of `summarize_routers`.
    """
    current = temperature(state.step) if temperature else None
    # Random numbers differ between steps, replicas and microbatches; those of mixup only between steps.
    step_key = jax.random.fold_in(state.key, state.step)
    if mixup:
        share = jax.random.beta(jax.random.fold_in(step_key, _MIXUP_STREAM), mixup, mixup)
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

    def differentiate(batch_stats, batch, key):
        (_, (batch_stats, values)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, batch_stats, batch, key
        )
        return batch_stats, (gradients, values)

    if accumulate_steps == 1:
        batch_stats, means = differentiate(state.batch_stats, batch, step_key)
    else:
        batch_stats, means = accumulate(differentiate, state.batch_stats, batch, step_key, accumulate_steps)
    if axis_name is not None:
        batch_stats, means = jax.lax.pmean((batch_stats, means), axis_name)
    gradients, values = means
    metrics = {**values, 'gradient_norm': optax.tree.norm(gradients)}
    if temperature:
        metrics['temperature'] = jnp.asarray(current, jnp.float32)

    def learn():
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        learned = {'params': optax.apply_updates(state.params, updates), 'batch_stats': batch_stats}
        average = update_average(state.average, learned, state.step + 1, ema_decay) if ema_decay else state.average
        return {**learned, 'optimizer_state': optimizer_state, 'average': average}

    # These are means over all replicas, so all replicas decide alike.
    checked = check_finite(values['loss'], gradients, batch_stats)
    return accept_finite(state, learn, checked, most_nonfinite), metrics


def accumulate(differentiate: Callable, batch_stats: PyTree, batch, key: jax.Array, num_parts: int):
    """Call `differentiate(batch_stats, part, key) -> (batch_stats, values)` for each part; return the mean values.

    A part has every A-th example, not B / A in a row. So the part that all replicas share does not depend on their
    number. Neither do the statistics of synchronised norms.
    """
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, num_parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    _, shapes = jax.eval_shape(differentiate, batch_stats, jax.tree.map(lambda leaf: leaf[0], parts), key)

    def add(carry, part):
        batch_stats, sums = carry
        batch_stats, values = differentiate(batch_stats, part[1], jax.random.fold_in(key, part[0]))
        return (batch_stats, jax.tree.map(jnp.add, sums, values)), None

    start = batch_stats, jax.tree.map(jnp.zeros_like, shapes)
    (batch_stats, sums), _ = jax.lax.scan(add, start, (jnp.arange(num_parts), parts))
    return batch_stats, jax.tree.map(lambda leaf: leaf / num_parts, sums)


def eval_step(
    state: TrainState,
    batch,
    *,
    task: Task,
    model: nn.Module,
    temperature: optax.Schedule | None = None,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Weighted sums over a batch: loss, accuracy or number of tokens, weight. Rows of weight 0 do not count.

    The temperature is that of the state's step, which the network was trained with. If the state keeps an average, it
    replaces parameters and batch statistics. A task that collects also gets the `outputs` [B, O] of all replicas. They
    are in the order of the batch, O for an example.
    """
    current = temperature(state.step) if temperature else None
    outputs, _ = task.apply(model, state.averaged_variables, batch, current, train=False)
    weight = batch['weight']
    values = {'loss': task.losses(outputs, batch['label']), **task.hits(outputs, batch['label'])}
    if task.by_token:
        values['tokens'] = jnp.sum(batch['label'] >= 0, axis=-1)
    # where, not a product: padding rows may have any loss.
    sums = {name: jnp.sum(jnp.where(weight > 0, found * weight, 0)) for name, found in values.items()}
    sums['weight'] = jnp.sum(weight)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
        if task.collects:
            outputs = jax.lax.all_gather(outputs, axis_name, tiled=True)
    return {**sums, 'outputs': outputs} if task.collects else sums


@functools.lru_cache
def make_problem(task: Task, model: nn.Module, layout: Layout) -> Problem:
    """Present the network to the partition; equal arguments give the same object, so its jitted functions are shared.

    For a network that takes a temperature, a scoring batch also holds the scalar `temperature`. Norms use the
    statistics of that batch, because an untrained network has no useful running ones. (SynFlow's output uses mean 0 and
    variance 1, which keep a positive network positive.) Dropout is off, and routers add no noise and no loss.
    """

    def apply(params, gates, batch, train):
        variables, collections = {'params': params, 'partition': gates}, ['batch_stats', 'intermediates']
        temperature = batch.get('temperature')
        (outputs, _), updates = task.apply(model, variables, batch, temperature, train=train, mutable=collections)
        return outputs, updates

    def loss(params, gates, batch):
        outputs, _ = apply(params, gates, batch, task.scored_in_training_mode)
        return task.losses(outputs, batch['label']).mean()

    def output(params, gates, batch):
        return apply(params, gates, batch, train=False)[0]

    def routing(params, gates, batch):
        return read_routing(apply(params, gates, batch, task.scored_in_training_mode)[1]['intermediates'])

    return Problem(loss, layout, output, routing)


@jax.jit
def add_metrics(
    sums: Mapping[str, tuple], metrics: Mapping[str, jax.Array], in_a_row: jax.Array | int = 0
) -> dict[str, tuple]:
    """Add the metrics of a step to {name: (sum, number of steps)}; {} before the first. Only finite values count.

    A step that was not finite does not count, nor do those after it that changed nothing: `in_a_row` is then above 0.

    >>> sums = add_metrics(add_metrics({}, {'loss': 1.0}), {'loss': jnp.nan})
    >>> [float(value) for value in add_metrics(sums, {'loss': 3.0}, in_a_row=1)['loss']]
    [1.0, 1.0]
    """

    def add(name, value):
        total, count = sums.get(name, (0.0, 0.0))
        counts = jnp.isfinite(value) & (in_a_row == 0)
        return total + jnp.where(counts, value, 0.0), count + counts

    return {name: add(name, value) for name, value in metrics.items() if name != 'temperature'}


@functools.partial(jax.jit, static_argnums=(0, 1))
def observe_batch(task: Task, model: nn.Module, variables, batch, temperature=None):
    """Compute the mean loss of a batch, and the spread of each layer's mixing weights or values.

    Norms behave as in scoring, see `make_problem`. All-zero rows are padding and do not count.

    Returns:
      (loss, {layer: largest value − smallest value, over rows, of the entry that moves most}).
    """
    collections, spreads = ['batch_stats', 'intermediates'], {}
    (outputs, _), updates = task.apply(
        model, variables, batch, temperature, train=task.scored_in_training_mode, mutable=collections
    )
    for (*module, kind), calls in flatten_dict(updates.get('intermediates', {})).items():
        if kind in ('routing', 'values'):
            rows = jnp.concatenate(calls).astype(jnp.float32)
            rows = rows.reshape(len(rows), -1)
            counts = jnp.any(rows != 0, axis=1, keepdims=True)
            highest, lowest = (jnp.where(counts, rows, sign * jnp.inf) for sign in (-1, 1))
            spreads['/'.join(module)] = jnp.max(highest.max(0) - lowest.min(0))
    return task.losses(outputs, batch['label']).mean(), spreads


def find_constant_layers(task: Task, model: nn.Module, variables, batch, temperature=None) -> list[str]:
    """Find the dynamic layers that give every input of a batch the same parameters; see `observe_batch`."""
    spreads = jax.device_get(observe_batch(task, model, variables, batch, temperature)[1])
    return [layer for layer, spread in spreads.items() if not spread >= 1e-6]


def describe_constant_layers(constant: list[str], layers: Sequence[Mapping[str, Any]]) -> str:
    """Describe them in one line, '' without any; `layers` are those of partition.json.

    >>> layers = [{'name': 'a', 'dynamic_positions': 3}, {'name': 'b', 'dynamic_positions': 9}]
    >>> describe_constant_layers(['a'], layers)
    '1 of 2 dynamic layers, with 25 % of the dynamic positions, give every input the same parameters: a'
    """
    dynamic = {layer['name']: layer['dynamic_positions'] for layer in layers}
    found = [layer for layer in constant if dynamic.get(layer)]
    share = sum(dynamic[layer] for layer in found) / max(sum(dynamic.values()), 1)
    number = f'{len(found)} of {sum(map(bool, dynamic.values()))} dynamic layers'
    said = f'{number}, with {share:.0%} of the dynamic positions, give every input the same parameters: '
    return said.replace('%', ' %') + ', '.join(found) if found else ''


def mix_neighbours(batch, share: jax.Array | float):
    """Mix each image with its neighbour: the first with the second, the third with the fourth.

    The order of examples is random already. So the mix depends on batch and step only, not on the number of devices.

    Args:
      batch: `image` float[B, ...] and `label` [B]; B is even.
      share: λ, weight of the image itself.

    Returns:
      The batch with mixed images, and the labels of the partners as `partner_label` [B].

    >>> batch = {'image': jax.numpy.array([[0.0], [8.0]]), 'label': jax.numpy.array([1, 2])}
    >>> mixed = mix_neighbours(batch, 0.75)
    >>> mixed['image'].tolist(), mixed['partner_label'].tolist()
    ([[2.0], [6.0]], [2, 1])
    """

    def swap(rows):
        return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)

    image, label = batch['image'], batch['label']
    return {**batch, 'image': share * image + (1 - share) * swap(image), PARTNER: swap(label)}


def check_finite(loss: jax.Array, gradients: PyTree, batch_stats: PyTree) -> dict[str, jax.Array]:
    """Check the loss, each gradient, and the running statistics together: a bool by name, True = finite.

    A gradient counts by its squared norm, which is computed anyway; a norm beyond float32 is not finite either. Updates
    are not checked, because that would take another pass over all parameters: see `find_nonfinite`.

    >>> found = check_finite(jnp.float32(1), {'a': jnp.ones(2), 'b': jnp.array([1, jnp.inf])}, {})
    >>> [name for name, is_finite in found.items() if not is_finite]
    ['the gradient of b']
    """
    squares = (jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients))
    names = (f'the gradient of {name}' for name in leaf_names(gradients))
    statistics = jnp.concatenate([jnp.zeros(0), *map(jnp.ravel, jax.tree.leaves(batch_stats))])
    found = {'the loss': loss, **dict(zip(names, squares, strict=True)), 'a running statistic': statistics}
    return {name: jnp.all(jnp.isfinite(values)) for name, values in found.items()}


def accept_finite(
    state: TrainState, learn: Callable[[], dict[str, PyTree]], checked: dict[str, jax.Array], most_in_a_row: int
) -> TrainState:
    """Return the state after a step; if anything is not finite, only its counts change.

    Args:
      learn: returns the new values of `TrainState.learned`. A branch, not a choice between two finished states: that
        would read and write all parameters once more.
      checked: of `check_finite`, equal on all replicas.
      most_in_a_row: at least 1. After so many such steps the state does not change any more, until a host looks.
    """
    faults, is_finite = state.faults, jnp.stack(list(checked.values()))
    is_sound = jnp.all(is_finite)
    runs = faults.in_a_row < most_in_a_row
    fails = runs & ~is_sound
    counted = Faults(
        skipped=faults.skipped + fails,
        in_a_row=jnp.where(runs & is_sound, 0, faults.in_a_row + fails),
        first=jnp.where(fails, jnp.argmin(is_finite).astype(jnp.int32), faults.first),
    )
    learned = jax.lax.cond(runs & is_sound, learn, lambda: state.learned)
    return state.replace(step=state.step + runs, faults=counted, **learned)


def find_nonfinite(state: TrainState) -> str | None:
    """Path of the first parameter, running statistic or optimizer value that is not finite, of a state on the host.

    >>> ones = np.ones(2, np.float32)
    >>> state = TrainState(0, {'a': ones, 'b': {'c': ones / 0}}, {}, {}, (), None, 0)
    >>> find_nonfinite(state)
    'params/b/c'
    """
    leaves = zip(leaf_names(state.learned), jax.tree.leaves(state.learned), strict=True)
    return next((name for name, leaf in leaves if not np.all(np.isfinite(leaf))), None)
