"""Runs on photos that are read while the network trains."""

import shutil

import numpy as np
import pytest

from pad_jax.data import images
from pad_jax.errors import BadInput
from pad_jax.training import processes
from pad_jax.training.evaluate import evaluate_workdir
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.data.photos import CLASSES, truncate, write_folders
from tests.training.fixtures import run_command
from tests.training.tiny import DIGITS, SMALL, one_device, small_config
from tests.training.tiny_photos import PHOTOS

pytestmark = pytest.mark.usefixtures('one_block')


@pytest.fixture
def photos(tmp_path):
    """One photo to train on is cut off, and one to evaluate on."""
    paths = write_folders(tmp_path / 'photos')
    truncate(paths['train'][5])
    truncate(paths['val'][3])
    return tmp_path / 'photos'


def photo_config(folder, **changes):
    return small_config(**PHOTOS | {'data.path': folder} | changes)


def test_a_run_that_skips_says_how_many_and_resumes_to_the_same_bytes(photos, tmp_path, capfd, monkeypatch):
    used, make_pool = set(), images.ThreadPoolExecutor
    monkeypatch.setattr(processes, 'count_own_processors', lambda: 3)
    monkeypatch.setattr(images, 'ThreadPoolExecutor', lambda count: used.add(count) or make_pool(count))
    config, straight, resumed = photo_config(photos), tmp_path / 'straight', tmp_path / 'resumed'
    train(config, straight, devices=one_device())
    assert 3 in used
    said = capfd.readouterr().err
    assert '2 images could not be read and were skipped' in said
    for row in read_metrics(straight):
        counts = row.get('examples'), row.get('skipped')
        assert counts == ((5, 1) if row['split'] == 'eval' else (None, None))
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / 'checkpoints' / '6')
    train(config, resumed, devices=one_device())
    said = capfd.readouterr().err
    assert 'resumes from the checkpoint of step 4' in said
    assert 'images could not be read and were skipped since step 4' in said.splitlines()[-1]
    assert (resumed / 'metrics.jsonl').read_bytes() == (straight / 'metrics.jsonl').read_bytes()
    values = evaluate_workdir(resumed)
    assert (values['examples'], values['skipped']) == (5, 1)
    assert np.isclose(values['loss'], read_metrics(straight)[-1]['loss'], rtol=1e-6)


def test_a_run_on_other_photos_of_the_same_names_is_noticed(photos, tmp_path, caplog):
    config, workdir = photo_config(photos, **{'data.augment': 'crop'}), tmp_path / 'run'
    train(config, workdir, devices=one_device())
    shutil.move(photos, tmp_path / 'moved')
    config.data.path = str(tmp_path / 'moved')
    train(config, workdir, devices=one_device())
    one, other = sorted((tmp_path / 'moved' / 'train' / CLASSES[0]).iterdir())[:2]
    content = one.read_bytes()
    shutil.copy(other, one), other.write_bytes(content)
    with pytest.raises(BadInput, match=r'run was trained on other data \(contents of train differ\): use another'):
        train(config, workdir, devices=one_device())
    evaluate_workdir(workdir, [f'data.path={tmp_path}/moved'])
    assert 'this data is not that of the training: contents of train differ' in caplog.text


def test_a_run_stops_at_a_damaged_photo_with_its_name(photos, tmp_path):
    flags = [f'--config.{name}={value}' for name, value in (SMALL | PHOTOS | {'data.on_bad': 'stop'}).items()]
    status, out, err = run_command(
        'train', f'--config={DIGITS}', f'--workdir={tmp_path}/run', f'--config.data.path={photos}', *flags
    )
    path = photos / 'val' / CLASSES[1] / f'{CLASSES[1]}_1.JPEG'
    assert status == 2 and out == ''
    last = err.splitlines()[-1]
    assert last.startswith(f"error: cannot read the image '{path}': ")
    assert last.endswith('(data.on_bad=skip leaves such images out)') and 'Traceback' not in err
