"""Whether the tensors of a file are those that a network needs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pad_jax.errors import BadInput


def check_tensors(where: str | Path, tensors: Mapping[str, np.ndarray], needed: Mapping[str, tuple[int, ...]]) -> None:
    """Checks names and shapes.

    Args:
      where: the file or folder they come from.
      tensors: by name.
      needed: shapes by name.

    Raises:
      BadInput: one line that lists every tensor that is missing, too many or of a wrong shape.
    """
    found = {
        'missing': sorted(needed.keys() - tensors.keys()),
        'extra': sorted(tensors.keys() - needed.keys()),
        'misshapen': [
            f'{name} {list(tensors[name].shape)} instead of {list(needed[name])}'
            for name in sorted(needed.keys() & tensors.keys())
            if tensors[name].shape != needed[name]
        ],
    }
    if any(found.values()):
        lists = '; '.join(f'{kind}: {", ".join(names)}' for kind, names in found.items() if names)
        raise BadInput(f'the weights in {where} do not fit the model; {lists}')
