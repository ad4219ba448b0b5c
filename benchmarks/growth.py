"""Cost against size: where the time of a dynamic layer grows faster than its multiply-adds.

    python benchmarks/growth.py --out=growth.png     # a convolution and both mixtures, some ten minutes on 2 cores
    python benchmarks/growth.py --panels=mixtures/E

Each panel changes one size of one layer: kernels K, batch, κ, experts E, tokens. A point is the time of forward and
backward, divided by that of the dense layer of the same input: the median over repeats, interleaved in a panel.
Dashed lines are the multiply-adds, divided likewise. The table also has XLA's temporaries, in MB.
"""

import argparse
import pathlib
import sys

import jax
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import conv
import moe
from _timing import compile_call, time_interleaved

from pad_jax.kernels.geometry import resolve_geometry
from pad_jax.kernels.plans import convolve_static
from pad_jax.layers.mixture import apply_neurons
from pad_jax.reports.plots import COLOURS, styled

MODE = 'forward+backward'
LAYER = conv.Shape(14, 256, 256, 3)
MIXTURE = moe.Shape(256, 1024)
DEFAULTS = {'K': 4, 'batch': 8, 'E': 8, 'tokens': 1024, 'κ': 0.3}
VALUES = {
    'K': (1, 2, 4, 8, 16),
    'batch': (1, 4, 16, 64),
    'κ': (0.1, 0.3, 0.5, 0.7, 0.9),
    'E': (2, 8, 32, 64),
    'tokens': (256, 1024, 4096),
}
CONV_ROWS, MIXTURE_ROWS = ('full', 'element', 'output'), ('layer', 'element', 'structured', 'ffn', 'structured_ffn')
NUM_SELECTED = 2
PANELS = ('convolution/K', 'convolution/batch', 'convolution/κ', 'mixtures/E', 'mixtures/tokens', 'mixtures/κ')


