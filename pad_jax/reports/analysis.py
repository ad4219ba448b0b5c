"""What a trained network does with its inputs: how much its parameters and outputs vary, and how it routes.

Measured on held-out examples, of the newest checkpoint and of the network that the run began with, all of whose
positions were dynamic.

Legend: B examples, T sequence length, N inputs of a layer (examples, or tokens of them), K factors.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.data import TextSource
from pad_jax.errors import BadInput
from pad_jax.layers.conv_layer import ConvLayer
from pad_jax.layers.mixture import Mixture
from pad_jax.partition import scale_factors
from pad_jax.partition.counting import FACTORS
from pad_jax.partition.problem import GENERATED
from pad_jax.reports.locations import Location, locate_masks
from pad_jax.reports.variation import (
    CoordinateSums,
    RoutingSums,
    Variation,
    measure_cosines,
    measure_entropy,
    measure_mixture,
    measure_values,
    sum_routing,
)
from pad_jax.training.evaluate import RestoredRun
from pad_jax.training.rounds import to_masked_storage
from pad_jax.training.setup import (
    make_inputs,
    make_model,
    make_run_optimizer,
    make_task,
    make_temperature,
    measure_lengths,
    open_source,
    start_from_pretrained,
)
from pad_jax.training.state import init_state
from pad_jax.training.tasks import Task
from pad_jax.training.workdir import describe_classes

Batch = Mapping[str, np.ndarray]
MOST_EXAMPLES = 1024
"""Held-out examples, spread over all there are: a variance of so many is known to a few per cent."""


@dataclasses.dataclass(frozen=True)
class LayerMeasures:
    """One parameter that is mixed or generated anew for each input.

    Attributes:
      name: of its layer.
      num_factors: K; 0 where it is generated.
      parameters: how much it varies.
      outputs: how much the layer's outputs do: variance over inputs / mean square, summed over coordinates; NaN for a
        parameter that is generated, which is part of another layer.
      entropy: mean over inputs of that of the routing weights, in nats; NaN where it is generated, as are the next.
      mean_entropy: that of the mean routing weights, in nats.
      similarity: mean over pairs of factors of the cosine of their dynamic positions.
    """

    name: str
    num_factors: int
    parameters: Variation
    outputs: float
    entropy: float
    mean_entropy: float
    similarity: float

    def share_of_most(self, entropy: float) -> float:
        """An entropy as a share of the largest, log K; NaN for one factor alone."""
        return entropy / math.log(self.num_factors) if self.num_factors > 1 else float('nan')


def locate_run(run: RestoredRun) -> list[Location]:
    """Where the dynamic positions of a run's newest checkpoint lie; [] where none are static."""
    state = to_masked_storage(run.replicas.fetch(run.state))
    return locate_masks(jax.device_get(state.masks), state.params)


def read_held_out(run: RestoredRun, workdir: Path) -> list[Batch]:
    """Evaluation examples of a run, about MOST_EXAMPLES.

    Raises:
      BadInput: when its data is gone, or has other classes.
    """
    source = open_source(run.config, workdir)
    differing = describe_classes(run.record.class_names, source.spec.class_names)
    if differing:
        raise BadInput(f'the run in {workdir} was trained on other classes than this data has ({differing[0]})')
    return list(_spread_batches(source))


def measure_run(run: RestoredRun, batches: Iterable[Batch]) -> dict[str, LayerMeasures]:
    """The dynamic layers of a run's newest checkpoint, by name."""
    state = to_masked_storage(run.replicas.fetch(run.state))
    return _measure(run, batches, state.averaged_variables, state.step, train=False)


def measure_start(run: RestoredRun, batches: Iterable[Batch]) -> dict[str, LayerMeasures]:
    """The same of the network that the run began with, all of whose positions were dynamic.

    Raises:
      BadInput: when it began with weights that are gone.
    """
    config, model = run.config, make_model(run.config)
    lengths = measure_lengths(config, run.record.num_train)
    start = init_state(model, make_run_optimizer(config, lengths), make_inputs(config), config.train.seed)
    start, _ = start_from_pretrained(config, model, start)
    # Norms have no statistics of their own yet: see `steps.make_problem`.
    train = make_task(config).scored_in_training_mode
    return _measure(run, batches, start.variables, start.step, train=train)


def _measure(run, batches, variables, step, train):
    temperature = make_temperature(run.config, measure_lengths(run.config, run.record.num_train))
    return measure_network(
        make_task(run.config),
        make_model(run.config),
        variables,
        batches=batches,
        scales=run.config.partition.scales,
        temperature=temperature(step) if temperature else None,
        train=train,
    )


