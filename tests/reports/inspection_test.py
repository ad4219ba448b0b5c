import json

import pytest

from pad_jax.errors import BadInput
from pad_jax.reports.inspection import inspect_workdir
from tests.reports.comparison_test import cells
from tests.reports.miniature_runs import write_partition, write_run


@pytest.fixture
def workdir(tmp_path):
    return write_run(tmp_path / 'run')


def test_table_and_picture(workdir, capsys):
    inspect_workdir(workdir)
    text = capsys.readouterr().out
    # 10 positions, 6 dynamic, K = 4: 24 dynamic and 4 static parameters, share 24 / 28, 1 other
    assert cells(text, 'stage1/conv2') == ['stage1/conv2', 'element', '10', '6', '0.6000', '0.8571', '29']
    assert cells(text, 'stage1/conv10') == ['stage1/conv10', 'element', '20', '2', '0.1000', '0.3077', '28']
    assert cells(text, 'other layers') == ['other layers', '', '', '', '', '', '4']
    assert cells(text, 'total') == ['total', '', '30', '8', '0.2667', '0.5926', '61']
    assert text.index('stage1/conv2') < text.index('stage1/conv10')
    assert f'Picture: {workdir / "partition.png"}' in text
    assert (workdir / 'partition.png').read_bytes()[:4] == b'\x89PNG'


def test_a_fully_dynamic_network(workdir, capsys):
    write_partition(workdir, dynamic=(10, 20), granularity='none')
    inspect_workdir(workdir)
    assert cells(capsys.readouterr().out, 'total') == ['total', '', '30', '30', '1', '1', '127']
    assert (workdir / 'partition.png').exists()


def test_a_network_without_dynamic_layers_says_so(workdir, capsys):
    write_partition(workdir, dynamic=None)
    inspect_workdir(workdir)
    text = capsys.readouterr().out
    assert cells(text, 'total') == ['total', '', '0', '0', '0', '0', '37']
    assert 'no dynamic layers' in text
    assert not (workdir / 'partition.png').exists()


def test_a_partition_under_way_says_how_far_it_is(workdir, capsys):
    path = workdir / 'partition.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'rounds': 4}))
    inspect_workdir(workdir)
    assert '1 of 4 rounds' in capsys.readouterr().out


def test_a_folder_without_a_run(workdir, tmp_path):
    with pytest.raises(BadInput, match='missing is not the workdir of a run'):
        inspect_workdir(tmp_path / 'missing')
    (workdir / 'config.json').rename(workdir / 'other.json')
    with pytest.raises(BadInput, match=r'not the workdir of a run: it holds no config\.json'):
        inspect_workdir(workdir)
    (workdir / 'other.json').rename(workdir / 'config.json')
    (workdir / 'partition.json').unlink()
    with pytest.raises(BadInput, match=r'not the workdir of a run: it holds no partition\.json'):
        inspect_workdir(workdir)
