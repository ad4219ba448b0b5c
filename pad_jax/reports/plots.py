"""Figures of runs. Each function returns a matplotlib Figure, made without pyplot, so without display or state."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, MaxNLocator, NullLocator

from pad_jax.errors import BadInput
from pad_jax.reports.runs import Network, Partition

# Okabe and Ito: told apart with every kind of colour vision. Their yellow is too pale for lines on white.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_STYLE = {
    'font.family': 'DejaVu Sans',  # comes with matplotlib and has κ
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#E4E4E4',
    'legend.frameon': False,
    'figure.constrained_layout.use': True,
}
_ACCURACY_TICKS = (0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_LEAST_ERROR = 5e-4
_ROW_INCHES = 0.26
_MOST_INCHES = 40.0


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The same look whatever the user's matplotlibrc says."""

    @functools.wraps(draw)
    def draw_styled(*arguments, **named) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*arguments, **named)

    return draw_styled


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
      BadInput: if the path can't be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise BadInput(f'{path} cannot be written: {error.strerror}') from error


@styled
def plot_training_curves(networks: Sequence[Network]) -> Figure:
    """Train loss and eval accuracy over steps: mean over seeds, with a band of ± its standard error."""
    figure = Figure(figsize=(11, 4.4))
    loss, accuracy = figure.subplots(1, 2)
    for index, network in enumerate(networks):
        colour = COLOURS[index % len(COLOURS)]
        label = f'{network.name} (κ = {network.total("dynamic_fraction"):.3g})'
        for axes, split, name in ((loss, 'train', 'loss'), (accuracy, 'eval', 'accuracy')):
            steps, found = network.curve(split, name)
            axes.plot(steps, found.mean, color=colour, label=label, linewidth=1.8)
            if len(network.runs) > 1:
                low, high = found.mean - found.standard_error, found.mean + found.standard_error
                axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    loss.set(title='Training loss', ylabel='nats per example', yscale='log')
    accuracy.set(title='Accuracy on held-out examples', ylabel='accuracy (axis: log of the error)')
    figure.get_layout_engine().set(wspace=0.06)  # between one panel and the label of the next
    loss.yaxis.set_major_formatter(FuncFormatter(_format_count))
    loss.yaxis.set_minor_formatter(_PlainLogFormatter())
    _scale_by_errors(accuracy)
    for axes in (loss, accuracy):
        axes.set_xlabel('steps')
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.legend(loc='lower right', title=_over_seeds(networks))
    return figure


@styled
def plot_dynamic_fractions(networks: Sequence[Network]) -> Figure:
    """Which fraction stays dynamic in each layer, for the partially dynamic networks among those given.

    Bars are means over seeds with ± their standard error; a dashed line marks each overall κ. Networks must have the
    same dynamic layers.
    """
    # The colours are those of the training curves.
    colours = {network.name: COLOURS[index % len(COLOURS)] for index, network in enumerate(networks)}
    networks = [network for network in networks if network.has_partition]
    names = networks[0].layer_names
    rows = np.arange(len(names))
    height = 0.8 / len(networks)
    figure = Figure(figsize=(9, _layer_inches(len(names) * (1 + 0.5 * (len(networks) - 1)))))
    axes = figure.subplots()
    for index, network in enumerate(networks):
        found = network.layer_fractions
        several = len(network.runs) > 1
        axes.barh(
            rows + (index - (len(networks) - 1) / 2) * height,
            found.mean,
            height=height * 0.92,
            color=colours[network.name],
            label=f'{network.name}: {network.kind}',
            xerr=found.standard_error if several else None,
            error_kw={'elinewidth': 1.2, 'capsize': 2, 'ecolor': '#333333'},
        )
    for fraction in sorted({round(network.total('dynamic_fraction'), 3) for network in networks}):
        axes.axvline(fraction, color='#333333', linestyle='--', linewidth=1.2, label=f'overall, κ = {fraction:.3g}')
    _label_layers(axes, names)
    axes.set(title=f'Which fraction of each layer stays dynamic ({_over_seeds(networks)})', xlabel='dynamic fraction κ')
    lines_last = sorted(axes.get_legend_handles_labels()[0], key=lambda handle: handle in axes.lines)
    figure.legend(handles=lines_last, loc='outside lower center', ncols=2)
    return figure


@styled
def plot_partition(partition: Partition) -> Figure:
    """The partition of one run: κ of each dynamic layer, and the parameters that are behind it."""
    layers, totals = partition['layers'], partition['totals']
    names = [layer['name'] for layer in layers]
    rows = np.arange(len(names))
    figure = Figure(figsize=(11, _layer_inches(len(names))))
    fraction, parameters = figure.subplots(1, 2, sharey=True)
    fraction.barh(rows, [layer['dynamic_fraction'] for layer in layers], height=0.75, color=COLOURS[0])
    overall = totals['dynamic_fraction']
    fraction.axvline(overall, color='#333333', linestyle='--', linewidth=1.2, label=f'overall, κ = {overall:.3g}')
    fraction.set(title='Dynamic fraction', xlabel='dynamic fraction κ')
    _label_layers(fraction, names)
    left = np.zeros(len(names))
    kinds = (('dynamic', COLOURS[0]), ('static', COLOURS[4]), ('other', '#9A9A9A'))
    for kind, colour in kinds:
        counts = np.array([layer[f'{kind}_parameters'] for layer in layers], float)
        parameters.barh(rows, counts, left=left, height=0.75, color=colour, label=f'{kind} parameters')
        left += counts
    parameters.set(title='Parameters', xlabel='parameters')
    parameters.xaxis.set_major_formatter(FuncFormatter(_format_count))
    parameters.grid(axis='y', visible=False)
    parameters.tick_params(axis='y', length=0)
    figure.legend(loc='outside lower center', ncols=4)
    return figure


class _PlainLogFormatter(LogFormatter):
    """Labels the ticks that a logarithmic axis has room for, as 0.6 and not as 6 × 10⁻¹."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return _format_count(value, position) if super().__call__(value, position) else ''


def _scale_by_errors(axes) -> None:
    """Spaces accuracies as the logarithm of their errors: 90, 99 and 99.9 % are equally far apart."""

    def forward(accuracy):
        return -np.log10(np.maximum(1 - accuracy, _LEAST_ERROR))

    def inverse(scaled):
        return 1 - 10.0**-scaled

    low, high = (forward(limit) for limit in axes.dataLim.intervaly)
    margin = 0.05 * max(high - low, 0.1)
    axes.set_yscale('function', functions=(forward, inverse))
    axes.set_ylim(inverse(low - margin), inverse(high + margin))
    axes.yaxis.set_major_locator(FixedLocator(_ACCURACY_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:.4g}%'))


def _label_layers(axes, names: Sequence[str]) -> None:
    """One row a layer, the first of the network on top."""
    axes.set_yticks(range(len(names)), names, parse_math=False)  # a layer may be called $
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.grid(axis='y', visible=False)
    axes.tick_params(axis='y', length=0)


def _layer_inches(rows: float) -> float:
    return min(1.6 + _ROW_INCHES * rows, _MOST_INCHES)


def _over_seeds(networks: Sequence[Network]) -> str:
    seeds = {len(network.runs) for network in networks}
    if seeds == {1}:
        return 'one seed'
    return f'mean ± s.e. over {"–".join(map(str, sorted(seeds)))} seeds'


def _format_count(count: float, _) -> str:
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if count >= size:
            return f'{count / size:g}{letter}'
    return f'{count:g}'
