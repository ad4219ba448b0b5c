import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.training.checkpoints import FORMAT, Checkpoints
from pad_jax.training.optimizer import make_optimizer
from pad_jax.training.state import abstract_state, init_state
from tests.training.tiny import NormFree

OPTIMIZER = make_optimizer('adamw', 0.1, 'cosine', 1, 1e-4, 1.0, 5)
SHAPE = (8, 8, 1)


def like():
    return abstract_state(NormFree(), OPTIMIZER, SHAPE)


@pytest.fixture(scope='module')
def state():
    state = init_state(NormFree(), OPTIMIZER, SHAPE, seed=2**32 - 1)
    mixed = jax.tree.map(lambda mask: (jnp.arange(mask.size) % 3 == 0).reshape(mask.shape), state.masks)
    return state.replace(masks=mixed, step=jnp.int32(7), round=jnp.int32(2))


def at(state, step):
    return state.replace(step=jnp.int32(step))


def set_format(folder, content):
    (path,) = folder.glob('*/about/metadata')
    path.write_text(json.dumps(content))


def test_the_whole_state_comes_back(tmp_path, state):
    folder = tmp_path / 'checkpoints'
    saved = Checkpoints(folder, keep=2)
    assert saved.latest_step() is None and not folder.exists()
    saved.save(state)
    saved.close()
    found = Checkpoints(folder).restore(like())
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert jax.dtypes.issubdtype(found.key.dtype, jax.dtypes.prng_key)

    def compare(path, one, other):
        assert one.dtype == other.dtype, path
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, found, state)
    assert found.masks['conv']['kernel'].dtype == bool


def test_the_newest_is_restored_and_the_oldest_go(tmp_path, state):
    saved = Checkpoints(tmp_path / 'checkpoints', keep=2)
    for step in (2, 4, 10):
        saved.save(at(state, step))
    assert saved.latest_step() == 10
    saved.close()
    assert sorted(path.name for path in saved.folder.iterdir() if path.is_dir()) == ['10', '4']
    read = Checkpoints(saved.folder)
    assert int(read.restore(like()).step) == 10
    assert int(read.restore(like(), step=4).step) == 4


def test_the_same_step_twice_is_one_checkpoint(tmp_path, state):
    """As when a signal comes in the step that is saved anyway."""
    saved = Checkpoints(tmp_path / 'checkpoints', keep=2)
    saved.save(at(state, 3))
    saved.save(at(state, 3))
    assert int(saved.restore(like()).step) == 3


def test_reading_changes_nothing_and_a_half_written_checkpoint_is_none(tmp_path, state):
    """evaluate may run beside a training that is writing a checkpoint, or after one that was killed at it."""
    folder = tmp_path / 'checkpoints'
    Checkpoints(folder, keep=1).save(state)
    shutil.copytree(folder / '7' / 'state', folder / '9.orbax-checkpoint-tmp' / 'state')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    reader = Checkpoints(folder)
    assert reader.latest_step() == 7
    assert int(reader.restore(like()).step) == 7
    reader.close()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before
    writer = Checkpoints(folder, keep=1)
    assert writer.latest_step() == 7
    writer.save(at(state, 9))
    writer.close()
    assert [path.name for path in folder.iterdir()] == ['9']


def test_no_checkpoint_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=re.escape(f'{tmp_path}/nowhere holds no checkpoint')):
        Checkpoints(tmp_path / 'nowhere').restore(like())
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BadInput, match='holds no checkpoint'):
        Checkpoints(tmp_path / 'empty').restore(like())


def test_a_checkpoint_of_another_network_is_refused_with_names(tmp_path, state):
    folder = tmp_path / 'checkpoints'
    Checkpoints(folder, keep=1).save(state)
    with pytest.raises(BadInput) as caught:
        Checkpoints(folder).restore(abstract_state(NormFree(), OPTIMIZER, (8, 8, 3)))
    message = str(caught.value)
    assert '/checkpoints/7 does not fit the model' in message
    assert 'params/conv/kernel: (4, 3, 3, 1, 4) in the checkpoint, (4, 3, 3, 3, 4) in the model' in message or (
        'masks/conv/kernel: (3, 3, 1, 4) in the checkpoint, (3, 3, 3, 4) in the model' in message
    )
    assert re.search(r'\(and \d+ more\)', message) and '\n' not in message
    sgd = make_optimizer('sgd', 0.1, 'cosine', 1, 1e-4, 1.0, 5)
    with pytest.raises(BadInput, match='missing in the model'):
        Checkpoints(folder).restore(abstract_state(NormFree(), sgd, SHAPE))


def test_a_newer_format_is_refused(tmp_path, state):
    folder = tmp_path / 'checkpoints'
    Checkpoints(folder, keep=1).save(state)
    set_format(folder, {'format': FORMAT + 1})
    with pytest.raises(BadInput, match=rf'7 has format {FORMAT + 1}, this version reads up to {FORMAT}: update'):
        Checkpoints(folder).restore(like())
