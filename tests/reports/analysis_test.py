"""Analyses of whole networks, against the numbers of layers that are applied by hand."""

import shutil

import jax
import numpy as np
import pytest

from pad_jax.models import MODELS
from pad_jax.partition import scale_factors
from pad_jax.reports import inspection
from pad_jax.reports.analysis import measure_network, measure_run, read_held_out
from pad_jax.reports.analysis_plots import plot_measures
from pad_jax.reports.locations import locate_mask
from pad_jax.training.evaluate import restore_run
from pad_jax.training.setup import make_inputs, make_model, make_task
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ONE_BLOCK, small_config


def draw_network(monkeypatch, **changes):
    """(task, model, variables with a third of each mask) of one block, away from its start."""
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)
    config, rng = small_config(**changes), np.random.default_rng(0)
    model = make_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *make_inputs(config))
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) - 0.3, shapes)
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
    variables['partition'] = jax.tree.map(
        lambda mask: (np.arange(mask.size) % 3 == 0).reshape(mask.shape), shapes['partition']
    )
    return make_task(config), model, variables


def make_batches(rng, sizes=(6, 6), last=4):
    """Batches of images; of the last one some rows count for nothing."""
    weights = [np.ones(size, np.float32) for size in sizes]
    weights[-1][last:] = 0
    return [{'image': rng.normal(size=(len(w), 8, 8, 1)).astype(np.float32), 'weight': w} for w in weights]


def test_every_measure_of_a_convolution_is_that_of_its_kernels_and_outputs(monkeypatch):
    task, model, variables = draw_network(monkeypatch)
    batches = make_batches(np.random.default_rng(1))
    with compiled_quickly():
        found = measure_network(task, model, variables, batches=batches, scales='both', temperature=2.0)
        images = np.concatenate([batch['image'][batch['weight'] > 0] for batch in batches])
        _, updates = model.apply(variables, images, 2.0, mutable=['intermediates'], capture_intermediates=True)
    assert list(found) == ['stage1_block1/conv1', 'stage1_block1/conv2']
    for name, layer in found.items():
        block, conv = name.split('/')
        sown, params = (tree[block][conv] for tree in (updates['intermediates'], variables['params']))
        mask = variables['partition'][block][conv]['kernel']
        (routing,), (y,) = jax.device_get((sown['routing'], sown['__call__']))
        scales = tuple(map(float, scale_factors(params['phi'])))
        kernels = scales[0] * mask * np.tensordot(routing, params['kernel'], axes=1)
        kernels = np.asarray(kernels + scales[1] * ~mask * params['static_kernel'], np.float64)
        variance, square = kernels.var(axis=0), (kernels**2).mean(axis=0)
        np.testing.assert_allclose(layer.parameters.dynamic, variance[mask].sum() / square[mask].sum(), rtol=1e-4)
        np.testing.assert_allclose(layer.parameters.whole, variance.sum() / square.sum(), rtol=1e-4)
        y = np.asarray(y, np.float64)
        np.testing.assert_allclose(layer.outputs, y.var(axis=0).sum() / (y**2).mean(axis=0).sum(), rtol=1e-4)
        assert layer.num_factors == 4 and 0 < layer.entropy <= layer.mean_entropy <= np.log(4) + 1e-6
        assert layer.share_of_most(np.log(4)) == 1


@pytest.mark.parametrize(
    ('conv', 'parts'), [('odconv', ['', '/channel', '/filter', '/spatial']), ('dcd', ['/fusion', '/scaling'])]
)
def test_what_is_generated_is_measured_by_itself(monkeypatch, conv, parts):
    task, model, variables = draw_network(monkeypatch, model__conv=conv)
    with compiled_quickly():
        found = measure_network(
            task, model, variables, batches=make_batches(np.random.default_rng(1)), scales='both', temperature=2.0
        )
    assert [name for name in found if 'conv1' in name] == [f'stage1_block1/conv1{part}' for part in parts]
    generated = {name: layer for name, layer in found.items() if not layer.num_factors}
    assert len(generated) == 2 * sum(bool(part) for part in parts)
    assert all(0 <= layer.parameters.whole <= layer.parameters.dynamic <= 1 for layer in generated.values())
    figure = plot_measures(found, {})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(found)


