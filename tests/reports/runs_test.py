import json

import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.reports.runs import read_network, read_partition, read_run
from tests.reports.miniature_runs import write_run


def test_reads_what_the_run_wrote(tmp_path):
    run = read_run(write_run(tmp_path / 'a', accuracies=(0.5, 0.75)))
    assert run.evaluated['accuracy'] == 0.75
    assert run.seconds_per_step == 0.25
    assert run.curve('train', 'loss') == {10: 2.0, 20: 1.0}
    assert run.kind == 'partially dynamic, sensitivity'


@pytest.mark.parametrize(
    'config, kind',
    [('static', 'static'), ('dynamic', 'fully dynamic'), ('random', 'partially dynamic, random')],
)
def test_kinds(tmp_path, config, kind):
    assert read_run(write_run(tmp_path / 'a', config)).kind == kind


def test_layers_come_in_the_order_of_the_network(tmp_path):
    network = read_network('pad', [write_run(tmp_path / 'a')])
    layers = network.runs[0].partition['layers']
    assert [layer['name'] for layer in layers] == ['stage1/conv2', 'stage1/conv10'] and network.has_partition


def test_curves_hold_the_steps_that_all_seeds_logged(tmp_path):
    long = write_run(tmp_path / 'a', losses=(2.0, 1.0, 0.5), accuracies=(0.1, 0.2, 0.3))
    network = read_network('pad', [long, write_run(tmp_path / 'b', losses=(4.0, 2.0))])
    steps, loss = network.curve('train', 'loss')
    assert steps.tolist() == [10, 20]
    np.testing.assert_allclose(loss.mean, [3.0, 1.5])
    # deviations ±1 and ±0.5: √(2 / 1) / √2 = 1 and √(0.5 / 1) / √2 = 0.5
    np.testing.assert_allclose(loss.standard_error, [1.0, 0.5])


def test_seconds_per_step_leave_out_runs_too_short_to_tell(tmp_path):
    workdirs = [write_run(tmp_path / f'{seconds}', seconds=seconds) for seconds in (0.1, None, 0.3)]
    assert read_network('pad', workdirs).seconds_per_step == pytest.approx(0.2)
    assert read_network('pad', workdirs[1:2]).seconds_per_step is None


@pytest.mark.parametrize('missing', ['config.json', 'partition.json', 'timing.json'])
def test_says_which_file_is_missing(tmp_path, missing):
    workdir = write_run(tmp_path / 'a')
    (workdir / missing).unlink()
    with pytest.raises(BadInput, match=missing):
        read_run(workdir)


def test_says_that_a_run_was_never_evaluated(tmp_path):
    workdir = write_run(tmp_path / 'a', losses=(), accuracies=())
    with pytest.raises(BadInput, match='never evaluated'):
        read_run(workdir)


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda content: content.update(layers=[1], totals={}), "'int' object is not subscriptable"),
        (lambda content: content['layers'][0].update(name='a\nb'), 'name and granularity must be printable'),
        (lambda content: content['layers'][0].update(positions='10'), 'positions must be numbers$'),
        (lambda content: content['layers'][0].update(dynamic_fraction=1.5), 'dynamic_fraction must be numbers$'),
        (lambda content: content.update(rounds='many'), 'rounds_done and rounds must be numbers'),
    ],
)
def test_says_what_is_damaged_in_a_partition(tmp_path, change, says):
    path = write_run(tmp_path / 'a') / 'partition.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=rf'partition\.json is damaged: {says}'):
        read_partition(path.parent)
    path.write_text('{"layers": [')
    with pytest.raises(BadInput, match=r'partition\.json is damaged'):
        read_partition(path.parent)


@pytest.mark.parametrize('content', ['[]', '{}', '{"seconds_per_step": "1"}'])
def test_says_that_timing_is_damaged(tmp_path, content):
    workdir = write_run(tmp_path / 'a')
    (workdir / 'timing.json').write_text(content)
    with pytest.raises(BadInput, match=r'timing\.json is damaged: it '):
        read_run(workdir)
