"""Inspections of whole networks, compared with the numbers of layers that are applied by hand."""

import json
import shutil

import jax
import numpy as np
import pytest
import scipy.stats

from pad_jax.errors import BadInput
from pad_jax.layers import find_records
from pad_jax.models import MODELS
from pad_jax.partition import scale_factors
from pad_jax.partition.layout import PartialParameter
from pad_jax.reports.inspect import (
    inspect_workdir,
    measure_mixture,
    measure_network,
    observe_weights,
    read_held_out,
    tabulate_locations,
)
from pad_jax.reports.tables import format_count, print_table
from pad_jax.training.evaluate import restore_run
from pad_jax.training.rounds import summarize_partition
from pad_jax.training.setup import abstract_variables, make_inputs, make_model, make_task
from tests.reports.miniature_runs import cells
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ONE_BLOCK, small_config


@pytest.fixture
def write_run(tmp_path, monkeypatch):
    """Return `write_run(**changes)`, which writes a run of one block with the first half of each mask dynamic."""
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)

    def write(**changes):
        config = small_config(**changes)
        shapes = abstract_variables(make_model(config), make_inputs(config))
        half = lambda mask: (np.arange(mask.size) < mask.size // 2).reshape(mask.shape)  # noqa: E731
        masks = jax.tree.map(half, shapes.get('partition', {}))
        workdir = tmp_path / 'run'
        workdir.mkdir()
        (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
        (workdir / 'partition.json').write_text(json.dumps(summarize_partition(config, shapes, masks, 1)))
        return workdir

    return write


@pytest.fixture
def inspect(write_run, capsys):
    """Return `inspect(**changes)`: writes a run, inspects it; its text."""

    def run(**changes):
        inspect_workdir(write_run(**changes))
        return capsys.readouterr().out

    return run


def rows(text, name):
    """Return the cells of every row with a name."""
    lines = text.splitlines()
    return [cells(line, name) for line in lines if line.startswith(f'│ {name} ')]


@pytest.mark.parametrize('granularity', ['element', 'output'])
def test_tables_and_picture(inspect, tmp_path, granularity):
    text = inspect(partition__granularity=granularity)
    # 3·3·4·4 positions, half of them dynamic, K = 4; 4·4 + 4·4 + 4 of the attention and φ are the others.
    live = 4 * 72 + 72 + 37
    partition, saved = rows(text, 'stage1_block1/conv1')
    assert partition == ['stage1_block1/conv1', granularity, '144', '72', '0.5000', '0.8000', str(live)]
    dense = 8 * 8 * 144
    products = [format_count(count) for count in (dense, dense + 4 * 144 + 32, dense + 4 * 72 + 32)]
    assert saved == ['stage1_block1/conv1', str(4 * 144 + 144 + 37), str(live), *products]
    # A stem of 3·3·1·4, three norms of 2·4, and a classifier of 4·10 + 10.
    rest = 36 + 24 + 50
    others = 64 * 36 + 40
    assert rows(text, 'other layers') == [
        ['other layers', '', '', '', '', '', str(rest)],
        ['other layers', *[str(rest)] * 2, *[format_count(others)] * 3],
    ]
    assert rows(text, 'total') == [
        ['total', '', '288', '144', '0.5000', '0.8000', str(2 * live + rest)],
        [
            'total',
            f'{2 * (4 * 144 + 144 + 37) + rest:,}',
            str(2 * live + rest),
            *map(format_count, (2 * dense + others, 2 * (dense + 4 * 144 + 32) + others, 2 * (dense + 320) + others)),
        ],
    ]
    assert max(map(len, text.splitlines()[:-1])) <= 110
    picture = tmp_path / 'run' / 'partition.png'
    assert f'Picture: {picture}' in text and picture.read_bytes()[:4] == b'\x89PNG'


def test_a_fully_dynamic_network(inspect):
    assert rows(inspect(partition__dynamic_fraction=1.0), 'total')[0][2:6] == ['288', '288', '1', '1']


def test_a_pruned_network(inspect):
    text = inspect(partition__prune=True)
    # As in `test_tables_and_picture`, without static parameters.
    live = 4 * 72 + 37
    partition, saved = rows(text, 'stage1_block1/conv1')
    assert partition[2:] == ['144', '72', '0.5000', '1', str(live)]
    assert saved[1:3] == [str(4 * 144 + 37), str(live)]
    assert rows(text, 'total')[1][2] == str(2 * live + 36 + 24 + 50)


def test_a_network_without_dynamic_layers_says_so(inspect, tmp_path):
    text = inspect(model__conv='static')
    assert rows(text, 'total')[0] == ['total', '', '0', '0', '0', '0', '398']
    assert rows(text, 'total')[1][1:3] == ['398', '398']
    assert 'no dynamic layers' in text
    assert not (tmp_path / 'run' / 'partition.png').exists()


def test_a_partition_under_way_says_how_far_it_is(inspect):
    assert '1 of 4 rounds' in inspect(partition__rounds=4)


def test_layers_that_are_not_those_of_the_network(write_run):
    workdir = write_run()
    path = workdir / 'partition.json'
    path.write_text(path.read_text().replace('conv2', 'conv7'))
    with pytest.raises(BadInput, match=r'partition\.json is damaged: its layers are not those of the network'):
        inspect_workdir(workdir)


def draw_network(monkeypatch, **changes):
    """Return (task, model, variables with a third of each mask, records) of one block, away from its start."""
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)
    config, rng = small_config(**changes), np.random.default_rng(0)
    model = make_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *make_inputs(config))
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) - 0.3, shapes)
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
    variables['partition'] = jax.tree.map(
        lambda mask: (np.arange(mask.size) % 3 == 0).reshape(mask.shape), shapes['partition']
    )
    return make_task(config), model, variables, find_records(model, *make_inputs(config))


