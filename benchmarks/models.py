r"""A whole training step of ResNets, fully and partially dynamic against static, in one run.

    python benchmarks/models.py                      # ResNet-18 and ResNet-50; on a CPU most of it is compiling
    python benchmarks/models.py --models=resnet18 --rows=pad,pad\ output --batch-size=4 --image-size=64

A number is a time divided by the static network's, median over repeats. The repeats of all rows are interleaved, so
that a busy moment of the machine hits all of them. A step is forward, backward and SGD, as configs/imagenet_* say, on
random images; in the partially dynamic rows three of ten positions are dynamic (κ = 0.3).

On an accelerator it also prints images/s and the model FLOP utilisation: 2 · 3 · multiply-adds of the static network's
forward pass · images/s / the device's peak. What a dynamic layer computes beyond that counts as time, not as work; a
device, or a dtype of it, whose peak is not in PEAKS has none.
"""

import argparse
import functools
import itertools
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _timing import time_interleaved

from pad_jax.models import DTYPES, MODELS, STEMS
from pad_jax.training.configuration import load_config
from pad_jax.training.setup import Lengths, make_inputs, make_model, make_step_arguments
from pad_jax.training.state import init_state
from pad_jax.training.steps import train_step

BASE = Path(__file__).resolve().parents[1] / 'configs' / 'imagenet_resnet50_pad.py'
ROWS = {
    'static': ['model.conv=static'],
    'dynamic': ['partition.dynamic_fraction=1'],
    'pad': [],
    'pad output': ['partition.granularity=output'],
}
# FLOP/s of dense products in bfloat16 or float16, from the vendors' data sheets, by jax's name of the device.
PEAKS = {
    'NVIDIA A100-SXM4-40GB': 312e12,
    'NVIDIA A100-SXM4-80GB': 312e12,
    'NVIDIA H100 80GB HBM3': 989e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H200': 989e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5p': 459e12,
    'TPU v6 lite': 918e12,
}


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints a table for each model."""
    options = parse_options(arguments)
    device = jax.devices()[0]
    console = Console(width=None if sys.stdout.isatty() else 100)
    steps = {}
    with console.status('') as status:
        for model, row in itertools.product(options.models, options.rows):
            status.update(f'compiling {model}, {row} ...')
            steps[model, row] = prepare_step(load(model, ROWS[row], options), options.batch_size)
        status.update('measuring ...')
        seconds = time_interleaved(steps, options.repeats)
    for model in options.models:
        title = f'{model}, {options.batch_size} × {options.image_size}², {options.dtype}, {device.device_kind}'
        table, columns = Table(title=title), ['seconds a step', '/ static']
        columns += ['images/s', 'FLOP utilisation'] if device.platform != 'cpu' else []
        for column in ('', *columns):
            table.add_column(column, justify='right' if column else 'left')
        work = count_multiply_adds(load(model, ROWS['static'], options))
        for row in options.rows:
            cells = describe(seconds[model, row], seconds[model, 'static'], work, options, device.device_kind)
            table.add_row(row, *cells[: len(columns)])
        console.print(table)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    on_cpu = jax.devices()[0].platform == 'cpu'
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', default='resnet18,resnet50', help=f'some of {",".join(MODELS)}')
    parser.add_argument('--batch-size', type=int, default=16 if on_cpu else 256)
    parser.add_argument('--image-size', type=int, default=112 if on_cpu else 224, help='pixels')
    parser.add_argument('--dtype', default='float32' if on_cpu else 'bfloat16', help=f'one of {",".join(DTYPES)}')
    parser.add_argument('--repeats', type=int, default=5, help='timed steps of each row; the median counts')
    parser.add_argument(
        '--rows', default='static,dynamic,pad', help=f'some of {",".join(ROWS)}; static is always there'
    )
    options = parser.parse_args(arguments)
    options.models = options.models.split(',')
    options.rows = ['static', *(name for name in options.rows.split(',') if name != 'static')]
    for flag, names, known in (('models', options.models, MODELS), ('rows', options.rows, ROWS)):
        if not set(names) <= set(known):
            parser.error(f'--{flag} must be some of {",".join(known)}, got {",".join(names)}')
    if options.dtype not in DTYPES:
        parser.error(f'--dtype must be one of {",".join(DTYPES)}, got {options.dtype}')
    least = STEMS['imagenet'].least_size
    for flag, value, allowed in (
        ('batch-size', options.batch_size, 1),
        ('image-size', options.image_size, least),
        ('repeats', options.repeats, 1),
    ):
        if value < allowed:
            parser.error(f'--{flag} must be at least {allowed}, got {value}')
    return options


def load(model: str, changes: list[str], options: argparse.Namespace):
    """The config of one row."""
    sizes = [f'data.batch_size={options.batch_size}', f'data.image_size={options.image_size}']
    return load_config(str(BASE), [f'model.name={model}', f'model.dtype={options.dtype}', *sizes, *changes])


def describe(seconds: float, static: float, work: int, options: argparse.Namespace, kind: str) -> list[str]:
    """The cells of a row; `work` is the multiply-adds of one image."""
    rate = options.batch_size / seconds
    peak = PEAKS.get(kind) if options.dtype in ('bfloat16', 'float16') else None
    # A step is three passes, two of them backwards, and a multiply-add two operations.
    utilisation = f'{2 * 3 * work * rate / peak:.0%}' if peak else ''
    return [f'{seconds:.3f}', f'{seconds / static:.2f}', f'{rate:.0f}', utilisation]


def prepare_step(config, batch_size: int):
    """A call without arguments that takes one optimizer step and keeps the new state."""
    inputs = make_inputs(config)
    arguments = make_step_arguments(config, Lengths(total=1_000_000, temperature=0))
    state = init_state(arguments['model'], arguments['optimizer'], inputs, seed=0)
    thin = lambda mask: (jnp.arange(mask.size) % 10 < 3).reshape(mask.shape)  # noqa: E731
    state = state.replace(masks=jax.tree.map(thin, state.masks), round=jnp.int32(1))
    batch = {
        'image': jax.random.normal(jax.random.key(0), (batch_size, *inputs[0].shape[1:])),
        'label': jnp.arange(batch_size) % config.model.num_classes,
    }
    step = jax.jit(functools.partial(train_step, **arguments), donate_argnums=0)
    step, held = step.lower(state, batch).compile(), [state]

    def call():
        held[0], metrics = step(held[0], batch)
        return metrics

    return call


def count_multiply_adds(config) -> int:
    """Of one image's way forward through the network: its convolutions and its classifier."""
    model, inputs = make_model(config), make_inputs(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return _count(jax.make_jaxpr(model.apply)(variables, *inputs).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == 'conv_general_dilated':
            # For each output one product with every place of a kernel [kh, kw, C, F] but for F.
            layout = equation.params['dimension_numbers'].rhs_spec
            total += math.prod(shapes[2]) * math.prod(shapes[1]) // shapes[1][layout[0]]
        elif equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            total += math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', value)
            total += _count(inner) if hasattr(inner, 'eqns') else 0
    return total


if __name__ == '__main__':
    main()
