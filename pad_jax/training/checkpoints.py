"""Checkpoints of a run, by orbax: the whole TrainState, independent of the devices and processes it came from.

Where several processes train, all of them call everything here.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore

from pad_jax.errors import BadInput
from pad_jax.training.parallel import as_global
from pad_jax.training.state import TrainState
from pad_jax.training.writers import check_folder

FORMAT = 1
"""Version of what a checkpoint holds. A reader refuses newer ones."""


class Checkpoints:
    """Numbered by step, in `folder`.

    Args:
      folder: made with the first checkpoint.
      keep: the newest that stay; None to read alone, which changes nothing in the folder, whoever else uses it.

    Raises:
      BadInput: when the folder is none, or is to be written and can't be.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        check_folder(folder, to_write=keep is not None)
        self.folder = folder
        self._keep = keep
        self._manager = self._open() if folder.exists() else None

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            read_only=self._keep is None,
            create=False,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=self._keep is not None,
        )
        handlers = {'state': ocp.StandardCheckpointHandler(), 'about': ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.folder.absolute(), options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step() if self._manager else None

    def save(self, state: TrainState) -> None:
        """Writes a state that lives on one device, of each process; returns when it is complete."""
        if self._manager is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(as_global(_stored_fields(state))), about=ocp.args.JsonSave({'format': FORMAT})
        )
        self._manager.save(int(state.step), args=arguments)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (the newest by default), in the shapes of `like`, on the default device.

        Raises:
          BadInput: when there is none, it is damaged, comes from a newer version, or doesn't fit the model.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise BadInput(f'{self.folder} holds no checkpoint')
        where = self.folder / str(step)
        with self._as_bad_input(step):
            about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
        if not isinstance(about, dict) or type(about.get('format')) is not int:
            raise self._damaged(step, f'about/metadata says no format, but {str(about)[:80]}')
        if about['format'] > FORMAT:
            raise BadInput(
                f'checkpoint {where} has format {about["format"]}, this version reads up to {FORMAT}: update pad_jax'
            )
        self._check_fits(step, like, where)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _stored_fields(like)
        )
        with self._as_bad_input(step):
            found = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state
        return like.replace(**found)

    def _check_fits(self, step: int, like: TrainState, where: Path) -> None:
        with self._as_bad_input(step):
            _check_arrays(where / 'state')
            stored = _describe_leaves(self._manager.item_metadata(step).state)
        if not stored:
            raise self._damaged(step, 'its state/_METADATA lists no array')
        wanted = _describe_leaves(_stored_fields(like))
        differing = sorted(
            f'{name}: {stored.get(name, "missing")} in the checkpoint, {wanted.get(name, "missing")} in the model'
            for name in stored.keys() | wanted.keys()
            if stored.get(name) != wanted.get(name)
        )
        if differing:
            more = f' (and {len(differing) - 3} more)' if len(differing) > 3 else ''
            raise BadInput(f'checkpoint {where} does not fit the model: {"; ".join(differing[:3])}{more}')

    @contextlib.contextmanager
    def _as_bad_input(self, step: int) -> Iterator[None]:
        """Damaged files make orbax raise almost anything: KeyError, JSONDecodeError, FileNotFoundError, ..."""
        try:
            yield
        except (MemoryError, jax.errors.JaxRuntimeError):  # the machine's fault, not the checkpoint's
            raise
        except Exception as error:
            reason = _first_words(error)
            if isinstance(error, PermissionError) or 'PERMISSION_DENIED' in reason:
                raise BadInput(f'checkpoint {self.folder / str(step)} cannot be read: {reason}') from error
            raise self._damaged(step, reason) from error

    def _damaged(self, step: int, reason: str) -> BadInput:
        earlier = any(other < step for other in self._manager.all_steps())
        remedy = 'go on from the one before' if earlier else 'begin again'
        return BadInput(f'checkpoint {self.folder / str(step)} is damaged: {reason}; remove it to {remedy}')

    def close(self) -> None:
        if self._manager:
            self._manager.close()


def _stored_fields(state: TrainState) -> dict[str, Any]:
    """All that a checkpoint holds of a state: not what follows from the masks, and an average where one is kept."""
    left_out = {'columns', 'packed'} if state.average else {'columns', 'packed', 'average'}
    return {name: value for name, value in vars(state).items() if name not in left_out}


def _check_arrays(folder: Path) -> None:
    """Reads what is stored of each array once; raises what tensorstore raises, or LookupError if there is none.

    Orbax starts all its reads at once: when one fails, each of the others leaves a traceback of its own on stderr,
    about an event loop that is closed.
    """
    files = {'driver': 'file', 'path': f'{folder.absolute()}/'}
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': files}).result()
    keys = store.list().result()
    if not keys:
        raise LookupError(f'{folder.name} holds no array')
    for key in keys:
        store.read(key).result()


def _first_words(error: Exception) -> str:
    """What an error says, on one line and without the specification that tensorstore adds."""
    text = ' '.join(str(error).split()).split(' [tensorstore_spec')[0]
    return f'{type(error).__name__}: {text[:197] + "..." if len(text) > 200 else text}'


def _describe_leaves(tree) -> dict[str, str]:
    """Type and shape by path; orbax gives back dicts and lists where the state has dataclasses and tuples."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # a typed key is stored as its words
        found['/'.join(_name(part) for part in path)] = f'{leaf.dtype}{list(leaf.shape)}'
    return found


def _name(part) -> str:
    return str(next(getattr(part, kind) for kind in ('key', 'name', 'idx') if hasattr(part, kind)))
