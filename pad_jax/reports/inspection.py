"""The partition of one run, layer by layer, and what it saves."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from pad_jax.errors import BadInput
from pad_jax.models import LayerAccount, sum_multiply_adds
from pad_jax.partition import LayerCount, count_layers, leaf_names
from pad_jax.reports.analysis import LayerMeasures, locate_run, measure_run, measure_start, read_held_out
from pad_jax.reports.analysis_plots import plot_locations, plot_measures
from pad_jax.reports.locations import Location
from pad_jax.reports.network_forms import make_forms, measure_cost
from pad_jax.reports.plots import plot_partition, save_figure
from pad_jax.reports.runs import Partition, read_partition
from pad_jax.reports.tables import format_count, format_fraction, make_table, print_line, print_table
from pad_jax.training.config import read_workdir_config
from pad_jax.training.evaluate import restore_run
from pad_jax.training.setup import abstract_variables, account_network, make_example, make_inputs, make_model

Measures = Mapping[str, LayerMeasures]


def inspect_workdir(workdir: Path, overrides: Sequence[str] = ()) -> None:
    """Prints the partition of a run, what it saves, where it lies and how much the network varies over inputs.

    Pictures of them are written to WORKDIR as partition.png, locations.png and variation.png. What needs a checkpoint
    or the data is left out where there is none, with a line that says why.

    Args:
      overrides: 'section.key=value' for keys that are free on resume, as data.path where the data has moved.

    Raises:
      BadInput: if workdir holds no run, or can't be written.
    """
    config = read_workdir_config(workdir, overrides)  # refuses what is not the workdir of a run
    partition = read_partition(workdir)
    layers = count_partition(config, partition)
    if layers is None:
        raise BadInput(f'{workdir / "partition.json"} is damaged: its layers are not those of the network')
    print_table(tabulate_partition(partition, f'Partition of {workdir}'))
    if partition['layers']:
        print_table(tabulate_accounts(account_network(config, layers), partition))
    print_table(tabulate_forms(config, layers))
    if not partition['layers']:
        print_line('The network has no dynamic layers: there is nothing to draw.')
        return
    if partition['rounds_done'] < partition['rounds']:
        print_line(f'{partition["rounds_done"]} of {partition["rounds"]} rounds of the partition are done.')
    _save(plot_partition(partition), workdir / 'partition.png')
    _analyse(workdir, overrides, [layer['name'] for layer in partition['layers']])


def _analyse(workdir: Path, overrides: Sequence[str], names: Sequence[str]) -> None:
    """What only the checkpoint knows, and what only the data; `names` of the dynamic layers, in their order."""
    try:
        run = restore_run(workdir, overrides)
    except BadInput as error:
        print_line(f'Left out is what needs a checkpoint: {error}')
        return
    locations = sorted(locate_run(run), key=lambda location: names.index(location.name))
    if locations:
        print_table(tabulate_locations(locations))
        _save(plot_locations(locations), workdir / 'locations.png')
    try:
        batches = read_held_out(run, workdir)
    except BadInput as error:
        print_line(f'Left out is what varies over inputs, which needs the data: {error}')
        return
    try:
        before = measure_start(run, batches)
    except BadInput as error:
        print_line(f'Left out is what the run began with: {error}')
        before = {}
    now = measure_run(run, batches)
    now = {name: now[name] for name in names}
    num_examples = int(sum(batch['weight'].sum() for batch in batches))
    print_table(tabulate_variation(now, before, f'Variance over {num_examples:,} held-out examples / mean square'))
    print_table(tabulate_routing(now, before))
    _save(plot_measures(now, before), workdir / 'variation.png')


def _save(figure: Figure, path: Path) -> None:
    save_figure(figure, path)
    print_line(f'Picture: {path}')


def count_partition(config, partition: Partition) -> list[LayerCount] | None:
    """Every layer of a config's network with the dynamic positions that partition.json says; None if it has others."""
    variables = abstract_variables(make_model(config), make_inputs(config))
    found = {layer['name']: layer['dynamic_positions'] for layer in partition['layers']}
    # A layer has one mask, whose path is its own and the parameter's name.
    num_dynamic = {path: found.get(path.rpartition('/')[0]) for path in leaf_names(variables.get('partition', {}))}
    if None in num_dynamic.values():
        return None
    counted = count_layers(variables, num_dynamic)
    sizes = {layer.name: (layer.positions, layer.dynamic_positions) for layer in counted if layer.num_factors}
    said = {layer['name']: (layer['positions'], layer['dynamic_positions']) for layer in partition['layers']}
    return counted if sizes == said else None