def make_batches(rng, sizes=(6, 6), last=4):
    """Make batches of images. Rows of the last one from `last` on are padding."""
    weights = [np.ones(size, np.float32) for size in sizes]
    weights[-1][last:] = 0
    return [{'image': rng.normal(size=(len(w), 8, 8, 1)).astype(np.float32), 'weight': w} for w in weights]


def test_every_measure_of_a_convolution_is_that_of_its_kernels(monkeypatch):
    task, model, variables, records = draw_network(monkeypatch)
    batches = make_batches(np.random.default_rng(1))
    with compiled_quickly():
        found = measure_network(variables, records, observe_weights(task, model, variables, batches, 2.0))
        images = np.concatenate([batch['image'][batch['weight'] > 0] for batch in batches])
        _, updates = model.apply(variables, images, 2.0, mutable=['intermediates'])
    assert list(found) == ['stage1_block1/conv1', 'stage1_block1/conv2']
    for name, layer in found.items():
        block, conv = name.split('/')
        params, mask = variables['params'][block][conv], variables['partition'][block][conv]['kernel_mask']
        (weights,) = jax.device_get(updates['intermediates'][block][conv]['routing'])
        scales = tuple(map(float, scale_factors(params['phi'])))
        kernels = scales[0] * mask * np.tensordot(weights, params['kernel'], axes=1)
        kernels = np.asarray(kernels + scales[1] * ~mask * params['static_kernel'], np.float64)
        variance, square = kernels.var(axis=0), (kernels**2).mean(axis=0)
        np.testing.assert_allclose(layer.dynamic, variance[mask].sum() / square[mask].sum(), rtol=1e-4)
        np.testing.assert_allclose(layer.whole, variance.sum() / square.sum(), rtol=1e-4)
        np.testing.assert_allclose(layer.load, weights.mean(axis=0).max(), rtol=1e-5)
        entropies = -(weights * np.log(weights)).sum(axis=1)
        np.testing.assert_allclose(layer.entropy, entropies.mean() / np.log(4), rtol=1e-5)
        assert layer.num_factors == 4 and layer.entropy <= layer.mean_entropy <= 1 + 1e-6


@pytest.mark.parametrize('conv', ['odconv', 'dcd'])
def test_generated_parameters_are_not_measured(monkeypatch, conv):
    task, model, variables, records = draw_network(monkeypatch, model__conv=conv)
    with compiled_quickly():
        weights = observe_weights(task, model, variables, make_batches(np.random.default_rng(1)), 2.0)
        found = measure_network(variables, records, weights)
    assert set(found) == ({f'stage1_block1/conv{number}' for number in (1, 2)} if conv == 'odconv' else set())


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid', 'constant'])
def test_measures_are_those_of_mixed_parameters(kind):
    rng = np.random.default_rng(0)
    factors, static, mask = rng.normal(size=(4, 3, 5)), rng.normal(size=(3, 5)), rng.random((3, 5)) < 0.6
    weights = {
        'softmax': rng.dirichlet(np.ones(4), size=50),
        'sigmoid': rng.random((50, 4)),
        'constant': np.full((50, 4), 0.25),
    }[kind]
    dynamic, static = mask * factors, ~mask * static
    mixed = np.tensordot(weights, dynamic, axes=1) + static  # [50, 3, 5]
    variance, square = mixed.var(axis=0), (mixed**2).mean(axis=0)
    flat = dynamic.reshape(4, -1)
    found = measure_mixture(flat @ flat.T, float((static**2).sum()), weights)
    np.testing.assert_allclose(found.dynamic, variance[mask].sum() / square[mask].sum(), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.whole, variance.sum() / square.sum(), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.entropy, scipy.stats.entropy(weights, axis=1).mean() / np.log(4))
    np.testing.assert_allclose(found.mean_entropy, scipy.stats.entropy(weights.mean(axis=0)) / np.log(4))
    pairs = [(i, j) for i in range(4) for j in range(i)]
    norms = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(
        found.similarity, np.mean([flat[i] @ flat[j] / norms[i] / norms[j] for i, j in pairs]), atol=1e-12
    )


