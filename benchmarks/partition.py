"""Cost of the partition: selection from 1 to 100 million positions, and scoring compared with a training step.

    taskset -c 0 python benchmarks/partition.py               # on one core: 1, 4 and 25 million positions
    taskset -c 0 python benchmarks/partition.py --full        # 100 million too (2 GB of memory)
    python benchmarks/partition.py --json=partition.json

XLA uses all available cores; `taskset -c 0` leaves one. Scores are normal draws, the target is 30 % of them, and the
time is the median over repeats. The second table divides by the time of a gradient step of the same small network.
"""

import argparse
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from _timing import time_interleaved

from pad_jax.partition import CRITERIA, Problem, init_masks, merge, score_positions, select_positions

MILLIONS = (1, 4, 25)
FRACTION = 0.3
WIDTH, DEPTH, NUM_FACTORS, NUM_ROWS = 256, 4, 4, 256


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints two tables, and writes JSON where asked."""
    options = parse_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)  # a table in a pipe is not to be squeezed
    sizes = (*MILLIONS, 100) if options.full else MILLIONS
    selections = []
    for millions in sizes:
        with console.status(f'selecting among {millions} million positions ...'):
            selections.append(measure_selection(millions * 1_000_000, options.repeats))
    console.print(tabulate_selections(selections))
    with console.status('scoring ...'):
        scorings = measure_scoring(options.repeats)
    console.print(tabulate_scorings(scorings))
    if options.json:
        device = jax.devices()[0]
        report = {
            'device': f'{device.platform} {device.device_kind}',
            'cores': num_cores(),
            'jax': jax.__version__,
            'repeats': options.repeats,
            'selection': selections,
            'scoring': scorings,
        }
        pathlib.Path(options.json).write_text(json.dumps(report, indent=2))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--full', action='store_true', help='100 million positions too')
    parser.add_argument('--repeats', type=int, default=5, help='timed calls; the median counts')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers there')
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f'--repeats must be at least 1, got {options.repeats}')
    return options


def measure_selection(num_positions: int, repeats: int) -> dict[str, float]:
    """Seconds of a selection and of a sort of the same n scores, one leaf."""
    scores = jax.random.normal(jax.random.key(0), (num_positions,))
    masks = jnp.ones(num_positions, bool)
    target = round(FRACTION * num_positions)

    def select():
        return select_positions(scores, masks, target, scores)

    kept = int(select().sum())
    if kept != target:
        raise RuntimeError(f'{kept} positions kept, not {target}')
    sort = jax.jit(jnp.sort)
    # Once is enough for the sort: it takes ten seconds where a selection takes half a one.
    seconds = time_interleaved({'selection': select}, repeats) | time_interleaved({'sort': lambda: sort(scores)}, 1)
    return {
        'positions': num_positions,
        'seconds': seconds['selection'],
        'ns_per_position': seconds['selection'] / num_positions * 1e9,
        'ratio_to_sort': seconds['selection'] / seconds['sort'],
    }


def measure_scoring(repeats: int) -> dict[str, float]:
    """Time of scoring one batch under each criterion / time of a gradient over the parameters."""
    problem, params, batch = make_network()
    masks = init_masks(params['static'])
    gradient = jax.jit(jax.grad(problem.loss))
    calls = {'gradient step': lambda: gradient(params, masks, batch)}
    for criterion in CRITERIA:
        calls[criterion] = lambda criterion=criterion: score_positions(problem, params, masks, [batch], criterion)
    seconds = time_interleaved(calls, repeats)
    step = seconds['gradient step']
    return {'step_ms': step * 1e3, 'ratios': {criterion: seconds[criterion] / step for criterion in CRITERIA}}


def make_network() -> tuple[Problem, dict, dict]:
    """A network of DEPTH partially dynamic matrices with K factors each, routed once for each of N rows."""
    keys = jax.random.split(jax.random.key(0), 2 * DEPTH + 3)
    names = [f'layer{index}' for index in range(DEPTH)]
    scale = WIDTH**-0.5
    params = {
        'dynamic': {n: scale * jax.random.normal(k, (NUM_FACTORS, WIDTH, WIDTH)) for n, k in zip(names, keys)},
        'static': {n: scale * jax.random.normal(k, (WIDTH, WIDTH)) for n, k in zip(names, keys[DEPTH:])},
        'router': scale * jax.random.normal(keys[-3], (WIDTH, NUM_FACTORS)),
    }
    batch = {'x': jax.random.normal(keys[-2], (NUM_ROWS, WIDTH)), 'y': jax.random.normal(keys[-1], (NUM_ROWS, WIDTH))}

    def output(params, gates, batch):
        x, attention = batch['x'], jax.nn.softmax(batch['x'] @ params['router'])
        for name in names:
            factors = merge(params['dynamic'][name], params['static'][name], gates[name])
            x = jnp.tanh(jnp.einsum('nk,nkf->nf', attention, jnp.einsum('nc,kcf->nkf', x, factors)))
        return x

    def loss(params, gates, batch):
        return jnp.mean((output(params, gates, batch) - batch['y']) ** 2)

    def routing(params, gates, batch):
        return dict.fromkeys(names, jax.nn.softmax(batch['x'] @ params['router']))

    return Problem(loss, output=output, routing=routing), params, batch


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def tabulate_selections(rows: list[dict[str, float]]) -> Table:
    """Seconds, nanoseconds a position, and the ratio to a sort, by number of positions."""
    table = Table(title=f'selection, κ = {FRACTION}, {jax.devices()[0].device_kind}, {num_cores()} core(s)')
    for name in ('positions', 'seconds', 'ns / position', 'time / jnp.sort'):
        table.add_column(name, justify='right')
    for row in rows:
        table.add_row(
            f'{row["positions"]:,}',
            f'{row["seconds"]:.3f}',
            f'{row["ns_per_position"]:.1f}',
            f'{row["ratio_to_sort"]:.3f}',
        )
    return table


def tabulate_scorings(scorings: dict) -> Table:
    """Criteria by time / gradient step."""
    table = Table(title=f'scoring one batch; a gradient step takes {scorings["step_ms"]:.1f} ms')
    table.add_column('criterion')
    table.add_column('time / gradient step', justify='right')
    for criterion, ratio in scorings['ratios'].items():
        table.add_row(criterion, f'{ratio:.2f}')
    return table


if __name__ == '__main__':
    main()
