"""Time of dynamic convolutions by plan, divided by that of a static convolution of the same shape.

    python benchmarks/conv.py                     # five shapes of ResNets, all plans, batch 8, K = 4
    python benchmarks/conv.py --shapes=mobilenet --plans=fused,shift
    python benchmarks/conv.py --plans=fused --granularities=element,output,input,spatial --modes=forward+backward

The last column names the best plan of each shape on this device. If it is not the choice of 'auto', name it in
`model.plan`.
Each number is the median over repeats. Repeats of all plans are interleaved, so that a busy moment of the machine hits
all of them: believe ratios, not milliseconds. The gradient is taken with respect to input, kernels and attention.

Partially dynamic convolutions run as a layer runs them without its attention, with scale factors and masks or indices:
`element` in masked storage, the other granularities in compact storage.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from _timing import compile_call, time_interleaved
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pad_jax.kernels.convolution import PLANS, choose_plan, convolve
from pad_jax.kernels.factors import Factors
from pad_jax.kernels.geometry import Geometry, resolve_geometry
from pad_jax.kernels.plans import convolve_static
from pad_jax.partition.masks import gate_axis, scale_factors


class Shape(NamedTuple):
    """A layer: side of its square feature map, channels in and out, side of its kernel, stride, feature groups."""

    side: int
    channels: int
    features: int
    kernel: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        depthwise = ' depthwise' if self.groups > 1 else ''
        stride = f' / {self.stride}' if self.stride > 1 else ''
        return f'{self.side}²×{self.channels}→{self.features} {self.kernel}×{self.kernel}{stride}{depthwise}'


SHAPES = {
    'resnet': (
        Shape(56, 64, 64, 3),
        Shape(28, 128, 128, 3),
        Shape(14, 256, 256, 3),
        Shape(7, 512, 512, 3),
        Shape(14, 1024, 256, 1),
    ),
    'mobilenet': (
        Shape(56, 144, 144, 3, 2, 144),
        Shape(28, 192, 192, 3, 1, 192),
        Shape(14, 384, 384, 3, 1, 384),
        Shape(7, 960, 960, 3, 1, 960),
        Shape(56, 24, 144, 1),
        Shape(14, 384, 64, 1),
        Shape(7, 960, 320, 1),
    ),
}
MODES = ('forward', 'forward+backward')
GRANULARITIES = ('element', 'output', 'input', 'spatial')


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and write JSON if asked."""
    options = parse_options(arguments)
    rows = []
    console = Console(width=None if sys.stdout.isatty() else 140)  # a pipe has no width that a table could be cut to
    for shape in SHAPES[options.shapes]:
        with console.status(f'{shape} ...'):
            rows.append(measure_shape(shape, options))
    console.print(make_table(rows, options))
    if options.json:
        device = jax.devices()[0]
        report = {'device': f'{device.platform} {device.device_kind}', 'jax': jax.__version__, 'shapes': rows}
        report |= {name: getattr(options, name) for name in ('batch_size', 'num_kernels', 'dtype', 'repeats')}
        with open(options.json, 'w') as file:
            json.dump(report, file, indent=2)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shapes', default='resnet', choices=SHAPES)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--num-kernels', type=int, default=4)
    parser.add_argument('--repeats', type=int, default=7, help='timed calls of each plan; the median counts')
    parser.add_argument('--plans', default=','.join(PLANS), help=f'some of {",".join(PLANS)}')
    parser.add_argument('--granularities', default='element,output', help=f'some of {",".join(GRANULARITIES)}, or none')
    parser.add_argument('--dynamic-fraction', type=float, default=0.3, help='κ of partially dynamic convolutions')
    parser.add_argument('--modes', default=','.join(MODES), help=f'some of {",".join(MODES)}')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    parser.add_argument('--json', metavar='FILE', help='also write the numbers there')
    options = parser.parse_args(arguments)
    for name, allowed in (('plans', PLANS), ('granularities', GRANULARITIES), ('modes', MODES)):
        values = [] if getattr(options, name) == 'none' else getattr(options, name).split(',')
        unknown = [value for value in values if value not in allowed]
        if unknown:
            parser.error(f'--{name} must be some of {",".join(allowed)}, got {",".join(unknown)}')
        setattr(options, name, values)
    if not 0 < options.dynamic_fraction < 1:
        parser.error(f'--dynamic-fraction must be between 0 and 1, got {options.dynamic_fraction}')
    return options