def test_measures_without_meaning_are_not_numbers():
    none = measure_mixture(np.zeros((2, 2)), 1.0, np.full((3, 2), 0.5))
    assert np.isnan(none.dynamic) and none.whole == 0 and np.isnan(none.similarity)  # without a dynamic position
    one = measure_mixture(np.ones((1, 1)), 0.0, np.ones((3, 1)))
    assert np.isnan(one.similarity) and np.isnan(one.entropy)


def test_locations_of_a_mask_by_hand(capsys):
    mask, record = np.zeros((1, 2, 1, 3), bool), PartialParameter('kernel', (1, 2, 2, 3))
    mask[0, 1, 0, :2] = True
    print_table(tabulate_locations({'layer': {'kernel': mask}}, {'layer': {'kernel': record}}))
    # Of 3 outputs one is static; both taps of none are dynamic. Each of 2 inputs is 2 / 3 dynamic at the second tap.
    assert cells(capsys.readouterr().out, 'layer') == ['layer', '3', '1', '0', '2', '0', '0', '0 – 0.6667']


def measure_run(run, batches):
    task, model, variables = make_task(run.config), make_model(run.config), run.state.averaged_variables
    weights = observe_weights(task, model, variables, batches, run.temperature)
    return measure_network(variables, find_records(model, *make_inputs(run.config)), weights)


def table_rows(text, title):
    """Return the cells of the rows of a table."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(title))
    body = []
    for line in lines:
        if line.startswith('└'):
            return body
        if line.startswith('│'):
            body.append([cell.strip() for cell in line.strip('│').split('│')])


def test_a_compact_run_of_images(finished_run, tmp_path, capsys, one_block):
    workdir = tmp_path / 'run'
    shutil.copytree(finished_run, workdir)
    with compiled_quickly():
        inspect_workdir(workdir, ['partition.compact=True'])
        run = restore_run(workdir)
        masked = measure_run(run, read_held_out(run, workdir))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[:-1])) <= 130
    for row, (name, layer) in zip(table_rows(text, 'Variation over'), masked.items(), strict=True):
        assert row[:4] == [name, '4', *(f'{value:.3g}' for value in (layer.dynamic, layer.whole))]
    assert ('give every input the same parameters' in text) == any(layer.dynamic == 0 for layer in masked.values())
    first, *_ = table_rows(text, 'Outputs and inputs')
    assert (first[1], first[4]) == ('4', '4')


def test_tokens_are_the_inputs_of_a_mixture(finished_text_run, one_layer):
    run = restore_run(finished_text_run)
    batches = read_held_out(run, finished_text_run)
    found, once = measure_run(run, batches), measure_run(run, batches[:1])
    assert list(found) == ['layer_0/ffn/down', 'layer_0/ffn/up']
    # Padding does not count, neither of texts nor whole rows, so more rows of padding change nothing.
    batch, *_ = batches
    empty = {name: np.zeros_like(values) for name, values in batch.items()}
    assert measure_run(run, [batch, empty]) == once
    assert all(0 < layer.whole < layer.dynamic < 1 for layer in found.values())


def test_a_run_of_texts_without_its_data_has_locations_only(finished_text_run, tmp_path, capsys, one_layer):
    workdir = tmp_path / 'run'
    shutil.copytree(finished_text_run, workdir)
    inspect_workdir(workdir, [f'data.path={tmp_path / "gone"}'])
    text = capsys.readouterr().out
    assert [row[0] for row in table_rows(text, 'Outputs and inputs')] == ['layer_0/ffn/down', 'layer_0/ffn/up']
    left_out = [line for line in text.splitlines() if line.startswith('Left out')]
    assert len(left_out) == 1 and 'as the data cannot be read' in left_out[0] and 'gone' in left_out[0]
    assert (workdir / 'partition.png').exists() and 'Variation over' not in text
