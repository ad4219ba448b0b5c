"""Every plan of a dynamic convolution against a static convolution of the same shape, in one run.

    python benchmarks/conv.py                     # all shapes and plans, batch 8, K = 4
    python benchmarks/conv.py --plans=shift,fused --batch-size=16 --json=conv.json
    python benchmarks/conv.py --plans=fused --forms=element,structured,input,spatial --modes=forward+backward

A number is a time divided by the static convolution's, median over repeats. The repeats of all plans are
interleaved, so that a busy moment of the machine hits all of them; believe ratios, not milliseconds.
Forward + backward takes the gradient with respect to the input, the kernels and the attention.

Beside the plans of a fully dynamic convolution there are its partially dynamic forms, κ = 0.3 unless --dynamic-fraction
says otherwise, each with the plan that `auto` takes, and with all that a layer does but for attention: scales, masks,
and bringing outputs or inputs into order. `element` holds a mask, the other forms their live entries alone.

Legend: B batch, H/W space, C input channels, F output channels, K kernels.
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
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from _timing import compile_call, time_interleaved

from pad_jax.kernels.geometry import Geometry, resolve_geometry
from pad_jax.layers.conv_plans import PLANS, choose_plan
from pad_jax.layers.masked_convolution import masked_convolution
from pad_jax.layers.partial_convolution import partial_convolution
from pad_jax.layers.plans.convolution import convolve
from pad_jax.partition.masks import gate_axis, scale_factors


class Shape(NamedTuple):
    """A layer of a ResNet: side of its square feature map, channels in and out, kernel side."""

    side: int
    channels: int
    features: int
    kernel: int

    def __str__(self) -> str:
        return f'{self.side}²×{self.channels}→{self.features} {self.kernel}×{self.kernel}'


SHAPES = (
    Shape(56, 64, 64, 3),
    Shape(28, 128, 128, 3),
    Shape(14, 256, 256, 3),
    Shape(7, 512, 512, 3),
    Shape(14, 1024, 256, 1),
)
MODES = ('forward', 'forward+backward')
# Partially dynamic forms -> granularity.
FORMS = {'element': 'element', 'structured': 'output', 'input': 'input', 'spatial': 'spatial'}


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, and writes JSON where asked."""
    options = parse_options(arguments)
    rows = []
    console = Console(width=None if sys.stdout.isatty() else 140)  # a table in a pipe is not to be squeezed
    for shape in SHAPES:
        with console.status(f'{shape} ...'):
            rows.append(measure_shape(shape, options))
    console.print(make_table(rows, options))
    if options.json:
        device = jax.devices()[0]
        report = {
            'device': f'{device.platform} {device.device_kind}',
            'jax': jax.__version__,
            'batch_size': options.batch_size,
            'num_kernels': options.num_kernels,
            'dtype': options.dtype,
            'repeats': options.repeats,
            'shapes': rows,
        }
        with open(options.json, 'w') as file:
            json.dump(report, file, indent=2)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--num-kernels', type=int, default=4)
    parser.add_argument('--repeats', type=int, default=7, help='timed calls of each plan; the median counts')
    parser.add_argument('--plans', default=','.join(PLANS), help=f'some of {",".join(PLANS)}')
    parser.add_argument('--forms', default='element,structured', help=f'some of {",".join(FORMS)}, or none')
    parser.add_argument('--dynamic-fraction', type=float, default=0.3, help='κ of these forms')
    parser.add_argument('--modes', default=','.join(MODES), help=f'some of {",".join(MODES)}')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
    parser.add_argument('--json', metavar='FILE', help='also write the numbers there')
    options = parser.parse_args(arguments)
    options.plans = options.plans.split(',')
    options.modes = options.modes.split(',')
    options.forms = [] if options.forms == 'none' else options.forms.split(',')
    choices = ('plans', options.plans, PLANS), ('forms', options.forms, FORMS), ('modes', options.modes, MODES)
    for name, values, allowed in choices:
        unknown = [value for value in values if value not in allowed]
        if unknown:
            parser.error(f'--{name} must be some of {",".join(allowed)}, got {",".join(unknown)}')
    if not 0 < options.dynamic_fraction < 1:
        parser.error(f'--dynamic-fraction must be between 0 and 1, got {options.dynamic_fraction}')
    return options


def measure_shape(shape: Shape, options: argparse.Namespace) -> dict:
    """Ratios of one shape: {'shape', 'auto', 'static_ms': {mode: ...}, 'ratios': {mode: {plan: ...}}, 'forms': ...}."""
    geometry = resolve_geometry((shape.side,) * 2, (shape.kernel,) * 2)
    x, kernels, attention = make_inputs(shape, options)
    row = {'shape': str(shape), 'auto': choose_plan(x, kernels, geometry), 'static_ms': {}, 'ratios': {}, 'forms': {}}
    for mode in options.modes:
        calls = {'static': compile_static(mode, geometry, x, kernels[0])}
        for plan in options.plans:
            calls[plan] = compile_plan(plan, mode, geometry, x, kernels, attention)
        for form in options.forms:
            calls[form] = compile_form(FORMS[form], mode, geometry, x, kernels, attention, options.dynamic_fraction)
        seconds = time_interleaved(calls, options.repeats)
        row['static_ms'][mode] = seconds['static'] * 1e3
        row['ratios'][mode] = {plan: seconds[plan] / seconds['static'] for plan in options.plans}
        row['forms'][mode] = {form: seconds[form] / seconds['static'] for form in options.forms}
    return row


