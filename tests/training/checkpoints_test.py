import json
import os
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
from pad_jax.training.tasks import image_inputs
from tests.training.tiny import NormFree

OPTIMIZER = make_optimizer('adamw', 0.1, 'cosine', 1, 1e-4, 1.0, 5)
INPUTS = image_inputs((8, 8, 1))


def like():
    return abstract_state(NormFree(), OPTIMIZER, INPUTS)


@pytest.fixture(scope='module')
def state():
    state = init_state(NormFree(), OPTIMIZER, INPUTS, seed=2**32 - 1)
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


def test_what_a_checkpoint_of_this_format_holds(tmp_path, state):
    """Another set of names is another format. Columns, which follow from the masks, are none; averages may be kept."""
    saved = Checkpoints(tmp_path / 'checkpoints', keep=2)
    saved.save(state.replace(columns={'conv': jnp.arange(3)}, packed={'conv': jnp.arange(3)}))
    saved.save(at(state.replace(average={'params': state.params, 'batch_stats': state.batch_stats}), 8))
    names = {'step', 'params', 'masks', 'batch_stats', 'optimizer_state', 'key', 'round'}
    assert FORMAT == 1 and set(saved._manager.item_metadata(7).state) == names
    assert set(saved._manager.item_metadata(8).state) == names | {'average'}
    assert saved.restore(like(), 7).columns == {} == saved.restore(like(), 7).average
    with pytest.raises(
        BadInput, match=r'8 does not fit the model: average/params/.* in the checkpoint, missing in the m'
    ):
        saved.restore(like())


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
        Checkpoints(folder).restore(abstract_state(NormFree(), OPTIMIZER, image_inputs((8, 8, 3))))
    message = str(caught.value)
    assert '/checkpoints/7 does not fit the model' in message
    assert 'masks/conv/kernel: bool[3, 3, 1, 4] in the checkpoint, bool[3, 3, 3, 4] in the model' in message
    assert re.search(r'\(and \d+ more\)', message) and '\n' not in message
    sgd = make_optimizer('sgd', 0.1, 'cosine', 1, 1e-4, 1.0, 5)
    with pytest.raises(BadInput, match='missing in the model'):
        Checkpoints(folder).restore(abstract_state(NormFree(), sgd, INPUTS))


def test_other_types_are_refused_as_other_shapes_are(tmp_path, state):
    """Orbax would convert them without a word."""
    folder = tmp_path / 'checkpoints'
    Checkpoints(folder, keep=1).save(state)
    other = jax.eval_shape(lambda given: given.replace(params=jax.tree.map(jnp.bfloat16, given.params)), like())
    with pytest.raises(BadInput, match=r'params/classifier/bias: float32\[10\] in the checkpoint, bfloat16\[10\] in'):
        Checkpoints(folder).restore(other)


