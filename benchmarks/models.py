r"""A whole training step of networks of images: static, fully and partially dynamic, and plain Flax, in one run.

    python benchmarks/models.py                      # ResNet-18, on an accelerator ResNet-50 too
    python benchmarks/models.py --models=resnet50 --batch-size=4 --image-size=64
    python benchmarks/models.py --convs=condconv,odconv,dcd --rows=full,pad
    python benchmarks/models.py --models=mobilenet_v2 --rows=full,pad,'pad output','pad output compact'

A ratio is the median time over repeats, divided by that of the static network. Every network compiles once.
The repeats of all rows are interleaved, so a busy moment of the machine affects all of them.
A step is forward, backward and SGD with the settings of configs/imagenet_*, on random images.
Partially dynamic rows have κ = 0.3. Rows with compact have live parameters and momentum only.
Row `flax` is a static ResNet with as many parameters, without any code of this package (_flax_resnet.py).
Its distance from the static row is the cost of the package. `compiled in` is the compile time of the traced step.
`ready in` is the time from the config to the first step: init, tracing and compiling.

On an accelerator the table also has images/s and the model FLOP utilisation:
2 · 3 · multiply-adds of the static forward pass · images/s / the peak of the device.
Extra products of a dynamic layer count as time, not as work.
A device or dtype without an entry in PEAKS has no utilisation.
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _flax_resnet import FlaxResNet, flax_train_step, init_flax_state
from _timing import Call, time_interleaved

from pad_jax.layers import CONVS
from pad_jax.models import (
    DTYPES,
    MODELS,
    STEMS,
    BottleneckBlock,
    ResNet,
    account_layers,
    count_layers,
    sum_multiply_adds,
)
from pad_jax.training.config import load_config
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.setup import (
    Lengths,
    abstract_variables,
    make_inputs,
    make_model,
    make_step_arguments,
)
from pad_jax.training.start import start_from_pretrained
from pad_jax.training.state import init_state
from pad_jax.training.steps import train_step

BASE = Path(__file__).resolve().parents[1] / 'configs' / 'imagenet_resnet50_pad.py'
STATIC = ['model.conv=static']
# Of each dynamic convolution.
FORMS = {
    'full': ['partition.dynamic_fraction=1'],
    'pad': [],
    'pad output': ['partition.granularity=output'],
    'pad compact': ['partition.compact=True'],
    'pad output compact': ['partition.granularity=output', 'partition.compact=True'],
}
ROWS = ('flax', *FORMS)
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
    """Measures and prints a table for each model, and how far it is to stderr."""
    options = parse_options(arguments)
    device = jax.devices()[0]
    console = Console(width=None if sys.stdout.isatty() else 100)
    for model in options.models:
        seconds, compiled, ready = measure(model, options)
        title = f'{model}, {options.batch_size} × {options.image_size}², {options.dtype}, {device.device_kind}'
        table, columns = Table(title=title), []
        for column in ('seconds a step', 'compiled in', 'ready in'):
            columns += [column, '/ static']
        columns += ['images/s', 'FLOP utilisation'] if device.platform != 'cpu' else []
        for column in ('', *columns):
            table.add_column(column, justify='right' if column else 'left')
        network, inputs = build(load(model, STATIC, options))
        work = count_multiply_adds(network, *inputs)
        for row in seconds:
            cells = [f'{seconds[row]:.3f}', f'{seconds[row] / seconds["static"]:.2f}']
            for found in (compiled, ready):
                cells += [f'{found[row]:.1f} s', f'{found[row] / found["static"]:.2f}']
            cells += describe(seconds[row], work, options, device.device_kind)
            table.add_row(row, *cells[: len(columns)])
        console.print(table)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    on_cpu = jax.devices()[0].platform == 'cpu'
    convs = [name for name in CONVS if name != 'static']
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = 'resnet18' if on_cpu else 'resnet18,resnet50'
    parser.add_argument('--models', default=models, help=f'some of {",".join(MODELS)}')
    parser.add_argument('--convs', default='dynamic', help=f'some of {",".join(convs)}')
    parser.add_argument(
        '--rows',
        default='flax,full,pad,pad compact,pad output compact',
        help=f'some of {",".join(ROWS)}; static is always there',
    )
    parser.add_argument('--batch-size', type=int, default=16 if on_cpu else 256)
    parser.add_argument('--image-size', type=int, default=112 if on_cpu else 224, help='pixels')
    parser.add_argument('--dtype', default='float32' if on_cpu else 'bfloat16', help=f'one of {",".join(DTYPES)}')
    parser.add_argument('--repeats', type=int, default=3 if on_cpu else 20, help='timed steps of each row')
    options = parser.parse_args(arguments)
    for flag, known in (('models', MODELS), ('convs', convs), ('rows', ROWS)):
        # Each once, in the order given.
        names = list(dict.fromkeys(getattr(options, flag).split(',')))
        if not set(names) <= set(known):
            parser.error(f'--{flag} must be some of {",".join(known)}, got {",".join(names)}')
        setattr(options, flag, names)
    if options.dtype not in DTYPES:
        parser.error(f'--dtype must be one of {",".join(DTYPES)}, got {options.dtype}')
    least = STEMS['imagenet']
    for flag, value, allowed in (
        ('batch-size', options.batch_size, 1),
        ('image-size', options.image_size, least),
        ('repeats', options.repeats, 1),
    ):
        if value < allowed:
            parser.error(f'--{flag} must be at least {allowed}, got {value}')
    return options


class Step(NamedTuple):
    """A compiled step: a call without arguments that continues from its own state, and its compile time in seconds."""

    call: Call
    compile_seconds: float


def measure(model: str, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Measure every row of a model: median seconds of a step, of its compilation, and of all that comes before it."""
    jax.block_until_ready(jax.random.normal(jax.random.key(0), (8,)))  # the first row must not pay for JAX's start
    prepare = {'static': functools.partial(prepare_step, load(model, STATIC, options), options.batch_size)}
    if 'flax' in options.rows:
        if isinstance(build(load(model, STATIC, options))[0], ResNet):
            prepare['flax'] = functools.partial(prepare_flax_step, load(model, STATIC, options), options.batch_size)
        else:
            say(f'{model}: no row flax, which is of ResNets')
    for conv in options.convs:
        for form in (row for row in options.rows if row in FORMS):
            config = load(model, [f'model.conv={conv}', *FORMS[form]], options)
            prepare[f'{conv} {form}'] = functools.partial(prepare_step, config, options.batch_size)
    steps, ready = {}, {}
    for number, (row, compile_row) in enumerate(prepare.items(), start=1):
        start = time.perf_counter()
        steps[row] = compile_row()
        ready[row] = time.perf_counter() - start
        say(f'{model}: {number} of {len(prepare)} compiled, {row}, in {ready[row]:.0f} s')
    say(f'{model}: measuring {1 + options.repeats} × {len(steps)} steps')
    seconds = time_interleaved({row: step.call for row, step in steps.items()}, options.repeats)
    return seconds, {row: step.compile_seconds for row, step in steps.items()}, ready


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def load(model: str, changes: list[str], options: argparse.Namespace):
    """The config of one row."""
    sizes = [f'data.batch_size={options.batch_size}', f'data.image_size={options.image_size}']
    return load_config(str(BASE), [f'model.name={model}', f'model.dtype={options.dtype}', *sizes, *changes])


