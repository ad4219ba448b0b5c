r"""Latency, memory and bytes of a trained partially dynamic network, compared with a fully dynamic one.

    python benchmarks/deployment.py                     # ResNet-18 at 112², a few minutes on two cores
    python benchmarks/deployment.py --image-size=224 --plans=fused,shift

Latency is the median time of the forward pass of one image, for every plan; the best plan of each network counts.
The repeats of all rows are interleaved, so a busy moment of the machine affects all of them.
Parameters are arguments of the program, which reads them from memory as a server does.
Memory is that of parameters, optimizer state and masks of a training state.
Bytes are those of the exported weights. The theoretical size is four bytes per live parameter.
By element it also has one bit per position.

Partially dynamic networks have κ = 0.3 and compact storage.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import safetensors.numpy
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _timing import Call, time_interleaved

from pad_jax.deploy.export import Network, shrink_network
from pad_jax.layers import PLANS
from pad_jax.layers.compact import expand_elements
from pad_jax.models import MODELS, STEMS, count_layers, report_counts
from pad_jax.training.config import load_config
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.setup import Lengths, abstract_variables, make_inputs, make_model, make_run_optimizer, make_task
from pad_jax.training.state import TrainState, init_state

BASE = Path(__file__).resolve().parents[1] / 'configs' / 'imagenet_resnet50_pad.py'
DYNAMIC = 'fully dynamic'
FORMS = {
    'static': ['model.conv=static'],
    DYNAMIC: ['partition.dynamic_fraction=1'],
    'compact output': ['partition.granularity=output'],
    'compact element': ['partition.granularity=element'],
}


class Held(NamedTuple):
    """One network, trained as far as this goes.

    Attributes:
      config: of its form.
      masked: its variables with masks, where it has some.
      variables: those that it is run with.
      records: of its layers.
      counts: of `report_counts`.
      state_bytes: of the parameters, the optimizer's arrays and the packed masks of a state.
    """

    config: Any
    masked: Mapping[str, Any]
    variables: Mapping[str, Any]
    records: Mapping[str, Any]
    counts: dict[str, Any]
    state_bytes: int


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints three tables, and how far it is to stderr."""
    options = parse_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 100)
    networks = {}
    for name, changes in FORMS.items():
        say(f'{options.model}: {name}')
        networks[name] = make_network(load(changes, options))
    where = f'{options.model}, {options.image_size}², {jax.devices()[0].device_kind}'
    console.print(tabulate_memory(networks, f'State of a run, {where}'))
    console.print(tabulate_bytes(networks, f'Exported weights, {where}'))
    console.print(tabulate_latencies(measure_latencies(networks, options), f'One image, {where}'))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    plans = list(PLANS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--model', default='resnet18', choices=MODELS, metavar='MODEL', help=f'one of {",".join(MODELS)}'
    )
    parser.add_argument('--image-size', type=int, default=112, help='pixels')
    parser.add_argument('--plans', default=','.join(plans), help=f'some of {",".join(plans)}')
    parser.add_argument('--repeats', type=int, default=20, help='timed images of each row')
    options = parser.parse_args(arguments)
    options.plans = list(dict.fromkeys(options.plans.split(',')))
    if not set(options.plans) <= set(plans):
        parser.error(f'--plans must be some of {",".join(plans)}, got {",".join(options.plans)}')
    least = STEMS['imagenet']
    for flag, value, allowed in (('image-size', options.image_size, least), ('repeats', options.repeats, 1)):
        if value < allowed:
            parser.error(f'--{flag} must be at least {allowed}, got {value}')
    return options


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def load(changes: list[str], options: argparse.Namespace):
    """The config of one network."""
    sizes = [f'data.image_size={options.image_size}', 'model.dtype=float32']
    return load_config(str(BASE), [f'model.name={options.model}', *sizes, *changes])


def make_network(config) -> Held:
    """The state of a run after the last round of its partition, in the form that it is deployed in."""
    model, inputs = make_model(config), make_inputs(config)
    state = init_state(model, make_run_optimizer(config, Lengths(total=1_000_000, temperature=0)), inputs, seed=0)
    thin = lambda mask: (jnp.arange(mask.size) % 10 < 3).reshape(mask.shape)  # noqa: E731
    state = state.replace(masks=jax.tree.map(thin, state.masks), round=jnp.int32(1))
    counts = report_counts(count_layers({**abstract_variables(model, inputs), 'partition': state.masks}))
    masked = state.variables
    state = to_trained_storage(state, rounds=1, compact=True)
    stored = {'params': state.params, 'index': state.index, 'batch_stats': state.batch_stats}
    return Held(config, masked, stored, state.records, counts, count_state_bytes(state))


