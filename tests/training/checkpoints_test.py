import errno
import gc
import itertools
import json
import logging
import os
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.errors import BadInput, Stopped
from pad_jax.training import checkpoints
from pad_jax.training.checkpoints import FORMAT, MANIFEST, Checkpoints
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule
from pad_jax.training.state import Faults, abstract_state, init_state
from pad_jax.training.tasks import image_inputs
from tests.training.fixtures import contents
from tests.training.tiny import NormFree

OPTIMIZER = make_optimizer('adamw', make_rate_schedule(0.1, 'cosine', 1, 5), 1e-4, 1.0)
INPUTS = image_inputs((8, 8, 1))


def like():
    return abstract_state(NormFree(), OPTIMIZER, INPUTS)


@pytest.fixture(scope='module')
def state():
    state = init_state(NormFree(), OPTIMIZER, INPUTS, seed=2**32 - 1)
    mixed = jax.tree.map(lambda mask: (jnp.arange(mask.size) % 3 == 0).reshape(mask.shape), state.masks)
    sums = {'loss': (np.float32(0.1), np.float32(3))}
    return state.replace(masks=mixed, step=jnp.int32(7), round=jnp.int32(2), faults=Faults.none(3, 2), sums=sums)


def at(state, step):
    return state.replace(step=jnp.int32(step))


def set_manifest(folder, **changes):
    """Change entries of a manifest, with a sha256 that fits."""
    content = {**json.loads((folder / MANIFEST).read_text()), **changes}
    del content['sha256']
    (folder / MANIFEST).write_text(json.dumps({**content, 'sha256': checkpoints._digest(content)}))


def test_the_whole_state_comes_back(tmp_path, state):
    folder = tmp_path / 'checkpoints'
    saved = Checkpoints(folder, keep=2)
    assert saved.latest_step() is None and not folder.exists()
    saved.save(state)
    saved.close()
    found = Checkpoints(folder).restore_newest(like())
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype and jnp.array_equal(one, other)


def test_what_a_checkpoint_of_this_format_holds(tmp_path, state):
    """Another set of names is another format. The index follows from the masks, so it is not kept."""
    saved = Checkpoints(tmp_path / 'checkpoints', keep=2)
    saved.save(state.replace(index={'conv': jnp.arange(3)}))
    for _ in range(2):  # as when a signal comes in a step that is saved anyway
        saved.save(at(state.replace(average={'params': state.params, 'batch_stats': state.batch_stats}), 10))
    names = {'step', 'params', 'masks', 'batch_stats', 'optimizer_state', 'key', 'round'}
    describe = saved._checkpointer.metadata
    assert FORMAT == 4 and set(describe((saved.folder / '7').absolute()).item_metadata.state) == names
    assert set(describe(saved.folder / '10').item_metadata.state) == names | {'average'}
    manifest = json.loads((saved.folder / '7' / MANIFEST).read_text())
    assert list(manifest) == ['format', 'skipped', 'in_a_row', 'sums', 'files', 'sha256']
    assert (manifest['format'], manifest['skipped'], manifest['in_a_row']) == (4, 3, 2)
    with pytest.raises(BadInput, match=r'10 does not fit the model or has changed: .* average: '):
        saved.restore_newest(like())


def test_reading_changes_nothing_and_writing_removes_half_written_checkpoints(two_checkpoints, tmp_path, state):
    """evaluate may run beside a training that is writing a checkpoint, or after one that was killed at it."""
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    for name in ('9.writing', '9.writing.orbax-checkpoint-tmp', '3.removing', '9.orbax-checkpoint-tmp'):
        shutil.copytree(folder / '7', folder / name)
    for name in ('9.mine', '010', '٩'):  # the last two are numbers to Python
        (folder / name).mkdir()
    before = contents(folder)
    for keep in (None, 1):
        found = Checkpoints(folder, keep)
        assert found.steps_here() == [5, 7] and found.latest_step() == 7
        assert int(found.restore_newest(like()).step) == 7 and contents(folder) == before
    found.prepare_to_write()
    assert sorted(path.name for path in folder.iterdir()) == ['010', '5', '7', '9.mine', '٩']
    found.save(at(state, 9))
    assert sorted(path.name for path in folder.iterdir()) == ['010', '9', '9.mine', '٩']


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path, state, capfd):
    folder = tmp_path / 'checkpoints'
    Checkpoints(folder, keep=1).save(state)
    with pytest.raises(BadInput) as caught:
        Checkpoints(folder).restore_newest(abstract_state(NormFree(), OPTIMIZER, image_inputs((8, 8, 3))))
    message = str(caught.value)
    assert message.startswith(f'checkpoint {folder}/7 does not fit the model or has changed: ') and '\n' not in message
    assert 'shape: (3, 3, 3, 4) is not compatible with the stored shape: (3, 3, 1, 4)' in message
    sgd = make_optimizer('sgd', make_rate_schedule(0.1, 'cosine', 1, 5), 1e-4, 1.0)
    with pytest.raises(BadInput, match=r'does not fit the model or has changed: .* optimizer_state'):
        Checkpoints(folder).restore_newest(abstract_state(NormFree(), sgd, INPUTS))
    gc.collect()
    assert capfd.readouterr().err == ''


