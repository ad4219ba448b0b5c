import re
import time

import numpy as np
import pytest

from pad_jax.data.glue import find_task
from pad_jax.data.glue_source import open_glue
from pad_jax.data.tokenization import open_vocabulary
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures

EVAL_SPLITS = {'mnli': ('validation_matched', 'validation_mismatched')}


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    return open_vocabulary(miniatures.write_vocabulary(tmp_path_factory.mktemp('vocabulary')), 16)


def open_task(path, pieces, **changes):
    settings = {'task': 'rte', 'pieces': pieces, 'batch_size': 2, 'seed': 1}
    return open_glue(path=path if path is None else str(path), **(settings | changes))


@pytest.mark.parametrize('name', miniatures.TASKS)
def test_original_files_and_tfds_give_the_same_batches(tmp_path, pieces, name):
    (tmp_path / 'files').mkdir()
    miniatures.write_original(tmp_path / 'files', name)
    miniatures.write_prepared(tmp_path / 'prepared', name)
    one, other = (open_task(tmp_path / kind, pieces, task=name) for kind in ('files', 'prepared'))
    assert one.spec == other.spec
    task, splits = find_task(name), EVAL_SPLITS.get(name, ('validation',))
    assert one.spec.class_names == task.class_names and one.spec.metrics == task.metrics
    assert one.spec.eval_splits == splits
    assert (one.spec.num_train, one.spec.num_eval) == (5, 3 * len(splits))
    assert one.spec.num_classes == {'stsb': 1, 'mnli': 3}.get(name, 2)
    pairs = [(one.train_batch(step), other.train_batch(step)) for step in range(3)]
    pairs += zip(one.eval_batches(), other.eval_batches(), strict=True)
    for batch, expected in pairs:
        assert batch.keys() == expected.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], expected[key])
        assert batch['segments'].any() == (name not in miniatures.SINGLE)


def test_refuses_a_wrong_task_before_anything_is_read(pieces):
    with pytest.raises(BadInput, match=r"task must be one of cola, .*, wnli, got 'rtx'"):
        open_task('/nowhere', pieces, task='rtx')


@pytest.mark.parametrize('path', [None, ''])
def test_refuses_no_path(pieces, path):
    with pytest.raises(BadInput, match=re.escape('path must name a folder with RTE/train.tsv (the original files)')):
        open_task(path, pieces)


def test_refuses_a_path_that_is_no_folder(tmp_path, pieces):
    with pytest.raises(BadInput, match=r"none' does not exist: expected RTE/train.tsv .* or glue/rte "):
        open_task(tmp_path / 'none', pieces)
    (tmp_path / 'file').write_text('')
    own = 'for a file of your own: --config.data.name=text$'
    with pytest.raises(BadInput, match=rf"file' is not a folder: expected one with RTE/train.tsv .*; {own}"):
        open_task(tmp_path / 'file', pieces)


def test_what_is_not_prepared_is_refused_at_once_with_what_to_run(tmp_path, pieces):
    miniatures.write_prepared(tmp_path, 'wnli')
    start = time.monotonic()
    with pytest.raises(BadInput) as caught:
        open_task(tmp_path, pieces)
    assert time.monotonic() - start < 1
    message = str(caught.value)
    assert 'has no RTE/train.tsv (the original files) or glue/rte (prepared by TFDS); for the latter, run' in message
    assert f'tfds build glue/rte --file_format=array_record --data_dir={tmp_path}' in message
    assert '\n' not in message


@pytest.mark.parametrize('place', ['glue', 'glue/rte', 'glue/rte/2.0.0'])
def test_a_path_inside_of_a_data_dir_is_told_from_the_data_dir(tmp_path, pieces, monkeypatch, place):
    written = miniatures.write_prepared(tmp_path, 'rte')
    assert str(written).endswith('glue/rte/2.0.0')
    advice = rf"{place}' has no RTE/train.tsv .*; for the latter, --config.data.path={tmp_path}$"
    with pytest.raises(BadInput, match=advice):
        open_task(tmp_path / place, pieces)
    monkeypatch.chdir(tmp_path / place)
    with pytest.raises(BadInput, match=f'for the latter, --config.data.path={tmp_path}$'):
        open_task('.', pieces)


def test_skipped_rows_are_told(tmp_path, pieces, caplog):
    folder = miniatures.write_original(tmp_path, 'rte')
    with (folder / 'train.tsv').open('a') as file:
        file.write('9\tthe cat\tit ran\tmaybe\n')
    with pytest.raises(BadInput, match=r"train.tsv' line 7: label 'maybe' is not one of entailment, not_entailment"):
        open_task(tmp_path, pieces)
    source = open_task(tmp_path, pieces, on_bad='skip')
    assert source.spec.num_train == 5 and 'left out 1 of 6 rows' in caplog.text
