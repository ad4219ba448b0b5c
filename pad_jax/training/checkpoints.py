"""Checkpoints of a run, by orbax: the whole TrainState, independent of the number of devices it came from."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from pad_jax.errors import BadInput
from pad_jax.training.state import TrainState

FORMAT = 1
"""Version of what a checkpoint holds. A reader refuses newer ones."""


class Checkpoints:
    """Numbered by step, in `folder`.

    Args:
      folder: made with the first checkpoint.
      keep: the newest that stay; None to read alone, which changes nothing in the folder, whoever else uses it.
    """

    def __init__(self, folder: Path, keep: int | None = None):
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
        """Writes a state that lives on one device; returns when it is complete."""
        if self._manager is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave({'format': FORMAT}))
        self._manager.save(int(state.step), args=arguments)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state of a step (the newest by default), in the shapes of `like`, on the default device.

        Raises:
          BadInput: when there is none, it comes from a newer version, or doesn't fit the model.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise BadInput(f'{self.folder} holds no checkpoint')
        where = self.folder / str(step)
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
        if about['format'] > FORMAT:
            raise BadInput(
                f'checkpoint {where} has format {about["format"]}, this version reads up to {FORMAT}: update pad_jax'
            )
        self._check_fits(step, like, where)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state

    def _check_fits(self, step: int, like: TrainState, where: Path) -> None:
        stored = _shapes(self._manager.item_metadata(step).state)
        wanted = _shapes(like)
        differing = sorted(
            f'{name}: {stored.get(name, "missing")} in the checkpoint, {wanted.get(name, "missing")} in the model'
            for name in stored.keys() | wanted.keys()
            if stored.get(name) != wanted.get(name)
        )
        if differing:
            more = f' (and {len(differing) - 3} more)' if len(differing) > 3 else ''
            raise BadInput(f'checkpoint {where} does not fit the model: {"; ".join(differing[:3])}{more}')

    def close(self) -> None:
        if self._manager:
            self._manager.close()


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Shape by path; orbax gives back dicts and lists where the state has dataclasses and tuples."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # a typed key is stored as its words
        found['/'.join(_name(part) for part in path)] = tuple(leaf.shape)
    return found


def _name(part) -> str:
    return str(next(getattr(part, kind) for kind in ('key', 'name', 'idx') if hasattr(part, kind)))