def truncate_arrays(folder):
    for path in folder.rglob('d/*'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """One bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_pipe(folder):
    (folder / 'state' / '_METADATA').unlink()
    os.mkfifo(folder / 'state' / '_METADATA')


def largest(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


# kind: (damage, words about it).
DAMAGES = {
    'state is gone': (lambda folder: shutil.rmtree(folder / 'state'), 'is missing'),
    'arrays are torn': (truncate_arrays, 'bytes of'),
    'a bit of an array': (lambda folder: flip(largest(folder)), 'or its sha256 differs'),
    'a bit of the list of arrays': (lambda folder: flip(folder / 'state' / '_METADATA'), 'sha256 differs'),
    'a pipe': (put_pipe, 'state/_METADATA is missing'),
    'a bit of the manifest': (lambda folder: flip(folder / MANIFEST), ''),
    'another format, without a sha256 that fits': (
        lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace(': 4', ': 7', 1)),
        'manifest.json has changed',
    ),
    'the manifest is not text': (lambda folder: (folder / MANIFEST).write_bytes(b'\xff'), "can't decode byte"),
    'the manifest is a list': (lambda folder: (folder / MANIFEST).write_text('[]'), 'manifest.json is not as written'),
    'without a sha256': (lambda folder: (folder / MANIFEST).write_text('{"files": {}}'), "not as written: 'sha256'"),
    'the manifest is gone': (lambda folder: (folder / MANIFEST).unlink(), 'No such file or directory: manifest.json'),
}


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp('a name with spaces & ümlauts') / 'checkpoints'
    saved = Checkpoints(folder, keep=2)
    saved.save(at(state, 5))
    saved.save(at(state, 7))
    saved.close()
    return folder


@pytest.mark.parametrize('kind', DAMAGES)
def test_the_latest_sound_checkpoint_replaces_a_damaged_one(two_checkpoints, tmp_path, kind):
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    damage, says = DAMAGES[kind]
    damage(folder / '7')
    reader = Checkpoints(folder)
    assert int(reader.restore_newest(like()).step) == 5
    (line,) = reader.describe_damage()
    assert line.startswith(f'checkpoint {folder / "7"} is damaged (') and says in line
    assert line.endswith('): the latest sound one replaces it, and training keeps it as 7.damaged')
    assert '\n' not in line and len(line) < 500


def test_a_run_keeps_a_damaged_checkpoint_under_another_name(two_checkpoints, tmp_path, capfd, state):
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    truncate_arrays(folder / '7')
    before = contents(folder)
    writer = Checkpoints(folder, keep=2)
    assert int(writer.restore_newest(like()).step) == 5
    assert contents(folder) == before
    writer.prepare_to_write()
    writer.save(at(state, 7))
    assert sorted(path.name for path in folder.iterdir()) == ['5', '7', '7.damaged']
    again = Checkpoints(folder, keep=2)
    assert int(again.restore_newest(like()).step) == 7
    flip(largest(folder / '7'))
    again.restore_newest(like())
    again.prepare_to_write()
    assert sorted(path.name for path in folder.iterdir()) == ['5', '7.damaged']
    assert 'Traceback' not in capfd.readouterr().err


def test_nothing_sound_is_refused_and_left_as_it_is(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    flip(largest(folder / '5'))
    shutil.rmtree(folder / '7' / 'state')
    before = contents(folder)
    with pytest.raises(BadInput) as caught:
        Checkpoints(folder, keep=2).restore_newest(like())
    message = str(caught.value)
    assert message.startswith(f'{folder} holds no sound checkpoint (7: state/') and '; 5: state/' in message
    assert message.endswith('): remove them to begin again') and '\n' not in message
    assert contents(folder) == before


TENSORSTORE = ValueError('RESOURCE_EXHAUSTED: writing "x": No space left on device [tensorstore_spec=...]')


@pytest.mark.parametrize(
    ('name', 'error', 'says'),
    [
        ('save', OSError(errno.EROFS, 'Read-only file system'), 'Read-only file system'),
        ('save', TENSORSTORE, 'No space left'),
        ('write_json', OSError(errno.ENOSPC, 'No space left on device'), 'No space left on device'),
    ],
)
def test_a_full_disk_leaves_what_was_there(two_checkpoints, tmp_path, monkeypatch, state, name, error, says):
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    before = contents(folder)
    writer = Checkpoints(folder, keep=1)

    def fails(*arguments, **named):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(writer._checkpointer if name == 'save' else checkpoints, name, fails)
        with pytest.raises(Stopped, match=rf'^checkpoint {folder}/9 cannot be written: {says}.*; once that is mended'):
            writer.save(at(state, 9))
    assert contents(folder) == before
    writer.save(at(state, 9))
    assert [path.name for path in folder.iterdir()] == ['9']


def test_writes_that_fail_leave_one_error_and_no_traceback(two_checkpoints, tmp_path, state, capfd, caplog):
    """Here all writer threads of orbax fail, because no file may be larger than 300 bytes. Others' words are kept."""
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    writer = Checkpoints(folder, keep=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(Stopped, match=r'9 cannot be written: File too large; once that is mended'):
            writer.save(at(state, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert capfd.readouterr().err == '' and not caplog.records
    logging.getLogger('asyncio').error('a future of the user')
    assert caplog.messages == ['a future of the user']
    writer.save(at(state, 9))
    assert int(writer.restore_newest(like()).step) == 9


def test_reading_beside_a_run_that_replaces_its_only_checkpoint(tmp_path, state, capfd):
    folder, stop = tmp_path / 'checkpoints', threading.Event()
    writer, reader = Checkpoints(folder, keep=1), Checkpoints(folder)
    writer.save(at(state, 1))

    def write():
        for step in itertools.takewhile(lambda step: not stop.is_set(), itertools.count(2)):
            writer.save(at(state, step))

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        steps = [int(reader.restore_newest(like()).step) for _ in range(20)]
        stop.set()
        written.result()
    assert steps == sorted(steps) and steps[-1] > steps[0] and not reader.describe_damage()
    writer.save(at(state, 1000))
    assert [path.name for path in folder.iterdir()] == ['1000'] and capfd.readouterr().err == ''


@pytest.mark.parametrize('name', ['_compare_files', '_stored_fields'])
def test_a_checkpoint_that_vanishes_is_no_problem(two_checkpoints, tmp_path, monkeypatch, capfd, name):
    """It vanishes before its files are compared, or before they are restored."""
    folder, original = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints'), getattr(checkpoints, name)

    def vanish(*arguments):
        if (folder / '7').exists():
            (folder / '7').rename(folder / '7.removing')
        return original(*arguments)

    monkeypatch.setattr(checkpoints, name, vanish)
    reader = Checkpoints(folder)
    assert int(reader.restore_newest(like()).step) == 5 and not reader.describe_damage()
    assert capfd.readouterr().err == ''


def test_failures_of_the_machine_are_not_called_damage(two_checkpoints, monkeypatch):
    def fails(*arguments, **named):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

    read = Checkpoints(two_checkpoints)
    monkeypatch.setattr(read._checkpointer, 'restore', fails)
    with pytest.raises(jax.errors.JaxRuntimeError):
        read.restore_newest(like())

    def denied(*arguments, **named):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(checkpoints, '_compare_files', denied)
    with pytest.raises(BadInput, match=r'7 cannot be read: Permission denied$'):
        Checkpoints(two_checkpoints).restore_newest(like())


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


def test_other_formats_are_refused_in_one_line(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / 'checkpoints')
    set_manifest(folder / '7', format=FORMAT + 1)
    with pytest.raises(
        BadInput, match=rf'7 has format {FORMAT + 1}, this version reads {FORMAT}: use the version that w'
    ):
        Checkpoints(folder).restore_newest(like())


@pytest.mark.parametrize(('text', 'is_shown'), [('future: tensorstore_spec', False), ('a task of the user', True)])
def test_errors_that_tensorstore_leaves_in_futures_are_raised_and_not_logged_too(text, is_shown):
    record = logging.LogRecord('asyncio', logging.ERROR, 'base_events.py', 1, text, None, None)
    assert checkpoints._is_of_others(record) is is_shown
