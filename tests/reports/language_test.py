"""Reports of language models: losses in nats a token, routing by token, and the similarity of experts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.reports.inspect import compare_neurons, inspect_workdir, tabulate_routing
from pad_jax.reports.plots import plot_tradeoff, plot_training_curves
from pad_jax.reports.runs import Measure, read_network, read_run
from pad_jax.reports.sweep import run_sweep
from pad_jax.reports.tables import NATS, print_table
from pad_jax.training.trainer import train
from tests.reports.inspect_test import table_rows
from tests.reports.miniature_runs import cells, write_run
from tests.reports.miniature_sweep import SCORES, write_miniature
from tests.training.fixtures import compiled_quickly, run_command
from tests.training.tiny import ROOT, one_device
from tests.training.tiny_language import (
    SMALL_CAUSAL,
    SMALL_MASKED,
    small_language_config,
    small_language_flags,
    write_places,
)

FAKE = [sys.executable, str(Path(__file__).parent / 'fake_run.py')]
SWEPT = {'base': SCORES['base'], 'by_magnitude': SCORES['by_magnitude']}


@pytest.fixture(scope='module')
def places(texts, tmp_path_factory):
    return write_places(tmp_path_factory.mktemp('language'), texts)


@pytest.fixture(scope='module')
def causal(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('causal') / 'run'
    with compiled_quickly():
        train(small_language_config(places), workdir, devices=one_device())
    return workdir


def write_language_run(workdir, places, losses, **changes):
    """Write a run of two domains, evaluated at the steps 10, 20, ... with `losses`."""
    write_run(workdir)
    (workdir / 'config.json').write_text(json.dumps(small_language_config(places, **changes).to_dict()))
    rows = []
    for step, loss in enumerate(losses, start=1):
        values = {'perplexity': np.exp(loss), 'sums/loss': loss - 0.5, 'sums/perplexity': 2.0}
        rows.append({'step': 10 * step, 'split': 'train', 'loss': loss + 1})
        rows.append({'step': 10 * step, 'split': 'eval', 'examples': 9, 'loss': loss, **values})
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return workdir


def test_the_score_of_a_language_model_is_its_loss_and_others_are_those_of_the_domains(places, tmp_path):
    run = read_run(write_language_run(tmp_path / 'a', places, (3.0, 2.25)))
    assert run.measures == (NATS, NATS._replace(name='sums/loss')) and run.kind == 'partially dynamic, sensitivity'
    assert run.measures[1].heading == 'sums/loss in nats a token' and NATS.better == 'lower'


def test_runs_side_by_side_have_losses_and_no_percentages(places, tmp_path):
    one = write_language_run(tmp_path / 'one', places, (3.0, 2.25))
    other = write_language_run(tmp_path / 'other', places, (3.0, 2.5), partition__dynamic_fraction=1.0)
    status, out, err = run_command('compare', one, other, f'--out={tmp_path}/curves.png')
    assert status == 0, err
    assert cells(out, str(one))[1:5] == ['partially dynamic, sensitivity', '20', '2.2500', '1.7500']
    assert cells(out, str(other))[1:5] == ['fully dynamic', '20', '2.5000', '2.0000']
    assert 'loss in nats a token' in out and '%' not in out
    # Beside a network of images they have no measure in common, but both have a loss.
    status, out, _ = run_command('compare', one, write_run(tmp_path / 'images'), f'--out={tmp_path}/curves.png')
    assert status == 0 and cells(out, str(one))[3] == '2.250' and 'nats' not in out


def test_figures_show_nats_a_token_on_plain_axes(places, tmp_path):
    network = read_network('pad', [write_language_run(tmp_path / 'a', places, (3.0, 2.25))])
    for axes, label in zip(plot_training_curves([network]).axes, ('nats a token', 'loss in nats a token')):
        assert (axes.get_ylabel(), axes.get_yscale()) == (label, 'linear')
        assert axes.get_title() in ('Training loss', 'Loss on held-out examples')
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [3.0, 2.25])
    other = read_network('dynamic', [write_language_run(tmp_path / name, places, (3.0, 2.5)) for name in 'bc'])
    (axes,) = plot_tradeoff([network, other], 'parameters', 'parameters').axes
    assert (axes.get_title(), axes.get_ylabel()) == ('loss against parameters', 'loss in nats a token')
    assert axes.get_ylim()[0] > 2 and [line.get_ydata().tolist() for line in axes.lines] == [[2.25], [2.5, 2.5]]


def test_a_sweep_of_language_models_compares_losses(causal, tmp_path):
    folder = write_miniature(tmp_path / 'sweep', causal, SWEPT)
    status, out, err = run_command('report', folder)
    assert status == 0, err
    # Losses are 2 − score: the differences are those of sweep_report_test with the other sign, not in per cent.
    assert 'of 1 differences to base in nats a token (lower is better): by_magnitude (−0.1042 ± 0.0896).' in out
    text = (folder / 'report' / 'report.md').read_text()
    assert '| loss in nats a token | difference to base | animals/loss in nats a token |' in text
    assert '| by_magnitude | partition.criterion = magnitude | 3 of 3 | 1.2708 | −0.1042 ± 0.0896 |' in text
    assert (folder / 'report' / 'runs.csv').read_text().startswith('variant,seed,state,loss,animals/loss,sums/loss,')
    assert (folder / 'report' / 'score_parameters.png').stat().st_size > 10_000
    page = (folder / 'report' / 'report.html').read_text()
    assert 'lower is better' in page and ' in %' not in page


def test_all_variants_of_a_sweep_are_checked_and_started(places, tmp_path):
    folder, path = tmp_path / 'sweep', ROOT / 'configs' / 'ablations' / 'networks_lm.py'
    run_sweep(path, folder, 1, 2, small_language_flags(places), FAKE)
    assert len((folder / 'order.txt').read_text().splitlines()) == 7
    with pytest.raises(BadInput, match='holds another sweep'):
        run_sweep(path, folder, 1, 2, small_language_flags(places, train__steps=7), FAKE)


def test_an_inspection_shows_the_routing_of_tokens_and_the_experts(causal, tmp_path, capsys):
    inspect_workdir(causal)
    text = capsys.readouterr().out
    ((layer, *_),) = table_rows(text, 'Variation over')
    assert {row[0] for row in table_rows(text, 'Outputs and inputs')} == {layer}
    routing = table_rows(text, 'Routing of frequent tokens')
    assert "' '" in [row[0] for row in routing] and len(routing) == 20
    counts = [int(row[1].replace(',', '')) for row in routing]
    assert counts == sorted(counts, reverse=True)
    for _, _, shown in routing:
        expert, share = shown.split(': ')
        assert 0 <= int(expert) < 4 and 1 / 4 <= float(share) <= 1
    ((name, cosine, aligned, noise, load),) = table_rows(text, 'Experts')
    assert name == layer and -1 <= float(cosine) < float(aligned) <= 1 and 0 < float(noise) < 1
    assert sum(map(float, load.split())) == pytest.approx(1, abs=0.02) and len(load.split()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ('small', 'changes', 'whole'),
    [
        (SMALL_CAUSAL, {'model__ffn': 'linear'}, False),
        (SMALL_CAUSAL, {'partition__granularity': 'element'}, False),
        (SMALL_CAUSAL, {'partition__dynamic_fraction': 1.0}, True),
        (SMALL_MASKED, {}, True),
        (SMALL_MASKED, {'model__routing': 'sentence', 'partition__compact': True}, True),
    ],
)
def test_inspections_of_other_language_models(places, tmp_path, capsys, one_layer, small, changes, whole):
    with compiled_quickly():
        train(small_language_config(places, small, **changes), tmp_path / 'run', devices=one_device())
        inspect_workdir(tmp_path / 'run')
    text = capsys.readouterr().out
    experts = table_rows(text, 'Experts')
    assert experts and all((row[1] != '–') == whole for row in experts)
    assert len(table_rows(text, 'Routing of frequent tokens')) > 3


def test_routing_by_hand(capsys):
    weights = {'a': np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0], [0.25, 0.75]])}
    print_table(tabulate_routing(np.array([7, 7, 7, 5]), weights, lambda tokens: {7: '\n', 5: ''}[tokens[0]]))
    # Token 7: 1.5 for the first expert and 2.5 for the second.
    assert table_rows(capsys.readouterr().out, 'Routing') == [
        ["'\\n'", '3', '1: 0.6250'],
        ['token 5', '1', '1: 0.7500'],
    ]


def test_experts_with_the_same_neurons_in_another_order_are_found_alike():
    rng = np.random.default_rng(0)
    neurons = rng.normal(size=(12, 9))
    noise = 0.1 * rng.normal(size=(3, 12, 9))
    experts = np.stack([neurons[:, rng.permutation(9)] for _ in range(3)]) + noise
    in_place, aligned = compare_neurons(experts)
    assert in_place < 0.6 and 0.95 < aligned < 1
    # The lengths of neurons do not matter, and equal experts are alike in place.
    assert compare_neurons(np.stack([neurons, 3 * neurons])) == pytest.approx((1, 1))


def test_a_measure_says_its_unit():
    assert [Measure('f1').heading, NATS.heading] == ['f1 in %', 'loss in nats a token']
