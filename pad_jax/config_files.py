"""Python files and modules of others: config files, the shipped ones by name, and modules of --import."""

import contextlib
import difflib
import importlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from pad_jax.errors import BadInput
from pad_jax.files import reach

_HERE = Path(__file__).parent
# An installed package has the configs inside, a checkout has them beside it.
SHIPPED = next((path for path in (_HERE / 'shipped' / 'configs', _HERE.parent / 'configs') if path.is_dir()), None)


def find_config_file(name: str | Path, below: str = '') -> Path:
    """Find a config file by its path, otherwise the shipped one of that name, with or without .py.

    Args:
      below: folder of the shipped configs to look into.
    """
    path = reach(name)
    if path.exists() or SHIPPED is None or path.is_absolute():
        return path
    shipped = SHIPPED / below / path.with_suffix('.py').name
    is_name = path.with_suffix('').name == str(name).removesuffix('.py')
    return shipped if is_name and shipped.is_file() else path


def call_file(path: Path, function: str) -> dict[str, Any]:
    """Call a function of a config file and flatten its ConfigDict to {'section.key': value}.

    The file can import the files beside it through the name of its folder, and shipped ones from `configs`.

    Raises:
      BadInput: the file is missing or fails, or the function returns another type.
    """
    if not path.is_file() or path.suffix != '.py':
        names = [file.stem for file in SHIPPED.rglob('*.py')] if SHIPPED else []
        close = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.8)
        meant = f', did you mean {close[0]}?' if close else ''
        raise BadInput(f'config file {path} does not exist or is not a Python file{meant}')
    with _foreign_code(f'config file {path}'), _importable(path.absolute().parent):
        config = runpy.run_path(str(path))[function]()
        if isinstance(config, ConfigDict):
            return flatten(config)  # fails for a required placeholder, and for a config that contains itself
    raise BadInput(f'{function}() of {path} must return a ConfigDict, got {type(config).__name__}')


def flatten(config) -> dict[str, Any]:
    """Flatten a config, or the dict of a config.json, to {'section.key': value}."""
    return flatten_dict(config.to_dict() if isinstance(config, ConfigDict) else config, sep='.')


def import_modules(names: Sequence[str]) -> None:
    """Import modules that register criteria, layers, models or data sets; the current folder is searched first."""
    if names and '' not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        with _foreign_code(f'--import={name}'):
            importlib.import_module(name)


@contextlib.contextmanager
def _foreign_code(what: str) -> Iterator[None]:
    """Raise BadInput for anything that the code of others raises, except Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BadInput(f'{what} fails: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours as `FOLDER.NAME`, even where another folder of that name was imported."""

    def forget() -> dict[str, Any]:
        names = [name for name in sys.modules if name.partition('.')[0] == folder.name]
        return {name: sys.modules.pop(name) for name in names}

    known = sys.modules.get(folder.name)
    others = forget() if known and str(folder) not in getattr(known, '__path__', ()) else {}
    if SHIPPED is not None and str(SHIPPED.parent) not in sys.path:
        sys.path.append(str(SHIPPED.parent))
    sys.path.insert(0, str(folder.parent))
    try:
        yield
    finally:
        sys.path.remove(str(folder.parent))
        if others:
            forget()
            sys.modules.update(others)
