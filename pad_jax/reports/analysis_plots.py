"""Figures of an analysis: where dynamic positions lie, and what varies over inputs, layer by layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from pad_jax.reports.analysis import LayerMeasures
from pad_jax.reports.locations import Location
from pad_jax.reports.plots import COLOURS, styled

_LAYER_INCHES = 0.75
_ROW_INCHES = 0.3
_MOST_INCHES = 60.0
_LEAST_SPAN = 0.02
_BEFORE, _NOW, _WHOLE = '#9A9A9A', COLOURS[0], COLOURS[4]


@styled
def plot_locations(locations: Sequence[Location]) -> Figure:
    """Maps of the dynamic fraction: for every layer its outputs, and its inputs, at each place of the kernel."""
    inches = min(1.0 + _LAYER_INCHES * len(locations), _MOST_INCHES)
    figure = Figure(figsize=(12, inches))
    grid = figure.subplots(len(locations), 2, squeeze=False)
    for row, location in zip(grid, locations, strict=True):
        for axes, fractions in zip(row, (location.by_output, location.by_input), strict=True):
            image = axes.imshow(fractions, aspect='auto', vmin=0, vmax=1, cmap='viridis', interpolation='nearest')
            axes.grid(visible=False)
            axes.set_xticks([0, fractions.shape[1] - 1])
            axes.set_yticks([])
            axes.tick_params(labelsize=7, length=2, pad=1)
        row[0].set_ylabel(location.name, rotation=0, ha='right', va='center', fontsize=8, parse_math=False)
        if len(location.places) > 1:
            first, last = location.places[0], location.places[-1]
            row[0].set_yticks([0, len(location.places) - 1], [first, last])
    grid[0][0].set_title('outputs (across) at each place of the kernel (down)')
    grid[0][1].set_title('inputs')
    figure.colorbar(image, ax=grid, label='dynamic fraction', shrink=min(1.0, 3 / inches), aspect=20, pad=0.01)
    return figure


@styled
def plot_measures(now: Mapping[str, LayerMeasures], before: Mapping[str, LayerMeasures]) -> Figure:
    """Variance over inputs of parameters and outputs, routing entropy and similarity, the first layer on top.

    Args:
      before: of the network as its run began; {} if unknown.
    """
    names, rows = list(now), np.arange(len(now))
    figure = Figure(figsize=(13, min(2.0 + _ROW_INCHES * len(names), _MOST_INCHES)))
    panels = figure.subplots(1, 4, sharey=True)

    def draw(axes, title, xlabel, *lines):
        for label, colour, measures, read in lines:
            if measures:
                values = [read(measures[name]) for name in names]
                axes.plot(values, rows, 'o-', color=colour, label=label, markersize=4, linewidth=1.2)
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.08), fontsize=8)

    draw(
        panels[0],
        'Parameters Ŵ(x)',
        'variance / mean square',
        ('all, as the run began', _BEFORE, before, lambda layer: layer.parameters.whole),
        ('dynamic positions, now', _NOW, now, lambda layer: layer.parameters.dynamic),
        ('all positions, now', _WHOLE, now, lambda layer: layer.parameters.whole),
    )
    panels[0].set_xscale('log', nonpositive='mask')  # a layer that routes all inputs alike has no point
    draw(
        panels[1],
        'Outputs',
        'variance / mean square',
        ('as the run began', _BEFORE, before, lambda layer: layer.outputs),
        ('now', _NOW, now, lambda layer: layer.outputs),
    )
    draw(
        panels[2],
        'Routing entropy',
        'share of log K',
        ('of an input, as the run began', _BEFORE, before, lambda layer: layer.share_of_most(layer.entropy)),
        ('of an input, now', _NOW, now, lambda layer: layer.share_of_most(layer.entropy)),
        ('of the mean, now', _WHOLE, now, lambda layer: layer.share_of_most(layer.mean_entropy)),
    )
    draw(
        panels[3],
        'Similarity of factors',
        'mean cosine at dynamic positions',
        ('as the run began', _BEFORE, before, lambda layer: layer.similarity),
        ('now', _NOW, now, lambda layer: layer.similarity),
    )
    panels[0].set_yticks(rows, names, parse_math=False)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    for axes in panels:
        axes.tick_params(axis='y', length=0)
        axes.margins(x=0.1)
    for axes in panels[1:]:  # differences of rounding errors are not to fill a panel
        low, high = axes.get_xlim()
        missing = max(_LEAST_SPAN - (high - low), 0) / 2
        axes.set_xlim(low - missing, high + missing)
    return figure