def count_state_bytes(state: TrainState) -> int:
    """Count the bytes that a run keeps for its parameters."""
    return count_bytes((state.params, state.optimizer_state, state.index))


def count_bytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def tabulate_memory(networks: Mapping[str, Held], title: str) -> Table:
    """Bytes of each state, its ratio to the fully dynamic one's, and the ratio of parameters."""
    table = make_table(title, ['parameters', 'state, MB', f'/ {DYNAMIC}', 'parameters /', 'apart by'])
    whole = networks[DYNAMIC]
    for name, network in networks.items():
        ratio = network.state_bytes / whole.state_bytes
        expected = network.counts['parameters'] / whole.counts['parameters']
        cells = [f'{network.counts["parameters"]:,}', f'{network.state_bytes / 1e6:.1f}', f'{ratio:.4f}']
        table.add_row(name, *cells, f'{expected:.4f}', f'{abs(ratio / expected - 1):.2%}')
    return table


def tabulate_bytes(networks: Mapping[str, Held], title: str) -> Table:
    """Bytes of each file of weights, beside what its parameters and its masks take at least."""
    table = make_table(title, ['file, MB', 'theoretical, MB', 'file / theoretical', f'/ {DYNAMIC}'])
    sizes = {name: len(serialize(network)) for name, network in networks.items()}
    for name, network in networks.items():
        least = count_theoretical_bytes(network)
        cells = [f'{sizes[name] / 1e6:.2f}', f'{least / 1e6:.2f}', f'{sizes[name] / least:.4f}']
        table.add_row(name, *cells, f'{sizes[name] / sizes[DYNAMIC]:.4f}')
    return table


def serialize(network: Held) -> bytes:
    """Serialize the weights as an export does."""
    found = Network(
        make_model(network.config), jax.device_get(network.masked), network.records, make_task(network.config), 1.0
    )
    return safetensors.numpy.save(shrink_network(found, network.config).weights)


def count_theoretical_bytes(network: Held) -> float:
    """Four bytes for each live parameter; with a mask by element, also a bit for each position."""
    by_element = bool(network.variables['index']) and network.config.partition.granularity == 'element'
    return 4 * network.counts['parameters'] + by_element * network.counts['positions'] / 8


def measure_latencies(networks: Mapping[str, Held], options: argparse.Namespace) -> dict[tuple[str, str], float]:
    """Median seconds of one image by (network, plan)."""
    image = jax.random.normal(jax.random.key(0), make_inputs(networks['static'].config)[0].shape)
    calls = {}
    for name, network in networks.items():
        for plan in ['-'] if name == 'static' else options.plans:
            say(f'{options.model}: compiling {name}, {plan}')
            calls[name, plan] = compile_forward(network, plan, image)
    say(f'{options.model}: measuring {1 + options.repeats} × {len(calls)} images')
    return time_interleaved(calls, options.repeats)


def compile_forward(network: Held, plan: str, image: jax.Array) -> Call:
    """A call without arguments that computes the logits of one image."""
    config = network.config.copy_and_resolve_references()
    config.model.plan = plan if plan != '-' else config.model.plan
    model, variables = make_model(config), network.variables
    apply = lambda variables, image: model.apply(expand_elements(variables, network.records), image, 1.0)[0]  # noqa: E731
    forward = jax.jit(apply).lower(variables, image).compile()
    return lambda: forward(variables, image)


def tabulate_latencies(seconds: Mapping[tuple[str, str], float], title: str) -> Table:
    """Every network by its best plan, the others after it."""
    table = make_table(title, ['plan', 'ms', '/ static', f'/ {DYNAMIC}'])
    best = min(found for (name, _), found in seconds.items() if name == DYNAMIC)
    (static,) = (found for (name, _), found in seconds.items() if name == 'static')
    for form in FORMS:
        rows = sorted((found, plan) for (name, plan), found in seconds.items() if name == form)
        for rank, (found, plan) in enumerate(rows):
            cells = [plan, f'{found * 1e3:.2f}', f'{found / static:.2f}', f'{found / best:.2f}']
            table.add_row(form if rank == 0 else '', *cells, style=None if rank == 0 else 'dim')
    return table


def make_table(title: str, columns: list[str]) -> Table:
    table = Table(title=title)
    for column in ('', *columns):
        table.add_column(column, justify='right' if column else 'left')
    return table


if __name__ == '__main__':
    main()
