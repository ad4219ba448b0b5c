"""The partition of one run, layer by layer, and what it saves."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from pad_jax.errors import BadInput
from pad_jax.models import LayerAccount, sum_multiply_adds
from pad_jax.partition import LayerCount, count_layers, leaf_names
from pad_jax.reports.network_forms import make_forms, measure_cost
from pad_jax.reports.plots import plot_partition, save_figure
from pad_jax.reports.runs import Partition, read_partition
from pad_jax.reports.tables import format_count, format_fraction, make_table, print_line, print_table
from pad_jax.training.configuration import read_workdir_config
from pad_jax.training.setup import abstract_variables, account_network, make_example, make_inputs, make_model


def inspect_workdir(workdir: Path) -> None:
    """Prints the partition of a run and what it saves, and writes the partition to WORKDIR/partition.png.

    Raises:
      BadInput: if workdir holds no run, or can't be written.
    """
    config = read_workdir_config(workdir)  # refuses what is not the workdir of a run
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
    path = workdir / 'partition.png'
    save_figure(plot_partition(partition), path)
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
