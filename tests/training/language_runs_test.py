"""Runs of language models: what they log and leave, what an interruption changes, and what takes their encoder over."""

import json
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pad_jax.deploy.export import export_workdir
from pad_jax.deploy.generate import generate_text
from pad_jax.deploy.predict import open_export, open_run
from pad_jax.deploy.serving import load_exported
from pad_jax.errors import BadInput
from pad_jax.models import ENCODERS
from pad_jax.training.evaluate import evaluate_workdir, restore_run
from pad_jax.training.rounds import walk_factors
from pad_jax.training.setup import make_inputs, make_model, make_run_optimizer, measure_lengths
from pad_jax.training.start import start_from_pretrained
from pad_jax.training.state import init_state
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import one_device
from tests.training.tiny_language import SMALL_MASKED, small_language_config, write_places
from tests.training.tiny_texts import ONE_LAYER, small_text_config
from tests.training.trainer_test import Killed, kill_before

pytestmark = pytest.mark.usefixtures('one_layer')


@pytest.fixture(scope='module')
def places(texts, tmp_path_factory):
    return write_places(tmp_path_factory.mktemp('language'), texts)


@pytest.fixture(scope='module')
def causal(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('causal') / 'run'
    train(small_language_config(places), workdir, devices=one_device())
    return workdir


@pytest.fixture(scope='module')
def masked(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('masked') / 'run'
    with pytest.MonkeyPatch.context() as patch, compiled_quickly():
        patch.setitem(ENCODERS, 'bert_tiny', ONE_LAYER)
        train(small_language_config(places, SMALL_MASKED), workdir, devices=one_device())
    return workdir


def rows_of(workdir, split):
    return [row for row in read_metrics(workdir) if row['split'] == split]


def test_a_causal_run_logs_nats_bits_and_perplexity_by_domain(causal):
    evaluated = rows_of(causal, 'eval')[-1]
    measures = {'perplexity', 'bits_per_byte'}
    domains = {f'{domain}/{name}' for domain in ('animals', 'sums') for name in ('loss', *measures)}
    assert evaluated.keys() == {'step', 'split', 'examples', 'loss', 'expert_similarity'} | measures | domains
    assert evaluated['perplexity'] == pytest.approx(math.exp(evaluated['loss']))
    # Tokens are bytes, so nats a token are nats a byte; a bit is ln 2 nats.
    assert evaluated['bits_per_byte'] == pytest.approx(evaluated['loss'] / math.log(2))
    low, high = sorted(evaluated[f'{domain}/loss'] for domain in ('animals', 'sums'))
    assert low < evaluated['loss'] < high
    train_rows = rows_of(causal, 'train')
    # Before training logits are random with variance 1: on average ln 256 + 1/2 = 6.05 nats.
    assert train_rows[0]['loss'] == pytest.approx(6.05, abs=0.6)
    assert train_rows[-1]['loss'] < train_rows[0]['loss']
    assert evaluate_workdir(causal) == {
        name: value for name, value in evaluated.items() if name not in ('split', 'expert_similarity')
    }


def test_a_killed_causal_run_resumes_bit_for_bit(places, causal, tmp_path, monkeypatch):
    config = small_language_config(places)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, 'train', 5)
        train(config, tmp_path / 'run', devices=one_device())
    train(config, tmp_path / 'run', devices=one_device())
    assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (causal / 'metrics.jsonl').read_bytes()


def test_a_masked_run_hides_tokens_and_predicts_them(masked):
    evaluated = rows_of(masked, 'eval')[-1]
    assert 'bits_per_byte' not in evaluated and evaluated['perplexity'] == pytest.approx(math.exp(evaluated['loss']))
    assert (masked / 'tokenizer.json').is_file()


def test_generation_is_a_function_of_its_seed_and_slides_beyond_the_longest_text(causal):
    def text(**arguments):
        return ''.join(generate_text(causal, 'the 1', 40, **arguments))

    assert text() == text()  # greedy
    drawn = [text(temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(text().encode('utf-8', 'surrogateescape')) >= 40 > 24  # model.max_length


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ({'prompt': ''}, '--prompt must hold at least one token'),
        ({'temperature': -1.0}, '--temperature must be at least 0, got -1.0'),
        ({'seed': -1}, '--seed must be an integer from 0'),
    ],
)
def test_bad_requests_for_text_are_refused(causal, arguments, said):
    with pytest.raises(BadInput, match=said):
        generate_text(causal, **{'prompt': 'a', 'num_tokens': 3} | arguments)


def test_other_commands_say_what_a_language_model_is_for(causal, masked, finished_text_run):
    for workdir in (masked, finished_text_run):
        with pytest.raises(BadInput, match=r'generate needs train\.objective=causal'):
            generate_text(workdir, 'a', 3)
    with pytest.raises(BadInput, match='predicts tokens, not labels'):
        open_run(causal)


@pytest.mark.parametrize('kind', ['causal', pytest.param('masked', marks=pytest.mark.slow)])
def test_an_export_computes_the_logits_of_the_checkpoint(request, kind, tmp_path):
    workdir = request.getfixturevalue(kind)
    exported = export_workdir(workdir, tmp_path / 'out')  # verified in a fresh process
    network = load_exported(exported.folder)
    tokens = np.ones((2, 5), np.int32)
    inputs = {'tokens': tokens, 'segments': 0 * tokens, 'valid': tokens > 0}
    names = [spec['name'] for spec in network.manifest['inputs']]
    assert network(**{name: inputs[name] for name in names}).shape == (2, 5, 256 if kind == 'causal' else 32)
    assert network.manifest['task'] == f'{kind} language model'
    assert (exported.folder / 'tokenizer.json').exists() == (kind == 'masked')
    with pytest.raises(BadInput, match='predicts tokens, not labels'):
        open_export(exported.folder)


def start(config):
    model, optimizer = make_model(config), make_run_optimizer(config, measure_lengths(config, 10**6))
    state = init_state(model, optimizer, make_inputs(config), config.train.seed)
    return state, start_from_pretrained(config, model, state)[0]


def test_an_encoder_of_masked_tokens_is_taken_over_with_the_experts_it_computed(texts, masked):
    changes = {'model__pretrained': str(masked), 'model__ffn': 'ffn', 'partition__start_step': 1}
    changes |= {'data__vocabulary': '', 'partition__granularity': 'output'}
    drawn, taken = start(small_text_config(texts, **changes))
    run = restore_run(masked).state
    computed = {path: np.asarray(factors) for path, _, factors in walk_factors(run)}
    assert not all(mask.all() for mask in jax.tree.leaves(run.masks))  # so a static part was merged in
    source, before, after = (flatten_dict(jax.device_get(one.params), sep='/') for one in (run, drawn, taken))
    for path, values in after.items():
        if path in computed:
            np.testing.assert_array_equal(values, computed[path])
        elif path.startswith(('pooler', 'classifier')) or path.endswith('phi'):
            np.testing.assert_array_equal(values, before[path])
        else:
            np.testing.assert_array_equal(values, source[path])


@pytest.mark.slow
def test_a_dense_encoder_of_masked_tokens_is_upcycled(places, texts, tmp_path):
    config = small_language_config(places, SMALL_MASKED, model__ffn='dense', train__steps=2)
    train(config, tmp_path / 'run', devices=one_device())
    changes = {'model__pretrained': str(tmp_path / 'run'), 'model__ffn': 'ffn', 'partition__start_step': 1}
    _, taken = start(small_text_config(texts, **changes, data__vocabulary='', partition__granularity='output'))
    neurons = taken.params['layer_0']['ffn']['experts']['neurons']
    assert neurons.shape[0] == 4 and bool((neurons == neurons[:1]).all())


def test_an_encoder_of_another_shape_is_refused_with_both_values(texts, masked, causal):
    changes = {'model__ffn': 'ffn', 'partition__start_step': 1, 'partition__granularity': 'output'}
    with pytest.raises(BadInput, match=r'model.num_experts is 3, the run in .* has 4'):
        start(small_text_config(texts, **changes, model__pretrained=str(masked), model__num_experts=3))
    with pytest.raises(BadInput, match=r'has no train\.objective=masked'):
        start(small_text_config(texts, **changes, model__pretrained=str(causal)))


def test_a_finished_run_of_the_console_prints_its_text(causal, capfd):
    from pad_jax.__main__ import generate

    generate([f'--workdir={causal}', '--prompt=the', '--tokens=5'])
    assert capfd.readouterr().out.startswith('the')


def test_data_json_names_the_files_by_digest(causal):
    found = json.loads((causal / 'data.json').read_text())
    assert found['digests'] and found['num_train'] > 0
