"""Time a training step of a text encoder, with mixtures of experts against the dense encoder, in one run.

    python benchmarks/train_step.py                      # MiniLM, 32 texts of 64 pieces: several minutes, 10 GB
    python benchmarks/train_step.py --model=bert_tiny --length=32 --rows=moe,pad

A number is a time divided by the dense encoder's, median over repeats. The repeats of all rows are interleaved, so that
a busy moment of the machine hits all of them. A step is forward, backward, clipping and AdamW on random tokens, with
dropout and the routers' noise. In the partially dynamic rows every second position is dynamic (κ = 0.5).
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

from _timing import time_interleaved

from pad_jax.training.config import load_config
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.setup import Lengths, make_inputs, make_model, make_run_optimizer, make_task, make_temperature
from pad_jax.training.state import init_state
from pad_jax.training.steps import train_step

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ROWS = {
    'dense': ('glue_minilm_dense', []),
    'moe': ('glue_minilm_moe', []),
    'pad': ('glue_minilm_pad', []),
    'pad output': ('glue_minilm_pad', ['partition.granularity=output']),
    'moe ffn': ('glue_minilm_moe', ['model.ffn=ffn']),
    'pad ffn output': ('glue_minilm_pad', ['model.ffn=ffn', 'partition.granularity=output']),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='minilm', help='a name of pad_jax.models.ENCODERS')
    parser.add_argument('--length', type=int, default=64, help='pieces of a text')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--repeats', type=int, default=5, help='timed steps of each row; the median counts')
    parser.add_argument('--rows', default=','.join(ROWS), help=f'some of {",".join(ROWS)}; dense is always there')
    options = parser.parse_args(arguments)
    names = ['dense', *(name for name in options.rows.split(',') if name != 'dense')]
    if not set(names) <= set(ROWS):
        parser.error(f'--rows must be some of {",".join(ROWS)}, got {options.rows}')
    console = Console(width=None if sys.stdout.isatty() else 100)
    with console.status('compiling and measuring ...'):
        steps = {name: prepare_step(*ROWS[name], options) for name in names}
        seconds = time_interleaved(steps, options.repeats)
    table = Table(title=f'{options.model}, {options.batch_size} × {options.length}, {jax.devices()[0].device_kind}')
    for column in ('', 'seconds a step', '/ dense'):
        table.add_column(column, justify='right' if column else 'left')
    for name, value in seconds.items():
        table.add_row(name, f'{value:.2f}', f'{value / seconds["dense"]:.2f}')
    console.print(table)


def prepare_step(config_name: str, changes: list[str], options: argparse.Namespace):
    """Make a call without arguments that takes one optimizer step and keeps the new state."""
    changes = [*changes, f'model.name={options.model}', 'data.path=unused']
    config = load_config(str(CONFIGS / f'{config_name}.py'), changes)
    model, lengths = make_model(config), Lengths(total=1000, temperature=0)
    optimizer = make_run_optimizer(config, lengths)
    state = init_state(model, optimizer, make_inputs(config), seed=0)
    halve = lambda mask: (jnp.arange(mask.size) % 2 == 0).reshape(mask.shape)  # noqa: E731
    state = state.replace(masks=jax.tree.map(halve, state.masks), round=jnp.int32(1))
    state = to_trained_storage(state, rounds=1, compact=False)
    temperature = make_temperature(config, lengths)
    arguments = {'task': make_task(config), 'model': model, 'optimizer': optimizer, 'temperature': temperature}
    step = jax.jit(functools.partial(train_step, **arguments), donate_argnums=0)
    shape = options.batch_size, options.length
    batch = {
        'tokens': jax.random.randint(jax.random.key(0), shape, 0, config.model.vocab_size),
        'segments': jnp.zeros(shape, jnp.int32),
        'valid': jnp.ones(shape, bool),
        'label': jnp.arange(shape[0]) % 2,
    }
    held = [state]

    def call():
        held[0], metrics = step(held[0], batch)
        return metrics

    return call


if __name__ == '__main__':
    main()
