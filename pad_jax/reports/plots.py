"""Figures of runs, sweeps and inspections.

Every function returns a matplotlib Figure made without pyplot, so it needs no display and keeps no state.
matplotlib is imported when a figure is drawn.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pad_jax.errors import BadInput
from pad_jax.reports.runs import Network, Partition
from pad_jax.reports.stats import estimate_interval, estimate_mean
from pad_jax.reports.tables import NATS, Measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours can be told apart with every kind of colour vision. Their yellow is too pale on white.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#7A4B2A')
_MARKERS = 'osD^vP*Xhp'  # more than colours and not a multiple, so that pairs repeat late
_LINES = ('-', '--', ':', '-.')
_DARK = '#333333'
_STYLE = {
    'font.family': 'DejaVu Sans',  # ships with matplotlib and has κ
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#E4E4E4',
    'legend.frameon': False,
    'figure.constrained_layout.use': True,
    'text.parse_math': False,  # a run or a layer may be called $
}
_MIN_ERROR = 5e-4  # on a logarithmic axis
_MAX_INCHES = 60.0
_WIDE_RATIO = 6.0  # ratio of costs above which their axis is logarithmic
_FEW_SEEDS = 4
_POINTS_BESIDE = 9.0  # distance of points with equal costs, in typographic points


def styled(draw: Callable[..., 'Figure']) -> Callable[..., 'Figure']:
    """Give a figure the same look under every matplotlibrc."""

    @functools.wraps(draw)
    def draw_styled(*arguments, **named) -> 'Figure':
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*arguments, **named)

    return draw_styled


def _make_figure(width: float, height: float) -> 'Figure':
    from matplotlib.figure import Figure

    return Figure(figsize=(width, min(height, _MAX_INCHES)))


def save_figure(figure: 'Figure', path: Path | BinaryIO) -> None:
    """Write a figure as PNG to a path or an open file.

    Raises:
      BadInput: if the path cannot be written.
    """
    try:
        figure.savefig(path, dpi=150, format='png')
    except OSError as error:
        raise BadInput(f'{path} cannot be written: {error.strerror}') from error


def _look(index: int) -> tuple[str, str, str]:
    """Return colour, marker and line of a network in all figures; 40 points and 32 lines are told apart."""
    around = index // len(COLOURS)
    return COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)], _LINES[around % len(_LINES)]


@styled
def plot_training_curves(
    networks: Sequence[Network], measure: Measure | None = None, as_error: bool = True
) -> 'Figure':
    """Plot the training loss and a measure on held-out examples: mean over seeds with a band of ± one standard error.

    Args:
      networks: a line each.
      measure: None for the score of the first.
      as_error: plot a share as 1 − share on a logarithmic axis, which suits accuracies near 1.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    measure = measure or networks[0].measure
    is_share, is_language = measure.unit == '%', measure.unit == NATS.unit
    as_error &= is_share
    figure = _make_figure(11, 5.0 + 0.2 * ((len(networks) - 1) // 4))
    panels = figure.subplots(1, 2)
    for index, network in enumerate(networks):
        (colour, marker, line), name = _look(index), f'{network.name} (κ = {network.total("dynamic_fraction"):.3g})'
        for axes, (steps, found) in zip(panels, (network.curve('train', 'loss'), network.curve('eval', measure.name))):
            mean, error = found.mean, found.standard_error
            if axes is panels[1] and as_error:
                mean = np.maximum(1 - mean, _MIN_ERROR)
            style = {'color': colour, 'linestyle': line, 'linewidth': 1.8}
            axes.plot(steps, mean, marker=marker if len(steps) == 1 else '', label=name, **style)
            if len(network.runs) > 1:
                axes.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
    title, label = f'{measure.name[:1].upper()}{measure.name[1:]}', measure.name if is_share else measure.heading
    panels[0].set(title='Training loss', ylabel=measure.unit if is_language else 'nats per example')
    panels[1].set(title=f'{title} on held-out examples', ylabel=label)
    if as_error:
        panels[1].set(title='Error on held-out examples', ylabel=f'1 − {label}')
    for axes in [panels[0]] * (not is_language) + [panels[1]] * as_error:
        axes.set_yscale('log')
        _format_log_axis(axes.yaxis)
    if is_share:
        panels[1].yaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
        _end_at_whole(panels[1], 1)
    figure.get_layout_engine().set(wspace=0.06)  # between a panel and the label of the next
    for axes in panels:
        axes.set_xlabel('steps')
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    seeds = _over_seeds(len(network.runs) for network in networks)
    figure.legend(*panels[1].get_legend_handles_labels(), loc='outside lower center', ncols=4, title=seeds)
    return figure


def _end_at_whole(axes, whole: float) -> None:
    """End an axis of shares at 0, unless some are negative (a correlation), and at the whole."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0) if axes.dataLim.y0 >= 0 else low, min(high, whole))


def _format_log_axis(axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 with plain numbers, such as 0.5 instead of 5 × 10⁻¹."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(format_short))


@styled
def plot_dynamic_fractions(partitions: Mapping[str, Sequence[Partition]], first_look: int = 0) -> 'Figure':
    """Plot κ of each layer: bars are means over seeds with ± one standard error, dashed lines mark each overall κ.

    Args:
      partitions: label -> partitions of the seeds of one network. All have the same dynamic layers.
      first_look: number of networks that the training curves show before these, so that the colours agree.
    """
    first, *_ = partitions.values()
    names = [layer['name'] for layer in first[0]['layers']]
    height = 0.8 / len(partitions)
    figure = _make_figure(9, 1.6 + 0.26 * len(names) * (1 + 0.5 * (len(partitions) - 1)))
    axes = figure.subplots()
    overall = set()
    for index, (label, seeds) in enumerate(partitions.items()):
        found = estimate_mean([[layer['dynamic_fraction'] for layer in one['layers']] for one in seeds])
        overall.add(round(estimate_mean([one['totals']['dynamic_fraction'] for one in seeds]).mean, 3))
        axes.barh(
            np.arange(len(names)) + (index - (len(partitions) - 1) / 2) * height,
            found.mean,
            height=height * 0.92,
            color=_look(first_look + index)[0],
            label=label,
            xerr=found.standard_error if len(seeds) > 1 else None,
            error_kw={'elinewidth': 1.2, 'capsize': 2, 'ecolor': _DARK},
        )
    for fraction in sorted(overall):
        axes.axvline(fraction, color=_DARK, linestyle='--', linewidth=1.2, label=f'overall, κ = {fraction:.3g}')
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    axes.grid(axis='y', visible=False)
    axes.tick_params(axis='y', length=0)
    axes.set_xlim(0, 1.02)
    axes.set(title=f'Dynamic fraction of each layer ({_over_seeds(map(len, partitions.values()))})')
    axes.set_xlabel('dynamic fraction κ')
    lines_last = sorted(axes.get_legend_handles_labels()[0], key=lambda handle: handle in axes.lines)
    figure.legend(handles=lines_last, loc='outside lower center', ncols=2)
    return figure


@styled
def plot_tradeoff(networks: Sequence[Network], cost: str, label: str) -> 'Figure':
    """Plot scores against a total of partition.json: their mean with its 95 % interval, or each of up to three seeds.

    Args:
      networks: a point each.
      cost: name of the total.
      label: its name in words.
    """
    from matplotlib.ticker import FuncFormatter
    from matplotlib.transforms import ScaledTranslation

    measure, costs = networks[0].measure, [network.total(cost) for network in networks]
    figure = _make_figure(9, 5)
    axes = figure.subplots()
    if min(costs) > 0 and max(costs) > _WIDE_RATIO * min(costs):
        axes.set_xscale('log')
        _format_log_axis(axes.xaxis)
    axes.xaxis.set_major_formatter(FuncFormatter(format_short))
    rounded = [f'{cost:.2g}' for cost in costs]
    for index, network in enumerate(networks):
        colour, marker, _ = _look(index)
        style = {'fmt': marker, 'color': colour, 'markersize': 8, 'capsize': 3, 'elinewidth': 1.2}
        values, margin = [measure.scale * run.evaluated[measure.name] for run in network.runs], None
        name = f'{network.name}, seeds: {len(values)}'
        if len(values) >= _FEW_SEEDS:  # an interval of two seeds is wider than the figure
            mean, margin, _ = estimate_interval(values)
            values = [mean]
        drawn = axes.errorbar([costs[index]] * len(values), values, margin, label=name, **style)
        # Draw points with about equal costs side by side.
        shift = rounded[:index].count(rounded[index]) * _POINTS_BESIDE / 72
        for artist in drawn.get_children():
            artist.set_transform(axes.transData + ScaledTranslation(shift, 0, figure.dpi_scale_trans))
    axes.set(title=f'{measure.name} against {label}', xlabel=label, ylabel=measure.heading)
    if measure.unit == '%':
        _end_at_whole(axes, measure.scale)
    title = f'mean, 95 % interval;\nseeds if fewer than {_FEW_SEEDS}'
    figure.legend(*axes.get_legend_handles_labels(), loc='outside right upper', title=title)
    return figure


def _over_seeds(counts: Iterable[int]) -> str:
    seeds = sorted(set(counts))
    return 'one seed' if seeds == [1] else f'mean ± s.e. over {"–".join(map(str, seeds))} seeds'


def format_short(count: float, _=None) -> str:
    """Format a tick of a matplotlib axis.

    >>> format_short(250_000)
    '250k'
    """
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if count >= size:
            return f'{count / size:g}{letter}'
    return f'{count:g}'
