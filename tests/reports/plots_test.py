import matplotlib.image
import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.reports.plots import plot_dynamic_fractions, plot_tradeoff, plot_training_curves, save_figure
from pad_jax.reports.runs import read_network, read_partition
from tests.reports.miniature_runs import write_run


@pytest.fixture
def networks(tmp_path):
    def workdirs(name, **others):
        return [
            write_run(tmp_path / name / f'{seed}', name, seed, losses=(2.0 + seed, 1.0), **others) for seed in range(2)
        ]

    return [
        read_network('static', workdirs('static', dynamic=None)),
        read_network('pad', workdirs('pad', dynamic=(6, 2))),
        read_network('random', workdirs('random', dynamic=(3, 5))),
    ]


def check_picture(figure, path):
    save_figure(figure, path)
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200
    assert pixels[..., :3].std() > 0.05


def test_training_curves_have_a_line_and_a_band_for_each_network(networks, tmp_path):
    figure = plot_training_curves(networks)
    for axes in figure.axes:
        assert len(axes.lines) == len(axes.collections) == len(networks)
    loss, _ = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_data(), [[10, 20], [2.5, 1.0]])
    band = loss.collections[0].get_paths()[0].vertices
    # seeds 2 and 3: 2.5 ± √(0.5 / 1) / √2
    assert (band[:, 1].min(), band[:, 1].max()) == (1.0, 3.0)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ['static (κ = 0)', 'pad (κ = 0.267)', 'random (κ = 0.267)']
    check_picture(figure, tmp_path / 'curves.png')


def test_axes_say_what_they_show_in_plain_numbers_and_apart(tmp_path):
    network = read_network('pad', [write_run(tmp_path / 'a', losses=(2.1, 0.4))])
    figure = plot_training_curves([network])
    check_picture(figure, tmp_path / 'curves.png')
    loss, accuracy = figure.axes
    assert accuracy.get_ylabel() == '1 − accuracy'
    shown = [label.get_text() for label in loss.get_yticklabels(which='both')]
    assert {'0.5', '1', '2'} <= set(shown) and not any('times' in text for text in shown)
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [0.5, 0.25])
    gap = accuracy.yaxis.label.get_window_extent().x0 - loss.get_window_extent().x1
    assert gap > 0.02 * figure.bbox.width


def partitions_of(networks):
    return {network.name: [run.partition for run in network.runs] for network in networks}


def test_dynamic_fractions_have_a_bar_for_each_layer_of_each_network(networks, tmp_path):
    figure = plot_dynamic_fractions(partitions_of(networks[1:]), first_look=1)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ['stage1/conv2', 'stage1/conv10']
    assert axes.yaxis_inverted()  # the first layer on top
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([6 / 10, 2 / 20, 3 / 10, 5 / 20])
    overall = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == '--']
    assert overall == [0.267]
    check_picture(figure, tmp_path / 'fractions.png')


def test_one_seed_has_neither_bands_nor_error_bars(tmp_path):
    network = read_network('pad', [write_run(tmp_path / 'a')])
    assert not any(axes.collections for axes in plot_training_curves([network]).axes)
    assert not plot_dynamic_fractions(partitions_of([network])).axes[0].collections


def test_equal_costs_are_drawn_side_by_side(tmp_path):
    def write(name, scores):
        runs = [write_run(tmp_path / name / f'{seed}', accuracies=(0.1, one)) for seed, one in enumerate(scores)]
        return read_network(name, runs)

    networks = [write(name, (0.9, 0.99, 0.95, 0.999)) for name in ('one', 'two')]
    large = write('large', (0.75, 0.5))
    for run in large.runs:
        run.partition['totals']['parameters'] = 5000
    figure = plot_tradeoff([*networks, large], 'parameters', 'parameters')
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ['one, seeds: 4', 'two, seeds: 4', 'large, seeds: 2']
    # A mean of four seeds; below four each seed is a point. The axis of percentages ends at the whole.
    assert [len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() not in '_|'][-1] == 2
    assert figure.axes[0].get_ylim()[1] == 100
    check_picture(figure, tmp_path / 'tradeoff.png')
    left, right = (line.get_window_extent().x0 for line in figure.axes[0].lines[:2])
    assert left < right and figure.axes[0].get_xscale() == 'log'


def test_the_look_does_not_depend_on_settings_and_leaves_them_alone(tmp_path):
    network = read_network('pad', [write_run(tmp_path / 'a')])
    with matplotlib.rc_context({'font.family': 'monospace', 'axes.grid': False}):
        plot_training_curves([network])
        assert matplotlib.rcParams['font.family'] == ['monospace']
        assert not matplotlib.rcParams['axes.grid']


def test_a_path_that_cannot_be_written(tmp_path):
    figure = plot_dynamic_fractions({'run': [read_partition(write_run(tmp_path / 'a'))]})
    with pytest.raises(BadInput, match='cannot be written'):
        save_figure(figure, tmp_path / 'nowhere' / 'a.png')
