"""Figures of a sweep, drawn as those of `plots`. Each takes what has at least one finished cell."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from pad_jax.reports.mask_overlap import Overlap
from pad_jax.reports.plots import COLOURS, format_short, styled
from pad_jax.reports.sweep_results import Results, Variant

_COLOURS = (*COLOURS, '#7A4B2A')
_MARKERS = 'osD^vP*Xhp'  # more than colours and no multiple: their pairs come round late
_LINES = ('-', '--', ':', '-.')
_GREY = '#555555'
_WIDE = 6.0  # a ratio of costs from which on their axis is logarithmic
_NEAR = 0.02  # of the axis: what is nearer is drawn side by side
_POINTS_BESIDE = 9.0  # so far from the next, in typographic points


@styled
def plot_tradeoff(results: Results, cost: str, label: str) -> Figure:
    """The measure that counts against a cost: means over seeds with their 95 % intervals, and the Pareto front.

    The front joins the variants that no other beats: none reaches as much for less.

    Args:
      cost: of `COSTS`.
      label: of its axis.
    """
    figure = Figure(figsize=(9, 5))
    axes = figure.subplots()
    variants = results.shown
    scores = [variant.estimate(results.score) for variant in variants]
    costs = [variant.estimate(cost).mean for variant in variants]
    if wide := min(costs) > 0 and max(costs) > _WIDE * min(costs):
        axes.set_xscale('log')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    if max(costs) >= 1000:
        axes.xaxis.set_major_formatter(FuncFormatter(format_short))
    counts = {score.count for score in scores}
    shifts = spread_out(np.log(costs) if wide else costs)
    for variant, look, score, x, shift in zip(variants, _looks(), scores, costs, shifts, strict=False):
        aside = ScaledTranslation(shift * _POINTS_BESIDE / 72, 0, figure.dpi_scale_trans)
        drawn = axes.errorbar(
            x,
            100 * score.mean,
            None if score.count == 1 else 100 * score.margin,
            fmt=look.marker,
            color=look.colour,
            markersize=8,
            capsize=3,
            elinewidth=1.2,
            label=variant.name if len(counts) == 1 else f'{variant.name} ({count_seeds(score.count)})',
        )
        for artist in drawn.get_children():
            artist.set_transform(axes.transData + aside)
    front = find_front([(x, 100 * score.mean) for x, score in zip(costs, scores, strict=True)])
    if front:
        corners = [*front, (max(costs), front[-1][1])]
        line = {'color': _GREY, 'linestyle': '--', 'linewidth': 1.2, 'zorder': 0.9}
        axes.step(*zip(*corners, strict=True), where='post', label='Pareto front', **line)
    axes.set(title=f'{results.title} against {label}', xlabel=label, ylabel=f'{results.score} in %')
    several = f'mean of {count_seeds(max(counts))}' if len(counts) == 1 else 'mean over seeds'
    title = 'one seed' if counts == {1} else f'{several}, 95 %'
    figure.legend(*axes.get_legend_handles_labels(), loc='outside right upper', title=title)
    return figure


def spread_out(places: Sequence[float]) -> list[float]:
    """Steps to the side for those that would be drawn over one another, around 0.

    >>> spread_out([0.3, 0.1, 0.3, 1.0, 0.3001])
    [-1.0, 0.0, 0.0, 0.0, 1.0]
    """
    order = np.argsort(places, kind='stable')
    near = _NEAR * (np.max(places) - np.min(places))
    groups = [[order[0]]]
    for index in order[1:]:
        if places[index] - places[groups[-1][0]] <= near:
            groups[-1].append(index)
        else:
            groups.append([index])
    shifts = [0.0] * len(places)
    for group in groups:
        for rank, index in enumerate(group):
            shifts[index] = rank - (len(group) - 1) / 2
    return shifts


def find_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, gain) that no other beats in one without being beaten in the other, the cheapest first.

    >>> find_front([(3, 0.9), (1, 0.5), (2, 0.4), (3, 0.8), (4, float('nan'))])
    [(1, 0.5), (3, 0.9)]
    """
    front = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not np.isnan(gain) and (not front or gain > front[-1][1]):
            front.append((cost, gain))
    return front


