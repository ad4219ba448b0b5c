"""Time every plan of a mixture of experts against a dense linear layer of the same shape, in one run.

    python benchmarks/moe.py                       # both shapes, k = 1 and 2, all plans: several minutes
    python benchmarks/moe.py --rows=blocks,structured --num-selected=2 --json=moe.json

A number is a time divided by the dense layer's, median over repeats. The repeats of all rows are interleaved, so that
a busy moment of the machine hits all of them: trust ratios, not milliseconds. Forward + backward takes the gradient
with respect to the input and all parameters.

Rows named after a plan are only its matrix products, with a given choice of experts. `layer` is a MixtureLinear with
router, bias and `blocks`. In `element` and `structured` half of its positions are dynamic, by element and by output.
`ffn` and `structured_ffn` are a MixtureFFN, against a dense feed-forward network.
"""

import argparse
import json
import math
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from _timing import compile_call, time_interleaved

from pad_jax.kernels.dispatch import PLANS
from pad_jax.layers import MixtureFFN, MixtureLinear, compact, find_records, route_top_k
from pad_jax.layers.mixture import apply_neurons, multiply_experts


class Shape(NamedTuple):
    """Features in and out of a linear layer; width and hidden width of a feed-forward network."""

    features: int
    hidden: int

    def __str__(self) -> str:
        return f'{self.features}→{self.hidden}'


SHAPES = (Shape(384, 1536), Shape(768, 3072))
MODES = ('forward', 'forward+backward')
LAYERS = {
    'layer': (MixtureLinear, None),
    'element': (MixtureLinear, 'element'),
    'structured': (MixtureLinear, 'output'),
    'ffn': (MixtureFFN, None),
    'structured_ffn': (MixtureFFN, 'output'),
}
ROWS = (*PLANS, *LAYERS)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and write JSON if asked."""
    options = parse_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)  # a pipe has no width
    columns = []
    for shape in SHAPES[: options.shapes]:
        for num_selected in options.num_selected:
            with console.status(f'{shape}, k = {num_selected} ...'):
                columns.append(measure_column(shape, num_selected, options))
    console.print(make_table(columns, options))
    if options.json:
        device = jax.devices()[0]
        report = {
            'device': f'{device.platform} {device.device_kind}',
            'jax': jax.__version__,
            'tokens': options.tokens,
            'num_experts': options.num_experts,
            'dtype': options.dtype,
            'repeats': options.repeats,
            'columns': columns,
        }
        with open(options.json, 'w') as file:
            json.dump(report, file, indent=2)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tokens', type=int, default=2048)
    parser.add_argument('--num-experts', type=int, default=8)
    parser.add_argument('--num-selected', default='1,2', help='values of k, separated by commas')
    parser.add_argument('--shapes', type=int, default=len(SHAPES), help='how many of the shapes, small to large')
    parser.add_argument('--repeats', type=int, default=7, help='timed calls of each row; the median counts')
    parser.add_argument('--rows', default=','.join(ROWS), help=f'some of {",".join(ROWS)}')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--json', metavar='FILE', help='also write the numbers to FILE')
    options = parser.parse_args(arguments)
    options.rows = options.rows.split(',')
    options.num_selected = [int(value) for value in options.num_selected.split(',')]
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f'--rows must be some of {",".join(ROWS)}, got {",".join(unknown)}')
    return options


def measure_column(shape: Shape, num_selected: int, options: argparse.Namespace) -> dict:
    """Measure one shape and k: {'shape', 'num_selected', 'dense_ms': {mode: ...}, 'ratios': {mode: {row: ...}}}."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    x = jax.random.normal(next(keys), (1, options.tokens, shape.features), options.dtype)
    # A choice of experts about as even as a trained router's.
    routing = route_top_k(jax.random.normal(next(keys), (options.tokens, options.num_experts)), num_selected)
    column = {'shape': str(shape), 'num_selected': num_selected, 'dense_ms': {}, 'ratios': {}}
    for mode in MODES:
        matrix = jax.random.normal(next(keys), (shape.features, shape.hidden)) * shape.features**-0.5
        neurons = jax.random.normal(next(keys), (2 * shape.features + 1, shape.hidden)) * shape.features**-0.5
        calls = {'linear': compile_call(lambda x, w: x[0] @ w.astype(x.dtype), mode, x, matrix)}
        if any('ffn' in row for row in options.rows):
            calls['dense ffn'] = compile_call(lambda x, n: apply_neurons(x[0], n.astype(x.dtype)), mode, x, neurons)
        for row in options.rows:
            if row in PLANS:
                kernels = jnp.broadcast_to(matrix[None], (options.num_experts, *matrix.shape))
                calls[row] = compile_plan(row, mode, x, kernels, routing)
            else:
                calls[row] = compile_layer(row, mode, shape, num_selected, x, options)
        seconds = time_interleaved(calls, options.repeats)
        column['dense_ms'][mode] = seconds['linear'] * 1e3
        column['ratios'][mode] = {
            row: seconds[row] / seconds['dense ffn' if 'ffn' in row else 'linear'] for row in options.rows
        }
    return column


