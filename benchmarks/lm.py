"""Time training steps and decoding of language models: dense, fully and partially dynamic, and plain Flax, in one run.

    python benchmarks/lm.py                                     # two sizes, 8 and 64 experts
    python benchmarks/lm.py --sizes=small --experts=8 --set=model.width=128

A ratio is the median time over repeats / that of the dense decoder with as many multiply-adds a token. Its feed-forward
parts are k times as wide as an expert. The repeats of all rows are interleaved, so a busy moment of the machine affects
all of them. Size `small` is that of configs/lm_pad.py.

A training step is forward, backward, clipping and AdamW on random tokens, with the routers' noise. In partially dynamic
rows every second neuron is dynamic (κ = 0.5). Rows with compact have live parameters only. Row `flax` is a dense
decoder with as many parameters, without any code of this package (_flax_decoder.py).

Decoding continues one text greedily, with a cache of keys and values. Its time is that of one token.
"""

import argparse
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _flax_decoder import FlaxDecoder, flax_train_step, init_flax_state
from _timing import Call, time_interleaved

from pad_jax.models.decoder import generate
from pad_jax.training.config import load_config
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.setup import Lengths, make_inputs, make_step_arguments
from pad_jax.training.state import TrainState, init_state
from pad_jax.training.steps import train_step

BASE = Path(__file__).resolve().parents[1] / 'configs' / 'lm_pad.py'
SIZES = {
    'small': [],
    'large': ['model.width=256', 'model.ffn_width=512', 'data.batch_size=32'],
}
MIXTURES = {
    'fully dynamic': ['partition.dynamic_fraction=1'],
    'κ = 0.5': [],
    'κ = 0.5, compact': ['partition.compact=True'],
}
DENSE = 'dense', ''
DECODED = ('fully dynamic', 'κ = 0.5, compact')


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table for each size, and progress to stderr."""
    options = parse_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 110)
    for size in options.sizes:
        steps = time_interleaved(compile_rows(size, 'training step', options), options.repeats)
        decoding = time_interleaved(compile_rows(size, 'decoding', options), options.repeats)
        config = load(size, [], options)
        decoding = {row: seconds / (config.data.max_length - 1) for row, seconds in decoding.items()}
        shapes = f'{config.model.width}→{config.model.ffn_width}, {config.data.batch_size} × {config.data.max_length}'
        table = Table(title=f'{size}: {shapes} tokens, {config.model.dtype}, {jax.devices()[0].device_kind}')
        table.add_column('')
        for column in ('E', 'training step, ms', '/ dense', 'decoding, ms', '/ dense', '/ fully dynamic'):
            table.add_column(column, justify='right')
        for (row, num_experts), seconds in steps.items():
            cells = [f'{seconds * 1e3:.1f}', f'{seconds / steps[DENSE]:.2f}']
            if (row, num_experts) in decoding:
                found = decoding[row, num_experts]
                cells += [f'{found * 1e3:.3f}', f'{found / decoding[DENSE]:.2f}']
                if row != DENSE[0]:
                    cells.append(f'{found / decoding["fully dynamic", num_experts]:.2f}')
            table.add_row(row, num_experts, *cells)
        console.print(table)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', default=','.join(SIZES), help=f'some of {",".join(SIZES)}')
    parser.add_argument('--experts', default='8,64', help='values of E, separated by commas')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='change a key of the config')
    parser.add_argument('--repeats', type=int, default=11, help='timed calls of each row; the median counts')
    options = parser.parse_args(arguments)
    options.sizes = options.sizes.split(',')
    if not set(options.sizes) <= set(SIZES):
        parser.error(f'--sizes must be some of {",".join(SIZES)}, got {",".join(options.sizes)}')
    options.experts = [int(value) for value in options.experts.split(',')]
    return options


def compile_rows(size: str, what: str, options: argparse.Namespace) -> dict[tuple[str, str], Call]:
    """Compile a call of every (row, E) of a size, for 'training step' or 'decoding'; E is '' without experts."""
    prepare = prepare_step if what == 'training step' else prepare_decoding
    experts = load(size, [], options).model
    width = f'model.ffn_width={experts.num_selected * experts.ffn_width}'
    dense = load(size, ['model.ffn=dense', width], options)
    calls = {('flax', ''): prepare_flax_step(dense)} if what == 'training step' else {}
    calls[DENSE] = prepare(dense)
    for num_experts in options.experts:
        for row in MIXTURES if what == 'training step' else DECODED:
            print(f'{size}: compiling {what}, {row}, E = {num_experts}', file=sys.stderr, flush=True)
            changes = [*MIXTURES[row], f'model.num_experts={num_experts}']
            calls[row, str(num_experts)] = prepare(load(size, changes, options))
    return calls


def load(size: str, changes: list[str], options: argparse.Namespace):
    """Read the config of a row; changes of the row come last."""
    return load_config(str(BASE), [*SIZES[size], *options.set, *changes])


def make_batch(config) -> dict[str, jax.Array]:
    """Make random tokens, the same for every row."""
    shape = config.data.batch_size, config.data.max_length
    tokens = jax.random.randint(jax.random.key(0), shape, 0, config.model.vocab_size)
    return {'tokens': tokens, 'valid': jnp.ones(shape, bool), 'label': jnp.roll(tokens, -1, axis=1)}


def make_state(config, arguments) -> TrainState:
    """Make the state of a network in the form that the trainer trains after its last round."""
    state = init_state(arguments['model'], arguments['optimizer'], make_inputs(config), seed=0)
    halve = lambda mask: (jnp.arange(mask.size) % 2 == 0).reshape(mask.shape)  # noqa: E731
    state = state.replace(masks=jax.tree.map(halve, state.masks), round=jnp.int32(1))
    return to_trained_storage(state, rounds=1, compact=config.partition.compact)


def prepare_step(config) -> Call:
    """Compile an optimizer step of a network, which continues from its own state."""
    arguments = make_step_arguments(config, Lengths(total=1_000_000, temperature=0))
    step = jax.jit(functools.partial(train_step, **arguments), donate_argnums=0)
    return keep_state(step, make_state(config, arguments), make_batch(config))


def prepare_flax_step(config) -> Call:
    """Compile the same of a dense decoder in plain Flax."""
    batch = make_batch(config)
    return keep_state(flax_train_step, init_flax_state(make_twin(config), batch['tokens']), batch)


def make_twin(config) -> FlaxDecoder:
    """Make a dense decoder in plain Flax."""
    sizes = ('vocab_size', 'num_layers', 'num_heads', 'width', 'ffn_width')
    return FlaxDecoder(**{name: config.model[name] for name in sizes})


def keep_state(step, state, batch) -> Call:
    """Compile a jitted (state, batch) -> (state, metrics) into a call that continues from its own state."""
    step, held = step.lower(state, batch).compile(), [state]

    def call():
        held[0], metrics = step(held[0], batch)
        return held[0], metrics

    return call


def prepare_decoding(config) -> Call:
    """Compile the continuation of a text of one token."""
    arguments = make_step_arguments(config, Lengths(total=1_000_000, temperature=0))
    variables, start = make_state(config, arguments).variables, jnp.zeros((1, 1), jnp.int32)
    return functools.partial(generate, arguments['model'], variables, start, config.data.max_length - 1)


if __name__ == '__main__':
    main()
