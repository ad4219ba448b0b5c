"""A folder in the layout of Hugging Face: config.json, weights as safetensors, a vocabulary. No pickle is opened."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pad_jax.errors import BadInput
from pad_jax.files import open_plain, read_json

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# tokenizer.json first: it says how text is normalised, which vocab.txt leaves to be guessed.
VOCABULARIES = ('tokenizer.json', 'vocab.txt')

SUFFIX = '.safetensors'
PICKLES = ('.bin', '.pt', '.pth')

# Of torch: a checkpoint may hold views, which safetensors refuses, and tensors that share memory.
CONVERSION = (
    'python -c "import glob, torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() '
    "for f in glob.glob('PATTERN') for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
    "'" + WEIGHTS + '\')"'
)


def read_config(folder: str | Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
      BadInput: if there is no such folder or file, or it holds no JSON object.
    """
    return _read_object(_check_folder(folder) / CONFIG)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor by name, from a .safetensors file or from a folder.

    Raises:
      BadInput: as `read_tensors`, and for a file that is a pickle.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise BadInput(f'pretrained weights: {path} does not exist')
    if not path.is_file():
        return read_tensors(path)
    if path.suffix in PICKLES:
        raise BadInput(f'{path} is {_refuse_pickle(path.name)}')
    return _read_file(path)


def read_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """Every tensor by name: from model.safetensors, else from the shards that an index lists, else from the only file.

    Raises:
      BadInput: if there is no folder, no safetensors in it or several by other names, or a file that is incomplete.
    """
    folder = _check_folder(folder)
    if (folder / WEIGHTS).is_file():
        return _read_file(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    others = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    if len(others) == 1:
        return _read_file(others[0])
    if others:
        names = ', '.join(path.name for path in others)
        raise BadInput(
            f'{folder} holds {names} and neither {WEIGHTS} nor {INDEX}: keep one of them, or for a network of images '
            'name the file itself'
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        shards = len(pickles) > 1 and all(name.endswith('.bin') for name in pickles)
        pattern = 'pytorch_model*.bin' if shards else pickles[0]
        raise BadInput(f'{folder} holds weights only as {_refuse_pickle(", ".join(pickles), pattern)}')
    raise BadInput(f'{folder} holds no weights: {WEIGHTS}, {INDEX} or a single *{SUFFIX} is needed')


def find_vocabulary(folder: str | Path) -> Path:
    """The file that says how text becomes tokens: tokenizer.json, else vocab.txt.

    Raises:
      BadInput: if there is neither.
    """
    folder = _check_folder(folder)
    for name in VOCABULARIES:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f'{folder} holds no vocabulary: {" or ".join(VOCABULARIES)} is needed')


def _refuse_pickle(names: str, pattern: str | None = None) -> str:
    return (
        f'a pickle, {names}, which can run code and is not opened; '
        f'convert it there, with torch and safetensors installed: {CONVERSION.replace("PATTERN", pattern or names)}'
    )


def _check_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f'pretrained weights: {folder} is not a folder')
    return folder


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise BadInput(f'{path.parent} holds no {path.name}') from None
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from None
    except ValueError as error:  # Not JSON, or not UTF-8.
        raise BadInput(f'{path} is not JSON: {error}') from None
    if not isinstance(value, dict):
        raise BadInput(f'{path} must hold a JSON object, got {type(value).__name__}')
    return value


def _read_file(path: Path) -> dict[str, np.ndarray]:
    _check_header(path)
    try:
        with safe_open(path, 'numpy') as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise BadInput(f'{path} is damaged or incomplete: {error}') from None
    except (AttributeError, TypeError, ValueError) as error:  # types that NumPy has no name for
        raise BadInput(f'{path} holds a type of number that cannot be read: {error}') from None


def _check_header(path: Path) -> None:
    """Raises BadInput for a file that is something else: safetensors begin with a length, 8 bytes, and an object."""
    try:
        with open_plain(path) as file:
            start = file.read(9)
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from None
    if len(start) == 9 and start[8:] != b'{':
        pickle = start.startswith((b'PK', b'\x80'))
        what = f'but {_refuse_pickle(path.name)}' if pickle else 'whatever its name says: it has no header of theirs'
        raise BadInput(f'{path} is not safetensors, {what}')


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    index = _read_object(folder / INDEX).get('weight_map')
    # A bare file name: an index must not lead out of its folder.
    if not isinstance(index, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in index.values()
    ):
        raise BadInput(f'{folder / INDEX} must hold a weight_map from tensor names to file names')
    shards = sorted(set(index.values()))
    absent = [shard for shard in shards if not os.path.isfile(folder / shard)]
    if absent:
        raise BadInput(f'{folder} lacks {", ".join(absent)}, which {INDEX} lists')
    held = {shard: _read_file(folder / shard) for shard in shards}
    absent = sorted(name for name, shard in index.items() if name not in held[shard])
    if absent:
        raise BadInput(f'{folder}: {INDEX} lists tensors that the files lack: {", ".join(absent)}')
    unlisted = sorted(f'{name} in {shard}' for shard in shards for name in held[shard] if index.get(name) != shard)
    if unlisted:
        raise BadInput(f'{folder}: {INDEX} does not list {", ".join(unlisted)}')
    return {name: held[shard][name] for name, shard in index.items()}
