"""Every plan that `auto` may take, measured for the shapes of one network on this device.

Legend: B batch, C input features, N tokens, E experts, k selected.
"""

import collections
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from pad_jax.errors import BadInput
from pad_jax.layers import (
    DISPATCHERS,
    PLANS,
    ConvCase,
    MixtureCase,
    PartialCase,
    PlanTable,
    assign_top_k,
    choose_dispatcher,
    choose_plan,
)
from pad_jax.layers.mixture_ffn import apply_experts
from pad_jax.layers.mixture_linear import multiply_experts
from pad_jax.layers.partial_convolution import partial_convolution
from pad_jax.layers.plan_table import Case
from pad_jax.reports.network_forms import make_forms
from pad_jax.reports.tables import make_table, print_line, print_table
from pad_jax.reports.timing import Call, compile_call, time_interleaved
from pad_jax.training.plan_tables import check_writable, list_choices, write_plan_table
from pad_jax.training.setup import make_example, make_model, plan_layers


class Measured(NamedTuple):
    """One case of a network.

    Attributes:
      count: how many layers it is the case of.
      chosen: the plan that costs the least by the model of costs.
      seconds: of forward + backward by each plan that may be taken.
    """

    count: int
    chosen: str
    seconds: Mapping[str, float]

    @property
    def fastest(self) -> str:
        return min(self.seconds, key=self.seconds.get)

    @property
    def loss(self) -> float:
        """Time of the chosen plan / time of the fastest, at least 1."""
        return self.seconds[self.chosen] / self.seconds[self.fastest]


class Questions:
    """Stands in for a table while a network is traced: it knows no answer, and counts what it is asked."""

    def __init__(self):
        self.asked = collections.Counter()

    def find(self, case: Case) -> None:
        self.asked[case] += 1


def tune(config, table_path: Path | None = None, repeats: int = 5) -> None:
    """Measures, prints, and writes a table where a path is given.

    Args:
      config: of the network, as `load_config` returns it.
      repeats: timed calls of each plan; the median counts.

    Raises:
      BadInput: if the network has nothing to choose, or the table can't be written.
    """
    cases = find_cases(config)
    if not cases:
        raise BadInput('the network has no dynamic layers: there is no plan to choose')
    if table_path is not None:
        check_writable(table_path)
    measured = {}
    for number, (case, count) in enumerate(cases.items(), start=1):
        print(f'{number} of {len(cases)}: {case}', file=sys.stderr, flush=True)
        measured[case] = measure_case(case, count, repeats)
    device = jax.local_devices()[0]
    print_table(tabulate_cases(measured, f'Milliseconds of forward + backward on {device.device_kind}'))
    if table_path is not None:
        plans = tuple((case, found.fastest) for case, found in measured.items())
        milliseconds = {
            case: {name: round(seconds * 1e3, 4) for name, seconds in found.seconds.items()}
            for case, found in measured.items()
        }
        write_plan_table(table_path, PlanTable(device.device_kind, jax.__version__, plans), milliseconds)
        print_line(f'Table: {table_path}')


def find_cases(config) -> dict[Case, int]:
    """What a network's layers would ask a table at the batch size of one device, and how many of them ask it.

    Raises:
      BadInput: on a batch that the devices can't share.
    """
    shares = jax.device_count() * config.optim.accumulate_steps
    if config.data.batch_size % shares:
        raise BadInput(
            f'data.batch_size must be a multiple of {shares} ({jax.device_count()} devices × optim.accumulate_steps = '
            f'{config.optim.accumulate_steps}), got {config.data.batch_size}'
        )
    batch_size = config.data.batch_size // shares
    config = config.copy_and_resolve_references()
    config.model.plan = 'auto'
    batch = [jax.ShapeDtypeStruct((batch_size, *one.shape[1:]), one.dtype) for one in make_example(config)]
    before, after = Questions(), Questions()
    jax.eval_shape(make_model(config, plan_table=before).init, jax.random.key(0), *batch)
    # Once it is partitioned, with as many outputs, inputs or taps dynamic in each layer as are planned.
    compacted = make_forms(config, plan_layers(config)).get('compact')
    if compacted is not None:
        jax.eval_shape(make_model(config, plan_table=after).apply, compacted.variables, *batch)
    return dict(before.asked | after.asked)


def measure_case(case: Case, count: int, repeats: int) -> Measured:
    """All plans of a case on random numbers, in turn."""
    compile_plan = {ConvCase: _compile_convolution, PartialCase: _compile_partial, MixtureCase: _compile_mixture}
    calls = {name: compile_plan[type(case)](case, name) for name in list_choices(case)}
    return Measured(count, choose_by_cost(case), time_interleaved(calls, repeats))


