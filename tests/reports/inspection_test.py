import json

import jax
import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.models import MODELS
from pad_jax.reports.inspection import inspect_workdir
from pad_jax.reports.tables import format_count
from pad_jax.training.rounds import summarize_partition
from pad_jax.training.setup import abstract_variables, make_inputs, make_model
from tests.reports.comparison_test import cells
from tests.training.tiny import ONE_BLOCK, small_config


@pytest.fixture
def write_run(tmp_path, monkeypatch):
    """`write_run(**changes)`: the workdir of a run of one block whose first gates are dynamic, half of each mask."""
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)

    def write(rounds=1, **changes):
        config = small_config(**changes)
        shapes = abstract_variables(make_model(config), make_inputs(config))
        half = lambda mask: (np.arange(mask.size) < mask.size // 2).reshape(mask.shape)  # noqa: E731
        masks = jax.tree.map(half, shapes.get('partition', {}))
        granularity = config.partition.granularity if masks else 'none'
        workdir = tmp_path / 'run'
        workdir.mkdir()
        (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
        (workdir / 'partition.json').write_text(json.dumps(summarize_partition(shapes, masks, granularity, 1, rounds)))
        return workdir

    return write


def rows(text, name):
    """The cells of every row of that name."""
    lines = text.splitlines()
    return [cells(line, name) for line in lines if line.startswith(f'│ {name} ')]


@pytest.mark.parametrize('granularity', ['element', 'output'])
def test_tables_and_picture(write_run, capsys, granularity):
    workdir = write_run(partition__granularity=granularity)
    inspect_workdir(workdir)
    text = capsys.readouterr().out
    # 3·3·4·4 positions, half of them dynamic, K = 4; 4·1 + 1·4 + 4 of the attention and φ are the others.
    live = 4 * 72 + 72 + 13
    partition, saved = rows(text, 'stage1_block1/conv1')
    assert partition == ['stage1_block1/conv1', granularity, '144', '72', '0.5000', '0.8000', str(live)]
    dense = 8 * 8 * 144
    products = [format_count(count) for count in (dense, dense + 4 * 144 + 8, dense + 4 * 72 + 8)]
    assert saved == ['stage1_block1/conv1', str(4 * 144 + 144 + 13), str(live), *products]
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
            f'{2 * (4 * 144 + 144 + 13) + rest:,}',
            str(2 * live + rest),
            *map(format_count, (2 * dense + others, 2 * (dense + 4 * 144 + 8) + others, 2 * (dense + 296) + others)),
        ],
    ]
    forms = {name: rows(text, name)[0] for name in ('static', 'masked', 'compact')}
    assert [forms[name][1] for name in forms] == [str(288 + rest), f'{2 * 733 + rest:,}', str(2 * live + rest)]
    assert [forms[name][2] for name in forms] == rows(text, 'total')[1][3:]
    assert all(size(cell) > 0 for form in forms.values() for cell in form[3:])
    assert max(map(len, text.splitlines()[:-1])) <= 110
    assert f'Picture: {workdir / "partition.png"}' in text
    assert (workdir / 'partition.png').read_bytes()[:4] == b'\x89PNG'


def size(cell):
    number, _, unit = cell.partition(' ')
    return float(number) * {'': 1, 'k': 1e3, 'M': 1e6}[unit]


def test_a_fully_dynamic_network(write_run, capsys):
    workdir = write_run(partition__dynamic_fraction=1.0)
    inspect_workdir(workdir)
    text = capsys.readouterr().out
    assert rows(text, 'total')[0][2:6] == ['288', '288', '1', '1']
    assert [line[0] for name in ('static', 'fully dynamic', 'masked') for line in rows(text, name)] == [
        'static',
        'fully dynamic',
    ]
    assert (workdir / 'partition.png').exists()


def test_a_pruned_network(write_run, capsys):
    inspect_workdir(write_run(partition__prune=True))
    text = capsys.readouterr().out
    # As in `test_tables_and_picture`, without static parameters.
    live = 4 * 72 + 13
    partition, saved = rows(text, 'stage1_block1/conv1')
    assert partition[2:] == ['144', '72', '0.5000', '1', str(live)]
    assert saved[1:3] == [str(4 * 144 + 13), str(live)]
    assert rows(text, 'compact')[0][1] == str(2 * live + 36 + 24 + 50)


def test_a_network_without_dynamic_layers_says_so(write_run, capsys):
    workdir = write_run(model__conv='static')
    inspect_workdir(workdir)
    text = capsys.readouterr().out
    assert rows(text, 'total') == [['total', '', '0', '0', '0', '0', '398']]
    assert rows(text, 'static')[0][1] == '398'
    assert 'no dynamic layers' in text
    assert not (workdir / 'partition.png').exists()


def test_a_partition_under_way_says_how_far_it_is(write_run, capsys):
    inspect_workdir(write_run(rounds=4))
    assert '1 of 4 rounds' in capsys.readouterr().out


def test_layers_that_are_not_those_of_the_network(write_run):
    workdir = write_run()
    path = workdir / 'partition.json'
    path.write_text(path.read_text().replace('conv2', 'conv7'))
    with pytest.raises(BadInput, match=r'partition\.json is damaged: its layers are not those of the network'):
        inspect_workdir(workdir)


def test_a_folder_without_a_run(write_run, tmp_path):
    workdir = write_run()
    with pytest.raises(BadInput, match='missing is not the workdir of a run'):
        inspect_workdir(tmp_path / 'missing')
    (workdir / 'config.json').rename(workdir / 'other.json')
    with pytest.raises(BadInput, match=r'not the workdir of a run: it holds no config\.json'):
        inspect_workdir(workdir)
    (workdir / 'other.json').rename(workdir / 'config.json')
    (workdir / 'partition.json').unlink()
    with pytest.raises(BadInput, match=r'not the workdir of a run: it holds no partition\.json'):
        inspect_workdir(workdir)