def truncate_arrays(folder):
    for path in folder.rglob('d/*'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    'about is no JSON': (lambda folder: (folder / 'about' / 'metadata').write_text('nope'), 'JSONDecodeError'),
    'about is no text': (lambda folder: (folder / 'about' / 'metadata').write_bytes(b'\xff'), 'UnicodeDecodeError'),
    'about is empty': (lambda folder: (folder / 'about' / 'metadata').write_text('{}'), 'says no format, but {}'),
    'about is a list': (lambda folder: (folder / 'about' / 'metadata').write_text('[1]'), 'says no format, but [1]'),
    'format is a text': (lambda folder: (folder / 'about' / 'metadata').write_text('{"format": "2"}'), 'no format'),
    'format is a flag': (lambda folder: (folder / 'about' / 'metadata').write_text('{"format": true}'), 'no format'),
    'about is gone': (lambda folder: shutil.rmtree(folder / 'about'), '"about" was not found'),
    'metadata is gone': (lambda folder: (folder / 'about' / 'metadata').unlink(), 'metadata not found'),
    'state is gone': (lambda folder: shutil.rmtree(folder / 'state'), 'state holds no array'),
    'list of arrays is torn': (lambda folder: (folder / 'state' / '_METADATA').write_text('{'), 'JSONDecodeError'),
    'list of arrays is empty': (lambda folder: (folder / 'state' / '_METADATA').write_text('{}'), 'KeyError'),
    'list of arrays is gone': (lambda folder: (folder / 'state' / '_METADATA').unlink(), '_METADATA lists no array'),
    'arrays are torn': (truncate_arrays, 'OUT_OF_RANGE'),
    'index of arrays is torn': (lambda folder: (folder / 'state' / 'manifest.ocdbt').write_text('x'), 'DATA_LOSS'),
    'index of arrays is gone': (lambda folder: (folder / 'state' / 'manifest.ocdbt').unlink(), 'holds no array'),
    'all is gone': (lambda folder: (shutil.rmtree(folder), folder.mkdir()), '"about" was not found'),
}


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp('a name with spaces & ümlauts') / 'checkpoints'
    saved = Checkpoints(folder, keep=2)
    saved.save(at(state, 5))
    saved.save(at(state, 7))
    saved.close()
    return folder


@pytest.mark.parametrize('keep', [None, 2])
@pytest.mark.parametrize('kind', DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line(two_checkpoints, tmp_path, capfd, kind, keep):
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    damage, says = DAMAGES[kind]
    damage(folder / '7')
    with pytest.raises(BadInput) as caught:
        Checkpoints(folder, keep).restore(like())
    message = str(caught.value)
    assert message.startswith(f'checkpoint {folder / "7"} is damaged: ') and says in message
    assert message.endswith('; remove it to go on from the one before')
    assert '\n' not in message and len(message) < 500
    assert 'Traceback' not in capfd.readouterr().err
    shutil.rmtree(folder / '7')
    assert int(Checkpoints(folder, keep).restore(like()).step) == 5
    truncate_arrays(folder / '5')
    with pytest.raises(BadInput, match=r'; remove it to begin again$'):
        Checkpoints(folder, keep).restore(like())


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(two_checkpoints, monkeypatch):
    def denied(*arguments, **named):
        raise PermissionError(13, 'Permission denied')

    read = Checkpoints(two_checkpoints)
    monkeypatch.setattr(read._manager, 'restore', denied)
    with pytest.raises(BadInput, match=r'7 cannot be read: PermissionError: .*Permission denied$'):
        read.restore(like())


def test_a_failure_of_the_machine_is_no_bad_input(two_checkpoints, monkeypatch):
    def fails(*arguments, **named):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

    read = Checkpoints(two_checkpoints)
    monkeypatch.setattr(read._manager, 'restore', fails)
    with pytest.raises(jax.errors.JaxRuntimeError):
        read.restore(like())


def test_a_folder_that_cannot_be_used_is_refused_at_opening(two_checkpoints, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(BadInput, match='file is not a folder'):
        Checkpoints(tmp_path / 'file', keep=1)
    # Root may write anywhere: what the system would say is said in its place.
    monkeypatch.setattr(os, 'access', lambda path, mode: not mode & os.W_OK)
    with pytest.raises(BadInput, match='checkpoints cannot be written: no permission'):
        Checkpoints(two_checkpoints, keep=1)
    assert Checkpoints(two_checkpoints).latest_step() == 7
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(BadInput, match='checkpoints cannot be read: no permission'):
        Checkpoints(two_checkpoints)


def test_a_newer_format_is_refused(tmp_path, state):
    folder = tmp_path / 'checkpoints'
    Checkpoints(folder, keep=1).save(state)
    set_format(folder, {'format': FORMAT + 1})
    with pytest.raises(BadInput, match=rf'7 has format {FORMAT + 1}, this version reads up to {FORMAT}: update'):
        Checkpoints(folder).restore(like())