def measure_shape(shape: Shape, options: argparse.Namespace) -> dict:
    """Measure one shape: {'shape', 'auto', 'static_ms': {mode: ...}, 'ratios': {mode: {plan or granularity: ...}}}."""
    sides = (shape.side, shape.side), (shape.kernel, shape.kernel)
    geometry = resolve_geometry(*sides, shape.stride, groups=shape.groups)
    x, kernels, attention = make_inputs(shape, options)
    auto = choose_plan(x, options.num_kernels, geometry)
    row = {'shape': str(shape), 'auto': auto, 'static_ms': {}, 'ratios': {}}
    for mode in options.modes:
        calls = {'static': compile_call(lambda *inputs: convolve_static(*inputs, geometry), mode, x, kernels[0])}
        for plan in options.plans:
            calls[plan] = compile_plan(plan, mode, geometry, x, kernels, attention)
        for granularity in options.granularities:
            inputs = x, kernels, attention, options.dynamic_fraction
            calls[granularity] = compile_partial(granularity, mode, geometry, *inputs)
        seconds = time_interleaved(calls, options.repeats)
        row['static_ms'][mode] = seconds['static'] * 1e3
        row['ratios'][mode] = {name: value / seconds['static'] for name, value in seconds.items()}
    return row


def make_inputs(shape: Shape, options: argparse.Namespace) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw x [B, H, W, C], kernels [K, *kernel_size, C / groups, F] and attention [B, K] from a fixed key."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (options.batch_size, shape.side, shape.side, shape.channels))
    inner = shape.channels // shape.groups
    kernels = jax.random.normal(keys[1], (options.num_kernels, shape.kernel, shape.kernel, inner, shape.features))
    attention = jax.nn.softmax(jax.random.normal(keys[2], (options.batch_size, options.num_kernels)))
    return x.astype(options.dtype), kernels / math.sqrt(shape.kernel**2 * inner), attention


def compile_plan(plan: str, mode: str, geometry: Geometry, x, kernels, attention):
    """Return a call without arguments that runs one plan."""

    def forward(x, kernels, attention):
        return convolve(x, Factors(kernels.shape[1:], kernels), attention, geometry, plan)

    return compile_call(forward, mode, x, kernels, attention)


def compile_partial(granularity: str, mode: str, geometry: Geometry, x, kernels, attention, fraction: float):
    """Return a call without arguments that runs a partially dynamic convolution with that fraction of positions.

    As in a layer that trains, no gradient is taken of masks and indices.
    """
    shape = kernels.shape[1:]
    view, axis = gate_axis(shape, granularity)
    draw = jax.random.split(jax.random.key(2), 2)
    static, phi = jax.random.permutation(draw[0], kernels[0], axis=-1), jnp.zeros(())
    where = {'mask': jax.random.uniform(draw[1], static.shape) < fraction}
    if granularity != 'element':
        order, count = jax.random.permutation(draw[1], view[axis]), round(fraction * view[axis])
        where = {'index': jnp.sort(order[:count]).astype(jnp.int32), 'axis': axis}
        kernels = jnp.take(kernels.reshape(kernels.shape[0], *view), where['index'], axis)
        static = jnp.take(static.reshape(view), jnp.sort(order[count:]), axis)

    def forward(x, kernels, static, attention, phi):
        return convolve(x, Factors(shape, kernels, static, *scale_factors(phi), **where), attention, geometry)

    return compile_call(forward, mode, x, kernels, static, attention, phi)


def make_table(rows: list[dict], options: argparse.Namespace) -> Table:
    """Make a table of shapes by plans, with the plan of 'auto', the best one, and geometric means."""
    device = jax.devices()[0].device_kind
    table = Table(
        title=f'time / static convolution, {" | ".join(options.modes)}; batch {options.batch_size}, '
        f'K = {options.num_kernels}, κ = {options.dynamic_fraction:g}, {options.dtype}, {device}'
    )
    table.add_column('shape')
    names = [*options.plans, *options.granularities]
    for name in ('static ms', *names, 'auto', 'auto / best', 'best'):
        table.add_column(name, justify='right')
    for row in rows:
        cells = [row['shape'], _join(f'{row["static_ms"][mode]:.1f}' for mode in options.modes)]
        cells += [_join(f'{row["ratios"][mode][name]:.2f}' for mode in options.modes) for name in names]
        best = {mode: min(options.plans, key=row['ratios'][mode].get) for mode in options.modes}
        regret = (f'{_ratio(row, mode, row["auto"]) / _ratio(row, mode, best[mode]):.2f}' for mode in options.modes)
        table.add_row(*cells, row['auto'], _join(regret), _join(best.values()))
    means = [_join(f'{_mean(rows, mode, [name] * len(rows)):.2f}' for mode in options.modes) for name in names]
    auto = _join(f'{_mean(rows, mode, [row["auto"] for row in rows]):.2f}' for mode in options.modes)
    table.add_section()
    table.add_row('geometric mean', '', *means, auto, '', '')
    return table


def _ratio(row, mode, name):
    return row['ratios'][mode].get(name, math.nan)


def _mean(rows, mode, names):
    return math.exp(statistics.fmean(math.log(_ratio(row, mode, name)) for row, name in zip(rows, names)))


def _join(cells):
    return ' | '.join(cells)


if __name__ == '__main__':
    main()