def make_inputs(shape: Shape, options: argparse.Namespace) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, H, W, C], kernels [K, kh, kw, C, F] and attention [B, K], random, settled by a fixed key."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (options.batch_size, shape.side, shape.side, shape.channels))
    size = (options.num_kernels, shape.kernel, shape.kernel, shape.channels, shape.features)
    kernels = jax.random.normal(keys[1], size) / math.sqrt(shape.kernel**2 * shape.channels)
    attention = jax.nn.softmax(jax.random.normal(keys[2], (options.batch_size, options.num_kernels)))
    return x.astype(options.dtype), kernels, attention


def compile_static(mode: str, geometry: Geometry, x: jax.Array, kernel: jax.Array):
    """A call without arguments that runs the static convolution."""

    def forward(x, kernel):
        return convolve(x, kernel.astype(x.dtype), geometry)

    return compile_call(forward, mode, x, kernel)


def compile_plan(name: str, mode: str, geometry: Geometry, x, kernels, attention):
    """A call without arguments that runs one plan."""

    def forward(x, kernels, attention):
        return PLANS[name].function(x, kernels, attention, geometry)

    return compile_call(forward, mode, x, kernels, attention)


def compile_form(granularity: str, mode: str, geometry: Geometry, x, kernels, attention, fraction: float):
    """A call without arguments that runs a partially dynamic convolution with that fraction of dynamic positions.

    No gradient is taken of masks and indices, as in a layer that trains.
    """
    view, axis = gate_axis(kernels.shape[1:], granularity)
    draw = jax.random.split(jax.random.key(2), 2)
    static, phi = jax.random.permutation(draw[0], kernels[0], axis=-1), jnp.zeros(())
    if granularity == 'element':
        mask = jax.random.uniform(draw[1], static.shape) < fraction

        def forward(x, kernels, static, attention, phi):
            scales = dict(zip(('dynamic_scale', 'static_scale'), scale_factors(phi)))
            return masked_convolution(x, kernels, static, mask, attention, **scales)

        return compile_call(forward, mode, x, kernels, static, attention, phi)
    size = view[axis]
    order = jax.random.permutation(draw[1], size)
    count = round(fraction * size)
    dynamic, others = jnp.sort(order[:count]).astype(jnp.int32), jnp.sort(order[count:])

    def forward(x, kernels, static, attention, phi):
        scales = dict(zip(('dynamic_scale', 'static_scale'), scale_factors(phi)))
        settings = {'granularity': granularity, 'kernel_size': geometry.kernel_size}
        return partial_convolution(x, kernels, static, attention, dynamic, **settings, **scales)

    kernels, static = kernels.reshape(kernels.shape[0], *view), static.reshape(view)
    live = jnp.take(kernels, dynamic, axis), jnp.take(static, others, axis)
    return compile_call(forward, mode, x, *live, attention, phi)


def make_table(rows: list[dict], options: argparse.Namespace) -> Table:
    """Shapes by plans, with the plan that `auto` takes, the best one, and geometric means."""
    device = jax.devices()[0].device_kind
    table = Table(
        title=f'time / static convolution, {" | ".join(options.modes)}; batch {options.batch_size}, '
        f'K = {options.num_kernels}, {options.dtype}, {device}'
    )
    table.add_column('shape')
    for name in ('static ms', *options.plans):
        table.add_column(name, justify='right')
    for form in options.forms:
        table.add_column(f'{form} κ = {options.dynamic_fraction:g}', justify='right')
    table.add_column('auto')
    table.add_column('auto / best', justify='right')
    for row in rows:
        cells = [row['shape'], _join(f'{row["static_ms"][mode]:.1f}' for mode in options.modes)]
        cells += [_join(f'{row["ratios"][mode][plan]:.2f}' for mode in options.modes) for plan in options.plans]
        cells += [_join(f'{row["forms"][mode][form]:.2f}' for mode in options.modes) for form in options.forms]
        table.add_row(*cells, row['auto'], _join(_regret(row, mode, options.plans) for mode in options.modes))
    means = [
        _join(f'{_geometric_mean(row["ratios"][mode][plan] for row in rows):.2f}' for mode in options.modes)
        for plan in options.plans
    ]
    means += [
        _join(f'{_geometric_mean(row["forms"][mode][form] for row in rows):.2f}' for mode in options.modes)
        for form in options.forms
    ]
    chosen = '-'
    if all(row['auto'] in options.plans for row in rows):
        chosen = _join(
            f'{_geometric_mean(row["ratios"][mode][row["auto"]] for row in rows):.2f}' for mode in options.modes
        )
    table.add_section()
    table.add_row('geometric mean', '', *means, chosen, '')
    return table


def _regret(row, mode, plans):
    if row['auto'] not in plans:
        return '-'
    return f'{row["ratios"][mode][row["auto"]] / min(row["ratios"][mode].values()):.2f}'


def _join(cells):
    return ' | '.join(cells)


def _geometric_mean(values):
    return statistics.geometric_mean(values)


if __name__ == '__main__':
    main()