def describe(seconds: float, work: int, options: argparse.Namespace, kind: str) -> list[str]:
    """Images/s and FLOP utilisation; `work` is the multiply-adds of one image."""
    rate = options.batch_size / seconds
    peak = PEAKS.get(kind) if options.dtype in ('bfloat16', 'float16') else None
    # A step is three passes, two of them backwards, and a multiply-add two operations.
    utilisation = f'{2 * 3 * work * rate / peak:.0%}' if peak else ''
    return [f'{rate:.0f}', utilisation]


def build(config):
    """The network of a config and the inputs of one example, as shapes."""
    return make_model(config), make_inputs(config)


def make_batch(config, batch_size: int) -> dict[str, jax.Array]:
    """Random images, the same for every row."""
    shape = batch_size, *make_inputs(config)[0].shape[1:]
    return {
        'image': jax.random.normal(jax.random.key(0), shape),
        'label': jnp.arange(batch_size) % config.model.num_classes,
    }


def prepare_step(config, batch_size: int) -> Step:
    """One optimizer step of a network, in the form that the trainer trains after its last round."""
    inputs = make_inputs(config)
    arguments = make_step_arguments(config, Lengths(total=1_000_000, temperature=0))
    state = init_state(arguments['model'], arguments['optimizer'], inputs, seed=0)
    state, _ = start_from_pretrained(config, arguments['model'], state)
    thin = lambda mask: (jnp.arange(mask.size) % 10 < 3).reshape(mask.shape)  # noqa: E731
    state = state.replace(masks=jax.tree.map(thin, state.masks), round=jnp.int32(1))
    state = to_trained_storage(state, rounds=1, compact=config.partition.compact)
    step = jax.jit(functools.partial(train_step, **arguments), donate_argnums=0)
    return keep_state(step, state, make_batch(config, batch_size))


def prepare_flax_step(config, batch_size: int) -> Step:
    """The same of the static ResNet of a config in plain Flax, which is known to have as many parameters."""
    (ours, inputs), batch = build(config), make_batch(config, batch_size)
    state = init_flax_state(make_twin(ours), batch['image'])
    theirs = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    expected = sum(leaf.size for leaf in jax.tree.leaves(abstract_variables(ours, inputs)['params']))
    assert theirs == expected, f'{theirs} parameters in plain Flax, {expected} in the static network'
    return keep_state(flax_train_step, state, batch)


def make_twin(network: ResNet) -> FlaxResNet:
    """A static ResNet in plain Flax."""
    return FlaxResNet(network.stage_sizes, network.block is BottleneckBlock, network.num_classes, network.dtype)


def keep_state(step, state, batch) -> Step:
    """Compile a jitted (state, batch) -> (state, metrics) into a call that continues from its own state."""
    traced, held = step.lower(state, batch), [state]
    start = time.perf_counter()
    step = traced.compile()
    compile_seconds = time.perf_counter() - start

    def call():
        held[0], metrics = step(held[0], batch)
        return held[0], metrics

    return Step(call, compile_seconds)


def count_multiply_adds(model, *inputs) -> int:
    """Count the multiply-adds of one image through a static network."""
    layers = account_layers(model, inputs, count_layers(abstract_variables(model, inputs)))
    return sum_multiply_adds(layers).dense


if __name__ == '__main__':
    main()