def test_rows_of_neurons_are_places_of_their_own():
    mask = np.zeros((7, 2), bool)  # C = 3, F = 2
    mask[0], mask[3, 1], mask[4:, 0] = True, True, True
    found = locate_mask('ffn', 'neurons', mask, (7, 2))
    assert found.places == ('in', 'bias', 'out')
    np.testing.assert_allclose(found.by_output, [[1 / 3, 1 / 3], [0, 1], [1, 0]])
    np.testing.assert_allclose(found.by_input, [[1, 0, 0], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(found.by_place, [1 / 3, 0.5, 0.5])


def test_places_of_a_kernel_are_told_apart():
    mask = np.zeros((1, 2, 1, 1), bool)
    mask[0, 1] = True
    found = locate_mask('conv', 'kernel', mask, (1, 2, 3, 4))
    assert found.places == ('0,0', '0,1') and found.by_place.tolist() == [0, 1]
    assert found.by_output.tolist() == [[0] * 4, [1] * 4] and found.by_input.tolist() == [[0] * 3, [1] * 3]


def rows(text, title):
    """The cells of the rows of a table."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(title))
    body = []
    for line in lines:
        if line.startswith('└'):
            return body
        if line.startswith('│'):
            body.append([cell.strip() for cell in line.strip('│').split('│')])


@pytest.fixture
def uncounted(monkeypatch):
    """XLA's counts are another matter, which takes most of the time."""
    monkeypatch.setattr(inspection, 'measure_cost', lambda form, inputs: None)


def test_a_run_of_images_is_analysed_in_any_form(finished_run, tmp_path, capsys, one_block, uncounted):
    workdir = tmp_path / 'run'
    shutil.copytree(finished_run, workdir)
    with compiled_quickly():
        inspection.inspect_workdir(workdir, ['partition.compact=True'])
        run = restore_run(workdir)
        masked = measure_run(run, read_held_out(run, workdir))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[:-1])) <= 130
    for name in ('partition', 'locations', 'variation'):
        assert f'Picture: {workdir / name}.png' in text
        assert (workdir / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
    for row, layer in zip(rows(text, 'Variance over'), masked.values(), strict=True):
        values = layer.parameters.dynamic, layer.parameters.whole, layer.outputs
        assert [row[0], *row[2:4], row[5]] == [layer.name, *(f'{value:.3g}' for value in values)]
    (first, *_), (routing, *_) = rows(text, 'Where dynamic'), rows(text, 'Entropy of')
    assert (first[1], first[4], routing[1]) == ('4', '4', '4')


def test_tokens_are_the_inputs_of_a_mixture(finished_text_run, one_layer):
    run = restore_run(finished_text_run)
    batches = read_held_out(run, finished_text_run)
    found, once = measure_run(run, batches), measure_run(run, batches[:1])
    assert list(found) == ['layer_0/ffn/down', 'layer_0/ffn/up']
    # Padding counts for nothing: neither that of texts nor whole rows, of which the more change nothing.
    (batch, *_) = batches
    empty = {name: np.zeros_like(values) for name, values in batch.items()}
    assert measure_run(run, [batch, empty]) == once
    assert all(0 < layer.parameters.whole < layer.parameters.dynamic < 1 for layer in found.values())


def test_a_run_of_texts_whose_data_has_gone_is_located_alone(finished_text_run, tmp_path, capsys, one_layer, uncounted):
    workdir = tmp_path / 'run'
    shutil.copytree(finished_text_run, workdir)
    inspection.inspect_workdir(workdir, [f'data.path={tmp_path / "gone"}'])
    text = capsys.readouterr().out
    assert [row[0] for row in rows(text, 'Where dynamic')] == ['layer_0/ffn/down', 'layer_0/ffn/up']
    left_out = [line for line in text.splitlines() if line.startswith('Left out')]
    assert len(left_out) == 1 and 'needs the data' in left_out[0] and 'gone' in left_out[0]
    assert (workdir / 'locations.png').exists() and not (workdir / 'variation.png').exists()
