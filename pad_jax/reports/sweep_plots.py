"""Figures of a sweep, drawn as those of `plots`. Each takes what has at least one finished cell."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pad_jax.reports.mask_overlap import Overlap
from pad_jax.reports.plots import COLOURS, format_short, styled
from pad_jax.reports.sweep_results import Results, Variant

_MARKERS = 'osD^vP*X'  # with the colours, told apart for 56 variants
_GREY = '#555555'
_WIDE = 6.0  # a ratio of parameters from which on their axis is logarithmic


@styled
def plot_tradeoff(results: Results, cost: str, label: str) -> Figure:
    """The measure that counts against a cost: means over seeds with their 95 % intervals, and the Pareto front.

    The front joins the variants that no other beats: none reaches as much for less.

    Args:
      cost: of `COSTS`.
      label: of its axis.
    """
    figure, axes = _with_legend()
    points = []
    for variant, style in _styles(results.shown):
        score, found = variant.estimate(results.score), variant.estimate(cost)
        x, y = found.mean, 100 * score.mean
        points.append((x, y))
        margin = None if score.count == 1 else 100 * score.margin
        axes.errorbar(
            x, y, margin, fmt=style['marker'], color=style['color'], markersize=8, capsize=3, elinewidth=1.2,
            label=f'{variant.name} ({_count_seeds(score.count)})',
        )  # fmt: skip
    front = find_front(points)
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where='post', color=_GREY, linestyle='--', linewidth=1.2, zorder=0.9)
        axes.lines[-1].set_label('Pareto front of the means')
    axes.set(title=f'{_title(results.score)} against {label}', xlabel=label, ylabel=f'{results.score} in %')
    xs = [x for x, _ in points]
    if cost == 'parameters':
        if max(xs) > _WIDE * min(xs):
            axes.set_xscale('log')
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(format_short))
    _show_legend(figure, axes)
    return figure


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
    for variant, style in _styles(results.shown):
        network = variant.network
        for axes, curve in ((loss, network.curve('train', 'loss')), (score, network.curve('eval', *names))):
            steps, found = curve
            scale = 100 if axes is score else 1
            mean, error = scale * found.mean, scale * found.standard_error
            axes.plot(
                steps, mean, color=style['color'], linestyle=style['linestyle'], label=variant.name, linewidth=1.6
            )
            if len(network.runs) > 1:
                axes.fill_between(steps, mean - error, mean + error, color=style['color'], alpha=0.15, linewidth=0)
    loss.set(title='Training loss', ylabel='loss per example')
    score.set(title=f'{_title(results.score)} on held-out examples', ylabel=f'{results.score} in %')
    for axes in (loss, score):
        axes.set_xlabel('steps')
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
        _write(axes, column, row + 0.22, chance, overlap.found, fontsize=7.5)
    axes.set_yticks(range(size), names, parse_math=False)
    _name_columns(axes, variants)
    axes.set_title('Overlap of masks; below it: by chance · by chance within layers', loc='left')
    return figure


def _styles(variants: Sequence[Variant]):
    lines = ('-', '--', ':', '-.')
    for index, variant in enumerate(variants):
        around = index // len(COLOURS)
        yield (
            variant,
            {
                'color': COLOURS[index % len(COLOURS)],
                'marker': _MARKERS[index % len(_MARKERS)],
                'linestyle': lines[around % len(lines)],
            },
        )


def _with_legend() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5))
    return figure, figure.subplots()


def _show_legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc='outside right upper')


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


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _count_seeds(count: int) -> str:
    return 'one seed' if count == 1 else f'{count} seeds'