def choose_by_cost(case: Case) -> str:
    """What `auto` takes without a table."""
    if isinstance(case, MixtureCase):
        return choose_dispatcher(case.tokens, case.experts, case.selected)
    if isinstance(case, PartialCase):
        return 'auto'
    x, kernels = jax.ShapeDtypeStruct(case.x, case.dtype), jax.ShapeDtypeStruct(case.kernels, jnp.float32)
    return choose_plan(x, kernels, case.geometry, by_place=case.by_place)


def _compile_convolution(case: ConvCase, name: str) -> Call:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], case.x, case.dtype)
    kernels = jax.random.normal(keys[1], case.kernels)
    places = case.kernels[1:-2] if case.by_place else ()
    attention = jax.nn.softmax(jax.random.normal(keys[2], (case.x[0], case.kernels[0], *places)), axis=1)

    def forward(x, kernels, attention):
        return PLANS[name].function(x, kernels, attention, case.geometry)

    return compile_call(forward, 'forward+backward', x, kernels, attention)


def _compile_partial(case: PartialCase, name: str) -> Call:
    whole, axis = case.whole, case.axis
    size = math.prod(whole.geometry.kernel_size) if axis == -3 else whole.kernels[axis]
    num_dynamic = min(max(round(case.tenths * size / 10), 1), size - 1)
    taps = [math.prod(whole.geometry.kernel_size)] if axis == -3 else whole.geometry.kernel_size

    def shape(count):
        sizes = [*taps, *whole.kernels[-2:]]
        sizes[axis] = count
        return tuple(sizes)

    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], whole.x, whole.dtype)
    kernels = jax.random.normal(keys[1], (whole.kernels[0], *shape(num_dynamic)))
    static = jax.random.normal(keys[2], shape(size - num_dynamic))
    places = whole.geometry.kernel_size if whole.by_place else ()
    attention = jax.nn.softmax(jax.random.normal(keys[3], (whole.x[0], whole.kernels[0], *places)), axis=1)
    settings = {
        'granularity': {-1: 'output', -2: 'input', -3: 'spatial'}[axis],
        'kernel_size': whole.geometry.kernel_size,
        'strides': whole.geometry.strides,
        'padding': whole.geometry.padding,
        'input_dilation': whole.geometry.input_dilation,
        'kernel_dilation': whole.geometry.kernel_dilation,
        'feature_group_count': whole.geometry.groups,
        'plan': name,
    }

    def forward(x, kernels, static, attention):
        return partial_convolution(x, kernels, static, attention, jnp.arange(num_dynamic), **settings)

    return compile_call(forward, 'forward+backward', x, kernels, static, attention)


def _compile_mixture(case: MixtureCase, name: str) -> Call:
    keys = jax.random.split(jax.random.key(0), 3)
    width = case.shape[0] // 2 if case.parameter == 'neurons' else case.shape[0]
    x = jax.random.normal(keys[0], (case.tokens, width), case.dtype)
    experts = jax.random.normal(keys[1], (case.experts, *case.shape))
    # About as even as a trained router's choice.
    assignment = assign_top_k(jax.random.normal(keys[2], (case.tokens, case.experts)), case.selected)
    apply = {'kernel': multiply_experts, 'neurons': apply_experts}[case.parameter]

    def forward(x, experts, weights):
        layout = DISPATCHERS[name].arrange(assignment._replace(weights=weights), case.experts, 1.0)
        return apply(x, experts.astype(x.dtype), DISPATCHERS[name], layout)

    return compile_call(forward, 'forward+backward', x, experts, assignment.weights)


def tabulate_cases(measured: Mapping[Case, Measured], title: str) -> Table:
    """Cases by plans, with the choice, what is fastest, and how much longer the choice takes."""
    names = list(dict.fromkeys(name for found in measured.values() for name in found.seconds))
    table = make_table(title, ['shape'], ['layers', *names])
    for heading in ('chosen', 'fastest'):
        table.add_column(heading)
    table.add_column('chosen / fastest', justify='right')
    for case, found in measured.items():
        milliseconds = (f'{found.seconds[name] * 1e3:.3g}' if name in found.seconds else '' for name in names)
        table.add_row(str(case), str(found.count), *milliseconds, found.chosen, found.fastest, f'{found.loss:.2f}')
    table.add_section()
    mean = _mean_loss(list(measured.values()))
    blanks = [''] * (len(names) + 3)
    table.add_row('geometric mean', *blanks, f'{mean:.2f}', style='bold')
    return table


def _mean_loss(found: Sequence[Measured]) -> float:
    return statistics.geometric_mean(row.loss for row in found)
