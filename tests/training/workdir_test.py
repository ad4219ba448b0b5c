import json
import math
import os
from pathlib import Path

import pytest

from pad_jax.data import DataSpec
from pad_jax.errors import BadInput
from pad_jax.training.workdir import MetricWriter, check_workdir, compare_data, read_metrics, write_json
from tests.training.tiny import small_config


def test_data_is_compared_by_its_contents_where_both_are_known():
    def spec(num_train=3, **digests):
        names = {name.replace('_', ' of '): digest for name, digest in digests.items()}
        return DataSpec(num_classes=2, class_names=('a', 'b'), num_train=num_train, num_eval=2, digests=names)

    old = spec(files_train='1', files_val='2', contents_val='3')
    assert compare_data(old, spec(files_train='1', files_val='4', contents_val='3', contents_train='5')) == []
    assert compare_data(old, spec(files_train='6', files_val='2')) == ['names or sizes of files of train differ']
    assert compare_data(old, spec(contents_val='7')) == ['contents of val differ']
    assert compare_data(old, spec(4, contents_val='7')) == ['num_train: 3 -> 4']
    assert compare_data(spec(), old) == []  # the run of an earlier version


def write_rows(workdir, *rows, torn=''):
    text = ''.join(json.dumps({'step': step, 'split': split, 'loss': 1.0}) + '\n' for step, split in rows)
    (workdir / 'metrics.jsonl').write_text(text + torn)


def kept(workdir):
    return [(row['step'], row['split']) for row in read_metrics(workdir)]


def test_a_row_is_one_json_object_a_line_and_an_event(tmp_path):
    """A number that is not finite is null."""
    writer = MetricWriter(tmp_path)
    values = {'loss': 0.5, 'accuracy': float('nan'), 'norm': float('inf')}
    writer.write(3, 'train', values, steps_per_second=9.0)
    # Before it is closed: a killed run has written its rows.
    row = '{"step": 3, "split": "train", "loss": 0.5, "accuracy": null, "norm": null}\n'
    assert (tmp_path / 'metrics.jsonl').read_text() == row
    writer.close()
    (events,) = tmp_path.rglob('events.out.tfevents*')
    content = events.read_bytes()
    assert b'train/loss' in content and b'train/steps_per_second' in content
    assert math.isnan(read_metrics(tmp_path)[0]['accuracy'])
    MetricWriter(tmp_path, 3).close()
    assert (tmp_path / 'metrics.jsonl').read_text() == row


def test_rows_after_the_resumed_step_and_a_torn_one_are_dropped(tmp_path):
    # The round after two steps was taken once the checkpoint of two steps was written: it comes again.
    rows = [(1, 'train'), (2, 'train'), (2, 'eval'), (2, 'partition'), (3, 'train')]
    write_rows(tmp_path, *rows, torn='{"step": 3, "spl')
    assert kept(tmp_path) == rows
    MetricWriter(tmp_path, resumed_step=2).close()
    assert kept(tmp_path) == [(1, 'train'), (2, 'train'), (2, 'eval')]
    MetricWriter(tmp_path).close()
    assert kept(tmp_path) == []


@pytest.mark.parametrize('name', ['checkpoints', 'tensorboard', 'metrics.jsonl'])
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, name):
    config = small_config()
    check_workdir(tmp_path / 'nowhere', config)
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    check_workdir(tmp_path, config)
    write_rows(tmp_path, (1, 'train'), torn='{"st')
    for folder in ('checkpoints', 'tensorboard'):
        (tmp_path / folder).mkdir()
    check_workdir(tmp_path, config)
    # Root may write anywhere: what the system would say is said in its place.
    closed = tmp_path / name
    monkeypatch.setattr(os, 'access', lambda path, mode: path != closed or not mode & os.W_OK)
    with pytest.raises(BadInput, match=rf'{name} cannot be written: no permission'):
        check_workdir(tmp_path, config)


@pytest.mark.parametrize('name', ['checkpoints', 'tensorboard', 'metrics.jsonl'])
def test_things_of_another_kind_are_refused(tmp_path, name):
    (tmp_path / name).mkdir() if name == 'metrics.jsonl' else (tmp_path / name).write_text('precious')
    with pytest.raises(BadInput, match=rf'{name} is not a f'):
        check_workdir(tmp_path, small_config())


@pytest.mark.parametrize('line', ['{"step": 1,', '3', '{"step": 1}', '[]'])
def test_a_damaged_line_is_named(tmp_path, line):
    write_rows(tmp_path, (1, 'train'))
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(line + '\n')
    with pytest.raises(BadInput, match=r'metrics\.jsonl, line 2: not a row of metrics'):
        read_metrics(tmp_path)


def test_what_is_replaced_is_on_the_disk_with_its_name(tmp_path, monkeypatch):
    """A machine may fail at any time: first the content is on the disk, then the folder says where it is."""
    happened, fsync, replace = [], os.fsync, Path.replace

    def noted_fsync(number):
        happened.append(os.readlink(f'/proc/self/fd/{number}').removeprefix(f'{tmp_path}/'))
        fsync(number)

    def noted_replace(path, target):
        happened.append(f'{path.name} -> {target.name}')
        return replace(path, target)

    write_rows(tmp_path, (1, 'train'))
    monkeypatch.setattr(os, 'fsync', noted_fsync)
    monkeypatch.setattr(Path, 'replace', noted_replace)
    write_json(tmp_path / 'config.json', {})
    assert happened == ['config.json.tmp', 'config.json.tmp -> config.json', str(tmp_path)]
    happened.clear()
    MetricWriter(tmp_path, 1).close()
    assert happened[:3] == ['metrics.jsonl.tmp', 'metrics.jsonl.tmp -> metrics.jsonl', str(tmp_path)]


def test_json_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / 'file.json'
    write_json(path, {'old': 1})

    def die(*arguments):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'fsync', die)
    with pytest.raises(OSError):
        write_json(path, {'new': 2})
    assert json.loads(path.read_text()) == {'old': 1}
    with pytest.raises(TypeError):
        write_json(path, {'new': object()})
    assert json.loads(path.read_text()) == {'old': 1}
