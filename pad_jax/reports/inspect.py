"""Inspection of one run: its partition and costs, the location of dynamic positions, and its variation over inputs.

Variation is measured on held-out examples. For an input x a layer uses the parameters Ŵ(x) = Σ_k π_k(x)·D_k + S.

    D_k = λd·mask·W_k       S = λs·(1 − mask)·static

They are never computed. With the Gram matrix G = [<D_i, D_j>],

    variance over inputs    Σ Var Ŵ = tr(Cov(π)·G)
    mean square             Σ E Ŵ² = tr(E[π·πᵀ]·G) + |S|²

because <D_k, S> is zero: a position is either dynamic or static. N counts inputs: examples, or tokens in a mixture.
"""

import collections
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from pad_jax.data import open_tokens
from pad_jax.errors import BadInput
from pad_jax.layers import find_records
from pad_jax.models import LayerCount, count_layers, report_counts, sum_multiply_adds
from pad_jax.partition import Part, PartialParameter, leaf_names
from pad_jax.partition.layout import read_part
from pad_jax.reports.plots import plot_dynamic_fractions, save_figure
from pad_jax.reports.runs import Partition, read_partition
from pad_jax.reports.tables import format_count, format_fraction, make_table, print_line, print_table
from pad_jax.training.config import is_language, read_workdir_config
from pad_jax.training.evaluate import RestoredRun, restore_run
from pad_jax.training.setup import (
    abstract_variables,
    account_network,
    find_tokens,
    make_inputs,
    make_model,
    make_task,
    open_source,
)
from pad_jax.training.steps import describe_constant_layers, find_constant_layers
from pad_jax.training.tasks import Task
from pad_jax.training.workdir import describe_classes

if TYPE_CHECKING:
    from rich.table import Table

Batch = Mapping[str, np.ndarray]
MAX_EXAMPLES, MAX_TOKENS = 1024, 2**17
"""Held-out examples or their tokens to measure, which give a variance to a few per cent."""
SHOWN_TOKENS, SHOWN_EXPERTS = 20, 8
"""The most frequent tokens whose routing is shown, and the experts that are compared in pairs."""


class LayerMeasures(NamedTuple):
    """Measures of one parameter that is mixed from K factors for each input.

    Attributes:
      num_factors: K.
      dynamic: variance over inputs / mean square of the parameter at its dynamic positions.
      whole: the same for all positions.
      entropy: mean over inputs of the entropy of the mixing weights, as a share of the largest, log K.
      mean_entropy: the same for the mean mixing weights.
      load: the largest mean mixing weight as a share of all, in [1 / K, 1].
      similarity: mean over pairs of factors of their cosine at dynamic positions.
    """

    num_factors: int
    dynamic: float
    whole: float
    entropy: float
    mean_entropy: float
    load: float
    similarity: float


