"""Which figures a sweep has, what stands below each, and why others are left out."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from pad_jax.reports.mask_overlap import compare_variants, read_masks
from pad_jax.reports.sweep_plots import plot_curves, plot_layer_fractions, plot_overlaps, plot_tradeoff
from pad_jax.reports.sweep_results import Results, Variant

_LEAST_APART = 0.005  # of κ: by groups of positions the same target is met by slightly different fractions


class Drawing(NamedTuple):
    """A figure of a report.

    Attributes:
      name: of its file, without .png.
      title: its heading.
      caption: what to see in it.
      figure: None where it would show nothing; then the caption says why.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None


def draw_figures(results: Results) -> list[Drawing]:
    """All figures of a sweep. Masks are read from the checkpoints, one after the other.

    Raises:
      BadInput: if a finished cell has no sound checkpoint.
    """
    partial = [variant for variant in results.shown if variant.network.has_partition]
    return [_draw_parameters(results), _draw_kappa(results), _draw_curves(results), *_draw_masks(results, partial)]


def _draw_parameters(results: Results) -> Drawing:
    caption = (
        'Means over the finished seeds with their 95 % intervals (Student’s t; none for a single seed). The dashed '
        'line is the Pareto front of the means: nothing above it, and nothing on it is beaten by a smaller network. '
        'What would be drawn over one another is drawn side by side.'
    )
    figure = plot_tradeoff(results, 'parameters', 'parameters')
    return Drawing('score_parameters', f'{results.title} against parameters', caption, figure)


def _draw_kappa(results: Results) -> Drawing:
    name, title = 'score_kappa', f'{results.title} against κ'
    found = [variant.estimate('dynamic_fraction').mean for variant in results.shown]
    if max(found) - min(found) < _LEAST_APART:
        return Drawing(name, title, f'All finished variants have the same κ, {found[0]:.3g}.', None)
    caption = (
        'κ is the fraction of positions that stay dynamic: 0 in a static network, 1 in a fully dynamic one. Intervals '
        'and front as above.'
    )
    return Drawing(name, title, caption, plot_tradeoff(results, 'dynamic_fraction', 'dynamic fraction κ'))


def _draw_curves(results: Results) -> Drawing:
    caption = (
        'Means over the finished seeds; bands are ± one standard error of the mean, and there are none for a single '
        'seed. On the left the loss of training batches, on the right held-out examples.'
    )
    return Drawing('training_curves', 'Training', caption, plot_curves(results))


def _draw_masks(results: Results, partial: Sequence[Variant]) -> list[Drawing]:
    layers, overlap = ('layer_fractions', 'Dynamic fraction per layer'), ('mask_overlap', 'Overlap of masks')
    if not partial:
        reason = 'No finished variant is partially dynamic: there are no masks.'
        return [Drawing(*layers, reason, None), Drawing(*overlap, reason, None)]
    without = [variant.name for variant in results.shown if variant not in partial]
    left_out = f' Without masks, and so not here: {", ".join(without)}.' if without else ''
    caption = f'Mean over the finished seeds, the first layer on top; – where a network lacks the layer.{left_out}'
    drawn = [Drawing(*layers, caption, plot_layer_fractions(partial))]
    masks = {variant.name: {cell.seed: read_masks(cell.workdir) for cell in variant.finished} for variant in partial}
    overlaps = compare_variants(masks)
    if not any(overlaps.values()):
        reason = 'No two finished runs have masks of the same shapes to compare.'
        return [*drawn, Drawing(*overlap, reason, None)]
    caption = (
        'Jaccard’s index: positions dynamic in both masks / positions dynamic in either, from the newest checkpoints. '
        'A variant with itself: every two of its seeds; with another: the runs that share a seed. In small: the same '
        'of random masks with the same κ, then of random masks with the same κ in every layer. What is above the '
        'second number is agreement on places within layers; what that is above the first, agreement on layers. Two '
        'seeds draw different weights, and the units of a layer have no order: their places need not agree, however '
        'much they matter.'
    )
    return [
        *drawn,
        Drawing(*overlap, f'{caption}{_explain_gaps(overlaps)}{left_out}', plot_overlaps(partial, overlaps)),
    ]


def _explain_gaps(overlaps) -> str:
    alone = [first for (first, second), found in overlaps.items() if first == second and found is None]
    gaps = [f'{first} and {second}' for (first, second), found in overlaps.items() if first != second and found is None]
    said = f' n/a, since only one seed is finished: {", ".join(alone)}.' if alone else ''
    if gaps:
        said += f' n/a, since their masks have other shapes or they share no finished seed: {"; ".join(gaps)}.'
    return said
