"""New images are prepared like those of evaluation."""

import numpy as np
import pytest

from pad_jax.data import SOURCES, make_source
from pad_jax.data.unlabelled import describe_preprocessing, find_images, prepare_images
from pad_jax.errors import BadInput
from tests.training.tiny_photos import write_classes


@pytest.mark.parametrize('name', ['folder', 'imagenet'])
def test_the_same_numbers_as_in_evaluation(tmp_path, name):
    write_classes(tmp_path, 2, 3)
    source = make_source(name, path=str(tmp_path), batch_size=6, image_size=16)
    (batch,) = source.eval_batches()
    files = find_images([tmp_path / 'val'])
    assert files == [str(path) for path in sorted((tmp_path / 'val').rglob('*.png'))]
    found = prepare_images(files, describe_preprocessing(SOURCES[name], 16))
    np.testing.assert_array_equal(found, batch['image'][batch['weight'] > 0])


def test_folders_behind_links_are_read_once(tmp_path):
    write_classes(tmp_path / 'photos', 2, 3)
    (tmp_path / 'photos' / 'again').symlink_to(tmp_path / 'photos')
    (tmp_path / 'linked').mkdir()
    (tmp_path / 'linked' / 'photos').symlink_to(tmp_path / 'photos')
    for name in ('photos', 'linked'):
        assert len(find_images([tmp_path / name])) == len(list((tmp_path / 'photos').rglob('*.png'))) > 0


def test_what_is_not_there(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.png').write_text('no image')
    for paths, says in (([tmp_path / 'no'], 'does not exist'), ([tmp_path / 'empty'], 'holds no .png, .jpg or .jpeg')):
        with pytest.raises(BadInput, match=says):
            find_images(paths)
    with pytest.raises(BadInput, match=r'text\.png'):
        prepare_images(find_images([tmp_path]), describe_preprocessing(SOURCES['folder'], 16))