def main(arguments: list[str] | None = None) -> None:
    """Measure panels, print a table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=7, help='timed calls of each point; the median counts')
    parser.add_argument('--values', type=int, default=10, help='most values of a panel')
    parser.add_argument('--panels', default=','.join(PANELS), help=f'some of {",".join(PANELS)}')
    parser.add_argument('--out', metavar='FILE', help='picture to write')
    options = parser.parse_args(arguments)
    if not set(options.panels.split(',')) <= set(PANELS):
        parser.error(f'--panels must be some of {",".join(PANELS)}, got {options.panels}')
    panels, console = {}, Console(width=None if sys.stdout.isatty() else 140)
    kinds = {
        'convolution': (f'convolution {LAYER}', measure_convolution),
        'mixtures': (f'mixtures {MIXTURE}, k = {NUM_SELECTED}', measure_mixtures),
    }
    for kind, size in (panel.split('/') for panel in options.panels.split(',')):
        title, measure = kinds[kind]
        panels[title, size] = measure_panel(measure, size, options)
    table = Table(title=f'time / dense (multiply-adds / dense), MB of temporaries; {jax.devices()[0].device_kind}')
    for name in ('layer', 'size', 'row', 'time /', 'work /', 'MB'):
        table.add_column(name)
    for (layer, size), points in panels.items():
        for value, rows in points.items():
            for row, (ratio, work, megabytes) in rows.items():
                table.add_row(layer, f'{size} = {value}', row, f'{ratio:.2f}', f'{work:.2f}', f'{megabytes:.0f}')
    console.print(table)
    if options.out:
        draw_panels(panels).savefig(options.out, dpi=110)


def measure_panel(measure, size: str, options) -> dict:
    """Measure the points of a panel: {value: {row: (time, multiply-adds, MB)}}, the first two divided by dense ones."""
    return {value: measure({**DEFAULTS, size: value}, options.repeats) for value in VALUES[size][: options.values]}


def measure_convolution(sizes: dict, repeats: int) -> dict:
    """Measure a dynamic convolution, fully dynamic and partially by element and by output."""
    flags = [f'--batch-size={sizes["batch"]}', f'--num-kernels={sizes["K"]}']
    inputs = conv.make_inputs(LAYER, conv.parse_options(flags))
    x, kernels = inputs[:2]
    geometry = resolve_geometry(x.shape[1:3], kernels.shape[1:3])
    calls = {
        'dense': compile_call(lambda x, kernel: convolve_static(x, kernel, geometry), MODE, x, kernels[0]),
        'full': conv.compile_plan('auto', MODE, geometry, *inputs),
        **{row: conv.compile_partial(row, MODE, geometry, *inputs, sizes['κ']) for row in CONV_ROWS[1:]},
    }
    mixing = sizes['K'] / LAYER.side**2  # products of a position with K weights, for each output place of the map
    work = {'full': 1 + mixing, 'element': 1 + mixing, 'output': 1 + sizes['κ'] * mixing}
    return divide(calls, repeats, dict.fromkeys(work, 'dense'), work)


def measure_mixtures(sizes: dict, repeats: int) -> dict:
    """Measure the mixtures of benchmarks/moe.py."""
    flags = [f'--tokens={sizes["tokens"]}', f'--num-experts={sizes["E"]}']
    options, key = moe.parse_options(flags), jax.random.key(1)
    x = jax.random.normal(key, (1, options.tokens, MIXTURE.features))
    matrix = jax.random.normal(key, MIXTURE)
    neurons = jax.random.normal(key, (2 * MIXTURE.features + 1, MIXTURE.hidden))
    calls = {
        'dense': compile_call(lambda x, matrix: x[0] @ matrix, MODE, x, matrix),
        'dense ffn': compile_call(lambda x, neurons: apply_neurons(x[0], neurons), MODE, x, neurons),
        **{row: moe.compile_layer(row, MODE, MIXTURE, NUM_SELECTED, x, options, sizes['κ']) for row in MIXTURE_ROWS},
    }
    router = sizes['E'] / MIXTURE.hidden
    shared = NUM_SELECTED * sizes['κ'] + 1 - sizes['κ']
    work = {'layer': NUM_SELECTED, 'element': NUM_SELECTED, 'structured': shared, 'ffn': NUM_SELECTED}
    work = {row: value + router for row, value in {**work, 'structured_ffn': shared}.items()}
    return divide(calls, repeats, {row: 'dense ffn' if 'ffn' in row else 'dense' for row in work}, work)


def divide(calls: dict, repeats: int, base_of: dict, work: dict) -> dict:
    """Time the calls, and divide each by its base."""
    seconds = time_interleaved(calls, repeats)
    megabytes = {row: calls[row].func.memory_analysis().temp_size_in_bytes / 1e6 for row in work}
    return {row: (seconds[row] / seconds[base], work[row], megabytes[row]) for row, base in base_of.items()}


@styled
def draw_panels(panels: dict):
    """Draw time and work against each size."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1 + 3.4 * columns, 0.6 + 3 * rows))
    named = set()
    for axes, ((layer, size), points) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items()):
        for colour, row in zip(COLOURS, next(iter(points.values()))):
            axes.plot(list(points), [found[row][0] for found in points.values()], 'o-', color=colour, label=row)
            axes.plot(list(points), [found[row][1] for found in points.values()], '--', color=colour, linewidth=0.9)
        axes.set(
            title=layer, xlabel=size, ylim=(0, 1.05 * axes.get_ylim()[1]), xscale='linear' if size == 'κ' else 'log'
        )
        if size != 'κ':
            axes.set_xticks(list(points), list(map(str, points)))
            axes.minorticks_off()
        if layer not in named:  # its other panels have the same lines
            axes.legend(fontsize=8)
            named.add(layer)
    figure.supylabel('time / dense; dashed: multiply-adds / dense', fontsize=10)
    return figure


if __name__ == '__main__':
    main()