@styled
def plot_curves(results: Results) -> Figure:
    """Training loss and the measure that counts over steps: means over seeds, bands of ± a standard error."""
    figure = Figure(figsize=(11, 5.2))
    loss, score = figure.subplots(1, 2)
    names = results.shown[0].finished[0].run.metric_names
    for variant, look in zip(results.shown, _looks(), strict=False):
        network = variant.network
        for axes, curve in ((loss, network.curve('train', 'loss')), (score, network.curve('eval', *names))):
            steps, found = curve
            scale = 100 if axes is score else 1
            mean, error = scale * found.mean, scale * found.standard_error
            axes.plot(steps, mean, color=look.colour, linestyle=look.linestyle, label=variant.name, linewidth=1.6)
            if len(network.runs) > 1:
                axes.fill_between(steps, mean - error, mean + error, color=look.colour, alpha=0.12, linewidth=0)
    loss.set(title='Training loss', ylabel='loss per example')
    score.set(title=f'{results.title} on held-out examples', ylabel=f'{results.score} in %')
    for axes in (loss, score):
        axes.set_xlabel('steps')
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.get_layout_engine().set(wspace=0.06)  # between one panel and the label of the next
    figure.legend(*loss.get_legend_handles_labels(), loc='outside lower center', ncols=4)
    return figure


@styled
def plot_layer_fractions(variants: Sequence[Variant]) -> Figure:
    """Which fraction of each layer stays dynamic, mean over seeds: a row a layer, a column a partial variant."""
    names = list(dict.fromkeys(name for variant in variants for name in variant.network.layer_names))
    table = np.full((len(names), len(variants)), np.nan)
    for column, variant in enumerate(variants):
        network = variant.network
        for name, fraction in zip(network.layer_names, network.layer_fractions.mean, strict=True):
            table[names.index(name), column] = fraction
    figure = Figure(figsize=(3.2 + 0.95 * len(variants), min(2.0 + 0.27 * len(names), 40)))
    axes = figure.subplots()
    _draw_table(figure, axes, table, 'dynamic fraction κ')
    for (row, column), fraction in np.ndenumerate(table):
        _write(axes, column, row, '–' if np.isnan(fraction) else f'{fraction:.2f}', fraction)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    _name_columns(axes, variants)
    axes.set_title('Which fraction of each layer stays dynamic', loc='left')
    return figure


@styled
def plot_overlaps(variants: Sequence[Variant], overlaps: Mapping[tuple[str, str], Overlap | None]) -> Figure:
    """Overlap of masks, in small below it that of random masks of the same κ, overall and in each layer.

    Args:
      overlaps: of `compare_variants`, over all pairs of the variants.
    """
    names = [variant.name for variant in variants]
    size = len(names)
    table = np.full((size, size), np.nan)
    figure = Figure(figsize=(4.0 + 1.15 * size, 2.6 + 0.75 * size))
    axes = figure.subplots()
    for (first, second), overlap in overlaps.items():
        if overlap is not None:
            table[names.index(second), names.index(first)] = overlap.found
    _draw_table(figure, axes, table, "Jaccard's index of dynamic positions")
    for (first, second), overlap in overlaps.items():
        row, column = names.index(second), names.index(first)
        if overlap is None:
            _write(axes, column, row, 'n/a', np.nan)
            continue
        _write(axes, column, row - 0.17, f'{overlap.found:.2f}', overlap.found, weight='bold')
        chance = f'{overlap.by_chance:.2f} · {overlap.by_chance_in_layers:.2f}'
        _write(axes, column, row + 0.22, chance, overlap.found, fontsize=8.5)
    axes.set_yticks(range(size), names, parse_math=False)
    _name_columns(axes, variants)
    axes.set_title('Overlap of masks; below it: by chance · by chance within layers', loc='left')
    return figure


class _Look(NamedTuple):
    colour: str
    marker: str
    linestyle: str


def _looks() -> Iterator[_Look]:
    """Told apart for 40 variants as points and 32 as lines; the same for a variant in all figures."""
    for index in itertools.count():
        around = index // len(_COLOURS)
        yield _Look(_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)], _LINES[around % len(_LINES)])


def _draw_table(figure: Figure, axes: Axes, table: np.ndarray, label: str) -> None:
    image = axes.imshow(table, cmap='Blues', vmin=0, vmax=1, aspect='auto')
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.colorbar(image, ax=axes, label=label, fraction=0.05, pad=0.02)


def _write(axes: Axes, x: float, y: float, text: str, shade: float, **look) -> None:
    colour = 'white' if shade > 0.6 else '#222222'
    axes.text(x, y, text, ha='center', va='center', color=colour, **{'fontsize': 9, **look})


def _name_columns(axes: Axes, variants: Sequence[Variant]) -> None:
    names = [variant.name for variant in variants]
    axes.set_xticks(range(len(names)), names, rotation=30, ha='right', rotation_mode='anchor', parse_math=False)


def count_seeds(count: int) -> str:
    """
    >>> count_seeds(1), count_seeds(3)
    ('one seed', '3 seeds')
    """
    return 'one seed' if count == 1 else f'{count} seeds'