def _spread_batches(source) -> Iterator[Batch]:
    # Of every batch the first few, as those of a class may be adjacent.
    if isinstance(source, TextSource):
        num_batches = sum(math.ceil(len(texts) / source.batch_size) for texts in source.eval.values())
    else:
        num_batches = math.ceil(source.num_eval_listed / source.batch_size)
    num_rows = min(source.batch_size, max(1, MOST_EXAMPLES // max(num_batches, 1)))
    return source.eval_batches(rows=slice(0, num_rows))


def measure_network(
    task: Task,
    model,
    variables: Mapping[str, Any],
    *,
    batches: Iterable[Batch],
    scales: str,
    temperature: jax.Array | float | None = None,
    train: bool = False,
) -> dict[str, LayerMeasures]:
    """Every dynamic layer by name, in the order of the params.

    Args:
      variables: in the masked form.
      batches: of evaluation, with `weight`.
      scales: which scale factors the network uses.
      train: whether norms take the statistics of a batch.
    """
    routing: dict[str, RoutingSums] = {}
    coordinates: dict[str, CoordinateSums] = {}
    for batch in batches:
        inputs = {name: batch[name] for name in (*task.inputs, 'weight')}
        found = jax.device_get(_observe(task, model, train, variables, inputs, temperature))
        for name, (weights, counts) in found['routing'].items():
            _add(routing, name, sum_routing(weights, counts))
        for name, sums in found['coordinates'].items():
            _add(coordinates, name, CoordinateSums(*(np.asarray(leaf, np.float64) for leaf in sums)))
    masks = variables.get('partition', {})
    return dict(_measure_layers(jax.device_get((variables['params'], masks)), routing, coordinates, scales, ()))


def _add(sums: dict, name: str, more) -> None:
    sums[name] = type(more)(*map(np.add, sums[name], more)) if name in sums else more


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _observe(task, model, train, variables, batch, temperature):
    """{'routing': name -> (float[N, K], bool[N]), 'coordinates': name -> sums of the outputs, or of what is generated}.

    Sums over a batch are float32, and of the outputs nothing else leaves the device.
    """
    _, updates = task.apply(
        model,
        variables,
        batch,
        temperature,
        train=train,
        capture_intermediates=lambda module, method: method == '__call__' and isinstance(module, (ConvLayer, Mixture)),
        mutable=['intermediates', 'batch_stats'],
    )
    examples = batch['weight'] > 0
    found = {'routing': {}, 'coordinates': {}}

    def sum_rows(rows, counts):
        rows = jnp.where(counts[:, None], rows.reshape(len(counts), -1).astype(jnp.float32), 0)
        return CoordinateSums(jnp.sum(counts.astype(jnp.float32)), jnp.sum(rows, axis=0), jnp.sum(rows**2, axis=0))

    def visit(sown, path):
        name = '/'.join(path)
        if 'values' in sown:
            found['coordinates'][name] = sum_rows(jnp.concatenate(sown['values']), examples)
        if 'routing' in sown:
            (weights,), (y,) = sown['routing'], sown['__call__']
            counts = examples
            if isinstance(y, tuple):  # of a mixture: y of every token, and aux
                counts, (y, _) = (batch['valid'] & examples[:, None]).reshape(-1), y
            found['routing'][name] = weights, counts
            found['coordinates'][name] = sum_rows(y, counts)
        for below, deeper in sown.items():
            if isinstance(deeper, Mapping):
                visit(deeper, (*path, below))

    visit(updates['intermediates'], ())
    return found


def _measure_layers(trees, routing, coordinates, scales, path) -> Iterator[tuple[str, LayerMeasures]]:
    params, masks = trees
    name = '/'.join(path)
    factors = next((factors for factors in FACTORS if factors in params), None)
    if name in coordinates and factors:
        mask = masks.get(factors)
        dynamic_scale, static_scale = scale_factors(params['phi'], scales) if 'phi' in params else (1.0, 1.0)
        gates = np.float64(dynamic_scale) * (1 if mask is None else np.asarray(mask, np.float64))
        static_square = 0.0
        if f'static_{factors}' in params:
            static = np.asarray(params[f'static_{factors}'], np.float64)
            static_square = float(np.sum((float(static_scale) * ~mask * static) ** 2))
        if factors == GENERATED:
            shape = params[factors].shape[1:]
            sums = CoordinateSums(coordinates[name].count, *(leaf.reshape(shape) for leaf in coordinates[name][1:]))
            nothing = float('nan')
            yield (
                name,
                LayerMeasures(name, 0, measure_values(sums, gates, static_square), nothing, nothing, nothing, nothing),
            )
        else:
            # K masked copies in float64: what is as large as a few parameters of one layer is soon gone.
            stack = (np.asarray(params[factors], np.float64) * gates).reshape(len(params[factors]), -1)
            gram, sums = stack @ stack.T, routing[name]
            yield (
                name,
                LayerMeasures(
                    name,
                    len(gram),
                    measure_mixture(gram, static_square, sums),
                    coordinates[name].share(),
                    float(sums.entropy / sums.count),
                    measure_entropy(sums.weights),
                    measure_cosines(gram),
                ),
            )
    for below in params:
        if isinstance(params[below], Mapping):
            deeper = params[below], masks.get(below, {})
            yield from _measure_layers(deeper, routing, coordinates, scales, (*path, below))
