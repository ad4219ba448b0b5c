"""`python -m pad_jax export`: what it writes computes what the checkpoint does, and nothing half-made is ever left."""

import errno
import json
import pathlib
import shutil
import signal
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

import pad_jax
from pad_jax.deploy import export, verify
from pad_jax.deploy.export import Network, shrink_network
from pad_jax.deploy.serving import MANIFEST, NETWORK, WEIGHTS
from pad_jax.errors import BadInput
from pad_jax.layers import find_records
from pad_jax.models import count_layers, report_counts
from pad_jax.training.config import is_text, read_workdir_config
from pad_jax.training.evaluate import evaluate_workdir
from pad_jax.training.setup import abstract_variables, make_inputs, make_model, make_task, open_source
from tests.deploy.drawing import draw_variables
from tests.layers.compiling import jit_quickly
from tests.training.fixtures import contents, run_command
from tests.training.tiny import small_config
from tests.training.tiny_texts import small_text_config


def evaluate_network(folder, workdir):
    """(accuracy, loss) over all examples to evaluate on, as what is served computes them in batches of eight."""
    network, config = pad_jax.load_exported(folder), read_workdir_config(workdir)
    names, rights, losses = make_task(config).inputs, [], []
    for batch in open_source(config, workdir).eval_batches():
        for start in range(0, len(batch['label']), 8):
            rows = slice(start, start + 8)
            logits = np.asarray(network(**{name: batch[name][rows] for name in names}))
            log_odds = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            counts = batch['weight'][rows] > 0
            rights.extend((logits.argmax(1) == batch['label'][rows])[counts])
            losses.extend(-np.take_along_axis(log_odds, batch['label'][rows, None], 1)[counts, 0])
    return {'examples': len(losses), 'accuracy': np.mean(rights), 'loss': np.mean(losses)}


@pytest.mark.parametrize('kind', ['images', pytest.param('texts', marks=pytest.mark.slow)])
def test_an_export_is_as_good_as_its_checkpoint(request, one_block, one_layer, kind):
    exported = request.getfixturevalue({'images': 'exported', 'texts': 'exported_texts'}[kind])
    workdir = request.getfixturevalue({'images': 'finished_run', 'texts': 'finished_text_run'}[kind])
    expected = evaluate_workdir(workdir)
    found = evaluate_network(exported.folder, workdir)
    assert found == {name: pytest.approx(expected[name], rel=1e-5) for name in found}
    assert list(exported.differences) == [1, 3, 32]
    assert exported.inputs == "the run's data"
    assert all(difference <= 1e-4 * most for difference, most in exported.differences.values())


def test_what_a_manifest_says(exported, exported_texts, finished_run, finished_text_run):
    images, texts = (json.loads((found.folder / MANIFEST).read_text()) for found in (exported, exported_texts))
    assert images['inputs'] == [{'name': 'image', 'dtype': 'float32', 'shape': ['batch', 8, 8, 1]}]
    assert images['preprocessing']['mean'] == [4.88217] and images['preprocessing']['size'] == 8
    assert images['class_names'] == list('0123456789') and images['output']['shape'] == ['batch', 10]
    partition = json.loads((finished_run / 'partition.json').read_text())['totals']
    assert images['partition'] == {'granularity': 'element', **partition}
    assert images['model']['name'] == 'resnet10' and 'pretrained' not in images['model']
    assert images['step'] == 6 and images['temperature'] == 1
    assert images['versions'] == {'pad_jax': pad_jax.__version__, 'jax': jax.__version__}
    assert sorted(images['files']) == [NETWORK, WEIGHTS]
    assert [one['name'] for one in texts['inputs']] == ['tokens', 'segments', 'valid']
    assert texts['inputs'][0]['shape'] == ['batch', 'length'] and texts['inputs'][0]['longest'] == 16
    assert texts['class_names'] == ['a cat', 'a dog']
    vocabulary = (finished_text_run / 'tokenizer.json').read_bytes()
    assert (exported_texts.folder / 'tokenizer.json').read_bytes() == vocabulary


