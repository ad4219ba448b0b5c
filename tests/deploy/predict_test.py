"""`predict` by a run and by its export: images as files, and texts."""

import csv

import numpy as np
import pytest
from PIL import Image

import pad_jax
from pad_jax.data.digits import open_digits
from tests.training.fixtures import run_command

pytestmark = pytest.mark.usefixtures('one_block', 'one_layer')


def predict(*flags):
    status, out, err = run_command('predict', *flags)
    assert status == 0 and out == '', err


def read(path):
    return list(csv.DictReader(path.open()))


def test_images_by_a_run_and_by_its_export(finished_run, exported, tmp_path):
    """Digits as PNG: 255 is white, which is 16 in the data."""
    digits = open_digits(None, 8).eval
    (tmp_path / 'new' / 'deeper').mkdir(parents=True)
    for number, pixels in enumerate(digits.pixels[:20, :, :, 0]):
        grey = np.round(pixels * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / 'new' / ('deeper' if number > 9 else '') / f'{number:02}.png')
    paths = [tmp_path / 'new', tmp_path / 'new' / '03.png']
    predict(f'--workdir={finished_run}', '--input', *paths, f'--output={tmp_path}/run.csv')
    predict(f'--export={exported.folder}', '--input', *paths, f'--output={tmp_path}/export.csv')
    by_run, by_export = read(tmp_path / 'run.csv'), read(tmp_path / 'export.csv')
    assert [row['id'].rpartition('/')[2] for row in by_run] == [f'{number:02}.png' for number in range(20)] + ['03.png']
    assert [row['label'] for row in by_run] == [row['label'] for row in by_export] and by_run[3] == by_run[20]
    network = pad_jax.load_exported(exported.folder)
    logits = np.asarray(network(network.preprocess([tmp_path / 'new'])))
    assert [network.class_names[label] for label in logits.argmax(1)] == [row['label'] for row in by_run[:20]]
    with pytest.raises(ValueError, match=r"paths must be a list, got 'new\.png'"):
        network.preprocess('new.png')
    with pytest.raises(ValueError, match='paths must name at least one image or folder, got an empty list'):
        network.preprocess([])
    preprocessing = network.manifest['preprocessing']
    stored = (digits.pixels[:20] - preprocessing['mean'][0]) / preprocessing['std'][0]
    np.testing.assert_allclose(network.preprocess([tmp_path / 'new']), stored, atol=0.02)


def test_texts_by_an_export(finished_text_run, exported_texts, texts, tmp_path):
    source = texts / 'own' / 'val.tsv'
    predict(f'--workdir={finished_text_run}', f'--input={source}', f'--output={tmp_path}/run.csv')
    predict(f'--export={exported_texts.folder}', f'--input={source}', f'--output={tmp_path}/export.csv')
    by_run, by_export = read(tmp_path / 'run.csv'), read(tmp_path / 'export.csv')
    assert [row['label'] for row in by_run] == [row['label'] for row in by_export] != []
    status, _, err = run_command(
        'predict', '--export', exported_texts.folder, '--input', source, source, '--output=x.csv'
    )
    assert status == 2 and '--input must be one file of texts, got 2' in err