def tabulate_partition(partition: Partition, title: str) -> Table:
    """One row a dynamic layer, one for everything else, and the totals."""
    columns = ['positions', 'dynamic positions', 'κ', 'dynamic share', 'parameters']
    table = make_table(title, ['layer', 'granularity'], columns)
    for layer in partition['layers']:
        table.add_row(layer['name'], layer['granularity'], *_counts(layer))
    totals = partition['totals']
    rest = totals['parameters'] - sum(layer['parameters'] for layer in partition['layers'])
    table.add_row('other layers', '', '', '', '', '', f'{rest:,}')
    table.add_section()
    table.add_row('total', '', *_counts(totals), style='bold')
    return table


def tabulate_accounts(accounts: Sequence[LayerAccount], partition: Partition) -> Table:
    """What each dynamic layer stores and multiplies, one for everything else, and the totals."""
    columns = ['stored masked', 'stored compact', '× dense', '× masked', '× compact']
    table = make_table('Parameters stored, and multiply-adds (×) of one example', ['layer'], columns)
    by_name = {account.count.name: account for account in accounts}
    dynamic = [by_name.pop(layer['name']) for layer in partition['layers']]
    for account in dynamic:
        table.add_row(account.count.name, *_costs([account]))
    table.add_row('other layers', *_costs(by_name.values()))
    table.add_section()
    table.add_row('total', *_costs(accounts), style='bold')
    return table


def tabulate_forms(config, layers: Sequence[LayerCount]) -> Table:
    """The network as it can be stored, with what XLA counts of each program."""
    columns = ['parameters', 'multiply-adds', "XLA's multiply-adds", "XLA's bytes moved"]
    table = make_table('The network, one example forward', ['form'], columns)
    products = sum_multiply_adds(account.multiply_adds for account in account_network(config, layers))
    counted = products._asdict() | {'static': products.dense, 'fully dynamic': products.masked}
    for name, form in make_forms(config, layers).items():
        cost = measure_cost(form, make_example(config))
        cells = ['unknown'] * 2 if cost is None else map(format_count, cost)
        table.add_row(name, f'{form.num_parameters:,}', format_count(counted[name]), *cells)
    return table


def tabulate_locations(locations: Iterable[Location]) -> Table:
    """How many outputs and inputs of each layer have no dynamic position or nothing else, and κ of the places."""
    columns = ['outputs', 'static', 'dynamic', 'inputs', 'static', 'dynamic', 'κ of places']
    title = 'Where dynamic positions lie, and how many outputs and inputs are static or dynamic as a whole'
    table = make_table(title, ['layer'], columns)
    for location in locations:
        cells = [
            f'{count:,}'
            for fractions in (location.by_output, location.by_input)
            for count in (fractions.shape[1], *((fractions == end).all(axis=0).sum() for end in (0, 1)))
        ]
        low, high = location.by_place.min(), location.by_place.max()
        places = format_fraction(low) if low == high else f'{format_fraction(low)} – {format_fraction(high)}'
        table.add_row(location.name, *cells, places)
    return table


def tabulate_variation(now: Measures, before: Measures, title: str) -> Table:
    """Of the parameters and of the outputs of each layer, as the run began, if that is known, and now."""
    columns = ['Ŵ, began', 'Ŵ, dynamic', 'Ŵ, all', 'outputs, began', 'outputs']
    table = make_table(title, ['layer'], columns)
    for name, layer in now.items():
        parameters, outputs = (before[name].parameters.whole, before[name].outputs) if before else (math.nan,) * 2
        values = parameters, layer.parameters.dynamic, layer.parameters.whole, outputs, layer.outputs
        table.add_row(name, *map(_format_measure, values))
    return table


def tabulate_routing(now: Measures, before: Measures) -> Table:
    """Entropies in nats, and as a share of the largest, log K."""
    columns = ['K', 'entropy', '/ log K', 'of the mean', '/ log K', 'cosine, began', 'cosine']
    table = make_table('Entropy of routing weights in nats, and cosine of the factors', ['layer'], columns)
    for name, layer in now.items():
        if not layer.num_factors:
            continue
        entropies = (layer.entropy, layer.share_of_most(layer.entropy))
        entropies += (layer.mean_entropy, layer.share_of_most(layer.mean_entropy))
        began = before[name].similarity if before else math.nan
        cells = [_format_measure(value, '.4f') for value in (*entropies, began, layer.similarity)]
        table.add_row(name, str(layer.num_factors), *cells)
    return table


def _format_measure(value: float, form: str = '.3g') -> str:
    return '–' if math.isnan(value) else format(value, form)


def _costs(accounts: Iterable[LayerAccount]) -> list[str]:
    accounts = list(accounts)
    products = sum_multiply_adds(account.multiply_adds for account in accounts)
    return [
        f'{sum(account.masked_parameters for account in accounts):,}',
        f'{sum(account.compact_parameters for account in accounts):,}',
        *map(format_count, products),
    ]


def _counts(counts: dict) -> list[str]:
    return [
        f'{counts["positions"]:,}',
        f'{counts["dynamic_positions"]:,}',
        format_fraction(counts['dynamic_fraction']),
        format_fraction(counts['dynamic_share']),
        f'{counts["parameters"]:,}',
    ]