def compile_plan(name: str, mode: str, x, kernels, routing):
    """Compile a call without arguments that arranges tokens and runs their experts' products."""

    def forward(x, kernels, weights):
        layout = PLANS[name].arrange(routing._replace(weights=weights), kernels.shape[0])
        return multiply_experts(x[0], layout, None, kernels.astype(x.dtype))

    return compile_call(forward, mode, x, kernels, routing.weights)


def compile_layer(row: str, mode: str, shape: Shape, num_selected: int, x, options, fraction: float = 0.5):
    """Compile a call without arguments that runs a whole layer with that fraction of dynamic positions."""
    kind, granularity = LAYERS[row]
    layer = kind(
        shape.hidden,
        num_experts=options.num_experts,
        num_selected=num_selected,
        granularity=granularity,
        plan='blocks',
        dtype=options.dtype,
    )
    variables = dict(jax.jit(layer.init)(jax.random.key(2), x))
    params = variables.pop('params')
    # An untrained router sends all tokens to the same experts.
    params['router']['gate'] = jax.random.normal(jax.random.key(3), params['router']['gate'].shape)
    if granularity is not None:
        masks = jax.tree.map(lambda leaf: draw_mask(leaf.shape, fraction), variables['partition'])
        variables = {'params': params, 'partition': masks}
        if granularity != 'element':  # whose entries are stored as bits, and computed in masked storage
            variables = compact(variables, find_records(layer, x))
        params = variables.pop('params')
    return compile_call(lambda x, params: layer.apply({'params': params, **variables}, x)[0], mode, x, params)


def draw_mask(shape: tuple[int, ...], fraction: float) -> jax.Array:
    """Draw a mask with an exact fraction of open gates."""
    size = math.prod(shape)
    return (jax.random.permutation(jax.random.key(4), size) < round(fraction * size)).reshape(shape)


def make_table(columns: list[dict], options: argparse.Namespace) -> Table:
    """Make a table of rows by shapes and k."""
    device = jax.devices()[0].device_kind
    table = Table(
        title=f'time / dense layer, {" | ".join(MODES)}; {options.tokens} tokens, E = {options.num_experts}, '
        f'{options.dtype}, {device}'
    )
    table.add_column('')
    for column in columns:
        table.add_column(f'{column["shape"]}, k = {column["num_selected"]}', justify='right')
    milliseconds = (' | '.join(f'{ms:.1f}' for ms in column['dense_ms'].values()) for column in columns)
    table.add_row('dense linear, ms', *milliseconds)
    for row in options.rows:
        cells = (' | '.join(f'{ratios[row]:.2f}' for ratios in column['ratios'].values()) for column in columns)
        table.add_row(row, *cells)
    return table


if __name__ == '__main__':
    main()