def inspect_workdir(workdir: Path, overrides: Sequence[str] = ()) -> None:
    """Print the partition of a run, its costs, the location of dynamic positions and the variation over inputs.

    Also writes partition.png to workdir. Without a checkpoint or the data, a line explains which parts are left out.

    Args:
      workdir: folder of the run.
      overrides: 'section.key=value' for keys that may change on resume, as data.path for data that has moved.

    Raises:
      BadInput: if workdir holds no run or cannot be written.
    """
    config = read_workdir_config(workdir, overrides)
    partition = read_partition(workdir)
    layers = account_network(config, count_partition(config, partition, workdir))
    print_table(tabulate_partition(partition, f'Partition of {workdir}'))
    print_table(tabulate_accounts(layers, partition))
    if not partition['layers']:
        print_line('The network has no dynamic layers.')
        return
    if partition['rounds_done'] < partition['rounds']:
        print_line(f'{partition["rounds_done"]} of {partition["rounds"]} rounds of the partition are done.')
    save_figure(plot_dynamic_fractions({workdir.name: [partition]}), workdir / 'partition.png')
    print_line(f'Picture: {workdir / "partition.png"}')
    try:
        run = restore_run(workdir, overrides)
    except BadInput as error:
        print_line(f'Left out, without a checkpoint: location and variation ({error})')
        return
    if run.temperature is not None:
        print_line(f'Temperature of the attention: {run.temperature:.4g}, at step {int(run.state.step)}')
    records = find_records(make_model(config), *make_inputs(config))
    if jax.tree.leaves(run.state.masks):
        print_table(tabulate_locations(jax.device_get(run.state.masks), records))
    try:
        batches = read_held_out(run, workdir)
    except BadInput as error:
        print_line(f'Left out, as the data cannot be read: variation over inputs ({error})')
        return
    task, model, variables = make_task(config), make_model(config), run.state.averaged_variables
    constant = find_constant_layers(task, model, variables, join_batches(batches), run.temperature)
    if said := describe_constant_layers(constant, partition['layers']):
        print_line(f'{said}.')
    weights = observe_weights(task, model, variables, batches, run.temperature)
    measures = measure_network(variables, records, weights)
    num_examples = int(sum(batch['weight'].sum() for batch in batches))
    print_table(tabulate_measures(measures, f'Variation over {num_examples:,} held-out examples'))
    if is_language(config):
        tokens = np.concatenate([batch['tokens'][_find_inputs(batch)] for batch in batches])
        print_table(tabulate_routing(tokens, weights, open_tokens(find_tokens(config, workdir)).decode))
        print_table(tabulate_experts(variables, records, weights, are_whole=config.model.ffn == 'ffn'))


def count_partition(config, partition: Partition, workdir: Path) -> list[LayerCount]:
    """Count every layer of a config's network with the dynamic positions of partition.json.

    Raises:
      BadInput: if partition.json in workdir has other layers than the network.
    """
    variables = abstract_variables(make_model(config), make_inputs(config))
    found = {layer['name']: layer['dynamic_positions'] for layer in partition['layers']}
    # A layer has one mask, whose path is that of the layer and the parameter's name.
    num_dynamic = {path: found.get(path.rpartition('/')[0]) for path in leaf_names(variables.get('partition', {}))}
    counted = [] if None in num_dynamic.values() else count_layers(variables, num_dynamic)
    sizes = {layer.name: (layer.positions, layer.dynamic_positions) for layer in counted if layer.num_factors}
    if sizes != {layer['name']: (layer['positions'], layer['dynamic_positions']) for layer in partition['layers']}:
        raise BadInput(f'{workdir / "partition.json"} is damaged: its layers are not those of the network')
    return counted