@pytest.mark.parametrize(
    'conv, granularity',
    [
        ('dynamic', 'element'),
        pytest.param('condconv', 'input', marks=pytest.mark.slow),
        pytest.param('odconv', 'element', marks=pytest.mark.slow),
        pytest.param('dcd', 'output', marks=pytest.mark.slow),
    ],
)
def test_networks_of_every_convolution(one_block, conv, granularity):
    """Traced with a symbolic batch, and as the network that it was made of; bytes are what theory wants."""
    config = small_config(model__conv=conv, partition__granularity=granularity, model__width_multiplier=0.25)
    check_network(config, granularity)


@pytest.mark.parametrize(
    'ffn, granularity', [pytest.param('linear', 'element', marks=pytest.mark.slow), ('ffn', 'output')]
)
def test_networks_of_every_mixture(one_layer, texts, ffn, granularity):
    check_network(small_text_config(texts, model__ffn=ffn, partition__granularity=granularity), granularity)


def check_network(config, granularity):
    model = make_model(config)
    temperature = None if is_text(config) else 3.0
    inputs = make_inputs(config)
    records = find_records(model, *inputs)
    trained = Network(model, draw_variables(model, inputs), records, make_task(config), temperature)
    served = shrink_network(trained, config)
    lowered = export.lower(served, config)
    examples = verify.draw_examples(config, 3)
    found = jit_quickly(lowered.call)(served.weights, *examples.values())
    expected = np.asarray(jit_quickly(trained.apply)(trained.weights, *examples.values()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    shapes = abstract_variables(model, inputs)
    layers = count_layers({**shapes, 'partition': trained.variables['partition']})
    counted = report_counts(layers)['parameters']
    positions = sum(mask.size for mask in jax.tree.leaves(trained.variables['partition']))
    stored = sum(array.nbytes for array in served.weights.values())
    assert stored <= 4 * counted + (positions / 8 if granularity == 'element' else 0) + 0.01 * 4 * counted
    assert stored > 0.9 * 4 * counted
    assert safetensors.numpy.load(safetensors.numpy.save(served.weights)).keys() == served.weights.keys()


def test_the_command(finished_run, one_block, exported, tmp_path, monkeypatch):
    """With a fake in the place of the fresh process, which other tests have."""
    monkeypatch.setattr(verify, 'serve_in_fresh_process', serve_here)
    out = tmp_path / 'above' / 'export'
    status, said, err = run_command('export', f'--workdir={finished_run}', f'--out={out}')
    assert status == 0, err
    assert f'{exported.counts["parameters"]:,}' in said and f'{exported.fully_dynamic:,}' in said
    assert 'largest difference of logits, batch 32' in said
    assert [path.name for path in out.parent.iterdir()] == ['export']
    before, after = ({path.name: path.read_bytes() for path in of.iterdir()} for of in (exported.folder, out))
    assert before == after
    assert b'pad_jax/' not in after[NETWORK] and b'.py' not in after[NETWORK]


def serve_here(folder, batches):
    network = pad_jax.load_exported(folder)
    return [np.asarray(network(**batch)) for batch in batches]


def refuse(*flags):
    """The line with which `export` is refused."""
    status, said, err = run_command('export', *flags)
    assert status == 2 and said == '' and err.startswith('error: ') and err.count('\n') == 1, err
    return err


@pytest.fixture
def copied_run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / 'run')


def test_workdirs_that_hold_nothing_to_export(copied_run, one_block, tmp_path):
    flags = f'--workdir={copied_run}', f'--out={tmp_path / "above" / "export"}'
    checkpoints = copied_run / 'checkpoints'
    shutil.rmtree(checkpoints / '6')
    assert '1 of 2 rounds of the partition' in refuse(*flags)
    shutil.rmtree(checkpoints)
    assert 'holds no checkpoint' in refuse(*flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run']


@pytest.fixture
def quickly(exported, monkeypatch):
    """Exports of `finished_run` have nothing to lower, and no fresh process."""
    network = (exported.folder / NETWORK).read_bytes()
    monkeypatch.setattr(export, 'lower', lambda *_: types.SimpleNamespace(serialize=lambda: network))
    monkeypatch.setattr(verify, 'serve_in_fresh_process', serve_here)


def test_folders_that_are_there(exported, quickly, copied_run, one_block, tmp_path):
    out, notes = shutil.copytree(exported.folder, tmp_path / 'export'), tmp_path / 'export' / 'notes.txt'
    flags = f'--workdir={copied_run}', f'--out={out}'
    before = contents(tmp_path)
    assert '--overwrite puts a new one in its place' in refuse(*flags)
    assert 'no config.json' not in refuse(f'--workdir={tmp_path}', f'--out={copied_run}', '--overwrite')
    assert 'cannot be read: Not a directory' in refuse(flags[0], f'--out={out / MANIFEST}', '--overwrite')
    notes.write_text('mine')
    assert 'holds notes.txt, which no export has' in refuse(*flags, '--overwrite')
    notes.unlink()
    assert {name: of for name, of in contents(tmp_path).items() if name != str(out)} == {
        name: of for name, of in before.items() if name != str(out)
    }
    status, _, err = run_command('export', *flags, '--overwrite')
    assert status == 0, err
    assert contents(out).keys() == {str(out / name) for name in (MANIFEST, NETWORK, WEIGHTS)}
    assert contents(out)[str(out / WEIGHTS)] != before[str(out / WEIGHTS)]  # another time
    assert sorted(path.name for path in tmp_path.iterdir()) == ['export', 'run']


@pytest.fixture
def attempt(finished_run, quickly, one_block, tmp_path):
    """`attempt()`: (status, stderr) of an export that comes to nothing and leaves nothing."""

    def run():
        status, _, err = run_command('export', f'--workdir={finished_run}', f'--out={tmp_path / "new" / "export"}')
        assert list(tmp_path.iterdir()) == []
        return status, err

    return run


@pytest.mark.parametrize('name', [WEIGHTS, MANIFEST])
def test_a_full_disk(attempt, monkeypatch, name):
    write = pathlib.Path.write_bytes

    def fail(path, content):
        if path.name == name:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(path, content)

    monkeypatch.setattr(pathlib.Path, 'write_bytes', fail)
    status, err = attempt()
    assert status == 2 and 'cannot be written: No space left on device' in err and err.count('\n') == 1


def test_an_export_that_computes_something_else(attempt, monkeypatch, tmp_path):
    monkeypatch.setattr(
        verify, 'serve_in_fresh_process', lambda *arguments: [logits + 1e-2 for logits in serve_here(*arguments)]
    )
    with pytest.raises(SystemExit, match=r'error: .* differ from those of the checkpoint by 0.01 of .* at batch 1, '):
        attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_told_to_stop(attempt, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, 'serve_in_fresh_process', lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        attempt()
    assert stopped.value.code == 143 and list(tmp_path.iterdir()) == []


def test_what_a_fresh_process_says_is_passed_on(exported, tmp_path):
    folder = shutil.copytree(exported.folder, tmp_path / 'export')
    (folder / WEIGHTS).unlink()
    with pytest.raises(verify.NotVerified, match=r'weights.safetensors.* is missing'):
        verify.serve_in_fresh_process(folder, [])


def test_data_that_is_gone(finished_text_run, one_layer, monkeypatch):
    def fail(*_):
        raise BadInput('it has moved')

    monkeypatch.setattr(verify, 'open_source', fail)
    config = read_workdir_config(finished_text_run)
    batches, said = verify.gather_batches(config, finished_text_run, make_task(config))
    assert 'random numbers, as the data cannot be read (it has moved)' in said
    assert [len(batch['tokens']) for batch in batches] == [1, 3, 32]
    again, _ = verify.gather_batches(config, finished_text_run, make_task(config))
    np.testing.assert_array_equal(batches[2]['tokens'], again[2]['tokens'])
