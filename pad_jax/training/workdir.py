"""What a workdir says of the run in it: with which config, on which data. And whether a run may go on there.

Everything here reads, but for `write_identity` and `add_version`, so that a run which is refused has changed nothing.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from pad_jax.data import DataSpec, ImageSource, TextSource, TextSpec, shorten
from pad_jax.errors import BadInput
from pad_jax.files import read_json
from pad_jax.training.configuration import differing_keys, flatten, read_workdir_config
from pad_jax.training.writers import check_writable, read_metrics, write_json
from pad_jax.version import __version__

TOKENIZER = 'tokenizer.json'
VERSIONS = 'versions.json'
UNKNOWN_VERSION = 'unknown'
"""Of runs from before versions were recorded."""
# What a run writes after its config.json.
_WRITTEN = ('checkpoints', 'metrics.jsonl', 'partition.json', 'tensorboard')


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What data.json holds: the data that a run is trained on, wherever it lies.

    Attributes:
      class_names: by label.
      num_train, num_eval: examples in use.
    """

    class_names: tuple[str, ...]
    num_train: int
    num_eval: int

    @classmethod
    def of(cls, spec: DataSpec | TextSpec) -> 'DataRecord':
        return cls(tuple(spec.class_names), spec.num_train, spec.num_eval)

    def differences(self, other: 'DataRecord') -> list[str]:
        """'name: this -> other' for everything that differs."""
        counts = [
            f'{name}: {getattr(self, name)} -> {getattr(other, name)}'
            for name in ('num_train', 'num_eval')
            if getattr(self, name) != getattr(other, name)
        ]
        return describe_classes(self.class_names, other.class_names) + counts


def describe_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """What differs between two lists of classes, in words; [] if nothing.

    >>> describe_classes(['ant', 'bee'], ['ant', 'cow'])
    ['classes: without bee, with cow']
    """
    if tuple(old) == tuple(new):
        return []
    words = [
        f'{word} {", ".join(map(shorten, names[:3]))}{f" and {len(names) - 3} more" if len(names) > 3 else ""}'
        for word, names in (
            ('without', [name for name in old if name not in new]),
            ('with', [name for name in new if name not in old]),
        )
        if names
    ]
    return [f'classes: {", ".join(words) or "in another order"}']


def check_workdir(workdir: Path, config) -> None:
    """Whether a run of this config may write into workdir, as far as can be told without its data.

    Raises:
      BadInput: where another config, or nobody knows what, has left files; where one of them is damaged; and where
        nothing can be written.
    """
    try:
        _check_is_ours(workdir, config)
        present = workdir
        while not present.exists():
            present = present.parent
        if not present.is_dir():
            raise BadInput(f'workdir {workdir} cannot be made: {present} is not a folder')
        if not os.access(present, os.W_OK | os.X_OK):
            raise BadInput(f'workdir {workdir} cannot be written: no permission to write into {present}')
        check_writable(workdir)
        read_metrics(workdir)
    except OSError as error:
        raise BadInput(f'workdir {workdir} cannot be used: {error.strerror}') from error


def _check_is_ours(workdir: Path, config) -> None:
    if (workdir / 'config.json').exists():
        differing = differing_keys(flatten(read_workdir_config(workdir)), flatten(config))
        if differing:
            raise BadInput(f'{workdir} was made by another config ({"; ".join(differing)}): use another workdir')
        read_versions(workdir)
    elif workdir.exists() and not workdir.is_dir():
        raise BadInput(f'workdir {workdir} is not a folder')
    else:
        others = [name for name in _WRITTEN if (workdir / name).exists()]
        if others:
            raise BadInput(f'{workdir} holds {others[0]} but no config.json to say what made it: use another workdir')


def check_data(workdir: Path, spec: DataSpec | TextSpec) -> None:
    """Refuses, for the run in workdir, any data but its own. The folder may have moved.

    Raises:
      BadInput: naming what differs.
    """
    if not (workdir / 'config.json').exists():
        return  # no run yet
    differing = read_data(workdir).differences(DataRecord.of(spec))
    if differing:
        raise BadInput(f'{workdir} was trained on other data ({"; ".join(differing)}): use another workdir')


def read_data(workdir: Path) -> DataRecord:
    """What the run in workdir is trained on.

    Raises:
      BadInput: when nothing says so.
    """
    path = workdir / 'data.json'
    try:
        content = read_json(path)
        record = DataRecord(tuple(content['class_names']), content['num_train'], content['num_eval'])
    except FileNotFoundError:
        raise BadInput(f'{workdir} holds no data.json to say what it was trained on: use another workdir') from None
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f'{path} is damaged: it must hold class_names, num_train and num_eval') from error
    names_are_text = type(content['class_names']) is list and all(type(name) is str for name in record.class_names)
    if not names_are_text or {type(record.num_train), type(record.num_eval)} != {int}:
        raise BadInput(f'{path} is damaged: class_names must be texts, num_train and num_eval integers')
    return record


def read_versions(workdir: Path) -> list[str]:
    """The versions of pad_jax that have trained the run in workdir, the first of them first; [] without a run yet.

    Raises:
      BadInput: when versions.json can't be read.
    """
    path = workdir / VERSIONS
    try:
        content = read_json(path)
        versions = content['pad_jax']
    except FileNotFoundError:
        return [UNKNOWN_VERSION] if (workdir / 'config.json').exists() else []
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f'{path} is damaged: it must hold pad_jax, a list of versions') from error
    if type(versions) is not list or not versions or not all(type(one) is str for one in versions):
        raise BadInput(f'{path} is damaged: it must hold pad_jax, a list of versions')
    return versions


def add_version(workdir: Path) -> None:
    """Writes to versions.json that this version trains the run in workdir, before or after others."""
    versions = read_versions(workdir)
    if __version__ not in versions:
        write_json(workdir / VERSIONS, {'pad_jax': [*versions, __version__]})


def find_tokenizer(workdir: Path) -> Path | None:
    """How the run of texts in workdir makes tokens of them, whatever became of the vocabulary; None without a run yet.

    Raises:
      BadInput: when it has been lost.
    """
    if not (workdir / 'config.json').exists():
        return None
    path = workdir / TOKENIZER
    if not path.is_file():
        raise BadInput(f'{workdir} holds no {TOKENIZER} to say how its texts become tokens: use another workdir')
    return path


def write_identity(workdir: Path, config, source: ImageSource | TextSource) -> None:
    """Writes data.json, for texts tokenizer.json, and config.json.

    That comes last: where there is a config, there is what its run is trained on.
    """
    write_json(workdir / 'data.json', dataclasses.asdict(DataRecord.of(source.spec)))
    if isinstance(source, TextSource):
        write_json(workdir / TOKENIZER, source.pieces.describe())
    write_json(workdir / 'config.json', config.to_dict())