def read_held_out(run: RestoredRun, workdir: Path) -> list[Batch]:
    """Read about MAX_EXAMPLES evaluation examples of a run, or fewer with MAX_TOKENS.

    Raises:
      BadInput: if its data is missing or has other classes.
    """
    source = open_source(run.config, workdir)
    differing = describe_classes(run.record.class_names, source.spec.class_names)
    if differing:
        raise BadInput(f'the run in {workdir} was trained on other classes than this data has ({differing[0]})')
    # Take the first few of every batch, because neighbours may have the same class.
    most = max(1, min(MAX_EXAMPLES, MAX_TOKENS // run.config.data.get('max_length', 1)))
    num_rows = min(source.batch_size, max(1, most // max(source.num_eval_batches, 1)))
    every = max(1, source.num_eval_batches // most)
    return list(itertools.islice(source.eval_batches(rows=slice(0, num_rows)), 0, None, every))


def join_batches(batches: Sequence[Batch], least: int = 64) -> Batch:
    """Join the first batches of equal shapes, of at least 64 rows if there are as many: a large split has one each.

    >>> join_batches([{'label': np.zeros(1)}, {'label': np.zeros(2)}, {'label': np.ones(1)}])['label'].tolist()
    [0.0, 1.0]
    """
    shapes = [jax.tree.map(np.shape, batch) for batch in batches]
    alike = [batch for batch, shape in zip(batches, shapes, strict=True) if shape == shapes[0]]
    alike = alike[: -(-least // len(alike[0]['label']))]
    return {name: np.concatenate([batch[name] for batch in alike]) for name in alike[0]}


def observe_weights(
    task: Task, model, variables: Mapping[str, Any], batches: Iterable[Batch], temperature: float | None = None
) -> dict[str, np.ndarray]:
    """Observe the mixing weights of every dynamic layer, float64[N, K], for evaluation batches with `weight`.

    `variables` are in masked storage. The temperature is that of the attention, None for a network without it.
    """
    weights = collections.defaultdict(list)
    for batch in batches:
        inputs = {name: batch[name] for name in (*task.inputs, 'weight')}
        for name, (found, is_input) in jax.device_get(_observe(task, model, variables, inputs, temperature)).items():
            weights[name].append(np.asarray(found, np.float64)[is_input])
    return {name: np.concatenate(found) for name, found in weights.items()}


def measure_network(
    variables: Mapping[str, Any], records: Mapping, weights: Mapping[str, np.ndarray]
) -> dict[str, LayerMeasures]:
    """Measure every dynamic layer, from variables in masked storage and the weights of `observe_weights`."""
    measured = {}
    for name, record, part, mask in _walk_parts(variables, records):
        if not record.generated:
            stack = float(part.dynamic_scale) * np.asarray(part.dynamic, np.float64) * mask
            static = float(part.static_scale) * np.asarray(part.static, np.float64) * ~mask
            stack = stack.reshape(len(stack), -1)
            measured[name] = measure_mixture(stack @ stack.T, float(np.sum(np.square(static))), weights[name])
    return measured


def _walk_parts(variables, records) -> Iterator[tuple[str, PartialParameter, Part, np.ndarray]]:
    """Iterate over (module, record, part, mask) of all partially or fully dynamic parameters in masked storage."""
    variables = jax.device_get(dict(variables))
    masks = traverse_util.flatten_dict(variables.get('partition', {}), sep='/')
    for path, record in traverse_util.flatten_dict(records, sep='/').items():
        *module, _ = path.split('/')
        part = read_part(record, functools.reduce(operator.getitem, module, variables['params']))
        yield '/'.join(module), record, part, masks.get(path, np.True_)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe(task, model, variables, batch, temperature):
    """Run a batch and return {name: (mixing weights float[N, K], is_input bool[N])}."""
    _, updates = task.apply(model, variables, batch, temperature, train=False, mutable=['intermediates'])
    examples, found = batch['weight'] > 0, {}
    for (*module, kind), sown in traverse_util.flatten_dict(updates['intermediates']).items():
        if kind == 'routing':
            is_token = len(sown[0]) != len(examples)
            found['/'.join(module)] = sown[0], _find_inputs(batch).reshape(-1) if is_token else examples
    return found


def _find_inputs(batch):
    """Return bool[B, T], True for valid tokens of examples."""
    return batch['valid'] & (batch['weight'] > 0)[:, None]


def measure_mixture(gram: np.ndarray, static_square: float, weights: np.ndarray) -> LayerMeasures:
    """Measure a parameter that is mixed from factors; NaN stands for 0 / 0.

    Args:
      gram: float64[K, K], G.
      static_square: |S|².
      weights: float64[N, K], none negative. The entropy of weights that do not sum to one is that of their shares.

    >>> found = measure_mixture(np.eye(2), 1.0, np.eye(2))  # two inputs, each with one factor, beside a static 1
    >>> found.dynamic, found.whole, found.similarity  # (1, 0) and (0, 1): ½ of 1, and of 2
    (0.5, 0.25, 0.0)
    """

    def divide(part, whole):
        return float(part / whole) if whole > 0 else math.nan

    def measure_entropy(weights):
        shares = weights / weights.sum(axis=-1, keepdims=True)
        return -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=-1)

    mean, second = weights.mean(axis=0), weights.T @ weights / len(weights)
    variance, square = max(np.sum((second - np.outer(mean, mean)) * gram), 0.0), np.sum(second * gram)
    lengths, num_factors = np.sqrt(np.diagonal(gram)), len(gram)
    cosines = np.sum(gram / np.outer(lengths, lengths)) - num_factors if lengths.all() else math.nan
    return LayerMeasures(
        num_factors,
        dynamic=divide(variance, square),
        whole=divide(variance, square + static_square),
        entropy=divide(measure_entropy(weights).mean(), math.log(num_factors)),
        mean_entropy=divide(measure_entropy(mean), math.log(num_factors)),
        load=float(mean.max() / mean.sum()),
        similarity=divide(cosines, num_factors * (num_factors - 1)),
    )


def tabulate_partition(partition: Partition, title: str) -> 'Table':
    """Tabulate each dynamic layer, the other layers, and the totals."""
    columns = ['positions', 'dynamic positions', 'κ', 'dynamic share', 'parameters']

    def list_counts(counts):
        fractions = [format_fraction(counts[name]) for name in ('dynamic_fraction', 'dynamic_share')]
        positions = [f'{counts[name]:,}' for name in ('positions', 'dynamic_positions')]
        return [*positions, *fractions, f'{counts["parameters"]:,}']

    table = make_table(title, ['layer', 'granularity'], columns)
    for layer in partition['layers']:
        table.add_row(layer['name'], layer['granularity'], *list_counts(layer))
    totals = partition['totals']
    others = totals['parameters'] - sum(layer['parameters'] for layer in partition['layers'])
    table.add_row('other layers', '', '', '', '', '', f'{others:,}')
    table.add_section()
    table.add_row('total', '', *list_counts(totals), style='bold')
    return table


def tabulate_accounts(layers: Sequence[LayerCount], partition: Partition) -> 'Table':
    """Tabulate stored parameters and multiply-adds of each dynamic layer, the other layers, and the totals."""

    def list_costs(layers: Sequence[LayerCount]) -> Iterator[str]:
        parameters = report_counts(layers)['parameters']
        yield f'{parameters + sum(layer.dead_parameters for layer in layers):,}'
        yield f'{parameters:,}'
        yield from map(format_count, sum_multiply_adds(layers))

    columns = ['stored masked', 'stored compact', '× dense', '× masked', '× compact']
    table = make_table('Parameters stored, and multiply-adds (×) of one example', ['layer'], columns)
    by_name = {layer.name: layer for layer in layers}
    for layer in partition['layers']:
        table.add_row(layer['name'], *list_costs([by_name.pop(layer['name'])]))
    table.add_row('other layers', *list_costs(list(by_name.values())))
    table.add_section()
    table.add_row('total', *list_costs(layers), style='bold')
    return table


def tabulate_locations(masks: Mapping[str, Any], records: Mapping) -> 'Table':
    """Tabulate outputs and inputs that are static or dynamic as a whole, and κ of the taps, of each layer.

    Args:
      masks: nested dict of masks that broadcast against [*taps, C, F].
      records: of the same parameters. Generated parameters have no inputs and are left out.
    """
    columns = ['outputs', 'static', 'dynamic', 'inputs', 'static', 'dynamic', 'κ of taps']
    table = make_table('Outputs and inputs that are static or dynamic as a whole', ['layer'], columns)
    records = traverse_util.flatten_dict(records)
    for path, mask in traverse_util.flatten_dict(masks).items():
        if records[path].generated:
            continue
        whole = np.broadcast_to(mask, records[path].shape)
        whole = whole.reshape(-1, *whole.shape[-2:])
        cells = []
        for fractions in (whole.mean(axis=(0, 1)), whole.mean(axis=(0, 2))):
            cells += [f'{fractions.size:,}', *(f'{np.sum(fractions == end):,}' for end in (0, 1))]
        by_tap = whole.mean(axis=(1, 2))
        low, high = format_fraction(by_tap.min()), format_fraction(by_tap.max())
        table.add_row('/'.join(path[:-1]), *cells, low if low == high else f'{low} – {high}')
    return table


def tabulate_measures(measures: Mapping[str, LayerMeasures], title: str) -> 'Table':
    """Tabulate the variation, the mixing weights and the similarity of the factors of each layer."""
    columns = ['K', 'Ŵ, dynamic', 'Ŵ, all', 'entropy', 'of the mean', 'load', 'cosine']
    table = make_table(title, ['layer'], columns)
    for name, (num_factors, *values) in measures.items():
        table.add_row(name, str(num_factors), *('–' if math.isnan(value) else f'{value:.3g}' for value in values))
    table.caption = (
        'Ŵ: variance over inputs / mean square · entropy of the weights / log K · load: largest mean weight / all · '
        'cosine of the factors'
    )
    return table


def tabulate_routing(tokens: np.ndarray, weights: Mapping[str, np.ndarray], decode: Callable[[list[int]], str]):
    """Tabulate, for the most frequent of the tokens int[N], the expert with the largest share of their weights."""
    table = make_table('Routing of frequent tokens: expert with the largest share', ['token'], ['count', *weights])
    found, counts = np.unique(tokens, return_counts=True)
    for token, count in sorted(zip(found.tolist(), counts), key=lambda pair: -pair[1])[:SHOWN_TOKENS]:
        sums = [values[tokens == token].sum(axis=0) for values in weights.values()]
        shares = [f'{one.argmax()}: {format_fraction(one.max() / one.sum())}' for one in sums]
        text = decode([token])
        table.add_row(repr(text) if text else f'token {token}', f'{count:,}', *shares)
    return table


def tabulate_experts(variables, records: Mapping, weights: Mapping[str, np.ndarray], are_whole: bool) -> 'Table':
    """Tabulate the similarity of the dynamic neurons of experts, and the load of each expert.

    Only whole experts have neurons: `are_whole` is False for mixtures of linear layers.
    """
    table = make_table('Experts', ['layer'], ['cosine', 'aligned', 'of noise', 'load of each expert'])
    for name, record, part, mask in _walk_parts(variables, records):
        neurons = np.asarray(part.dynamic, np.float64)[..., np.broadcast_to(mask, record.shape).all(axis=0)]
        cells, load = ['–'] * 3, weights[name].sum(axis=0)
        if are_whole and record.granularity != 'element' and len(neurons) > 1 and neurons.size:
            noise = np.random.default_rng(0).normal(size=neurons[:2].shape)
            cells = [f'{value:.3g}' for value in (*compare_neurons(neurons), compare_neurons(noise)[1])]
        table.add_row(name, *cells, ' '.join(f'{share:.2f}' for share in load / load.sum()))
    table.caption = (
        'cosine: mean over neurons of two experts · aligned: the same, neurons assigned one to one · of noise: aligned '
        'random numbers · –: left out, because whole neurons are missing'
    )
    return table


def compare_neurons(experts: np.ndarray) -> tuple[float, float]:
    """Return the mean cosine of neurons, the columns of experts float[E, R, F], in place and assigned one to one.

    >>> one = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> compare_neurons(np.stack([one, one[:, ::-1]]))  # the same neurons in another order
    (0.0, 1.0)
    """
    from scipy.optimize import linear_sum_assignment

    unit, found = experts / np.maximum(np.linalg.norm(experts, axis=1, keepdims=True), 1e-300), []
    for one, other in itertools.combinations(unit[:SHOWN_EXPERTS], 2):
        cosines = one.T @ other
        assigned = linear_sum_assignment(cosines, maximize=True)
        found.append((np.diagonal(cosines).mean(), cosines[assigned].mean()))
    return tuple(np.mean(found, axis=0).tolist())
