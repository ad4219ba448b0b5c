"""Whether the tensors of a file are those that a network needs, and numbers that it can start from."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from pad_jax.errors import BadInput


def check_tensors(where: str | Path, tensors: Mapping[str, np.ndarray], needed: Mapping[str, tuple[int, ...]]) -> None:
    """Checks names, shapes and values.

    Args:
      where: the file or folder they come from.
      tensors: by name.
      needed: shapes by name.

    Raises:
      BadInput: one line that lists every tensor that is missing, too many, of a wrong shape, not floating-point or not
        finite.
    """
    shared = sorted(needed.keys() & tensors.keys())
    numbers = [name for name in shared if jnp.issubdtype(tensors[name].dtype, jnp.floating)]
    found = {
        'missing': sorted(needed.keys() - tensors.keys()),
        'extra': sorted(tensors.keys() - needed.keys()),
        'misshapen': [
            f'{name} {list(tensors[name].shape)} instead of {list(needed[name])}'
            for name in shared
            if tensors[name].shape != needed[name]
        ],
        'not floating-point': [f'{name} {tensors[name].dtype}' for name in shared if name not in numbers],
        'infinite or NaN': [name for name in numbers if not np.isfinite(tensors[name].astype(np.float32)).all()],
    }
    if any(found.values()):
        lists = '; '.join(f'{kind}: {", ".join(names)}' for kind, names in found.items() if names)
        raise BadInput(f'the weights in {where} do not fit the model; {lists}')
