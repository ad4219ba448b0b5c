"""Serving an export: numbers in, logits out, without models, layers, training code and Flax.

The manifest describes an export and holds the size and checksum of every file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors.numpy

from pad_jax.errors import BadInput, quote
from pad_jax.files import reach, read_json, read_plain

FORMAT = 2  # of the content of an export; other formats are refused
MANIFEST, WEIGHTS, NETWORK, TOKENIZER = 'manifest.json', 'weights.safetensors', 'network.stablehlo', 'tokenizer.json'
_KEYS = {'task': str, 'inputs': list, 'output': dict, 'class_names': list, 'files': dict, 'versions': dict}


class ExportedNetwork:
    """An exported network; call it with its inputs in the order of the manifest, or by name.

    Images: `image` float32[B, H, W, channels], as `preprocess` makes it of files. Texts: `tokens` int32[B, T],
    `segments` int32[B, T] and `valid` bool[B, T], False on padding. The result is a jax.Array float32[B, outputs] on
    the default device. The batch may have any size, zero included. Each new size compiles once.

    Attributes:
      manifest: content of manifest.json.
    """

    def __init__(self, manifest: dict[str, Any], weights: dict[str, np.ndarray], network: jax.export.Exported):
        self.manifest = manifest
        self._weights = jax.device_put(weights)
        self._call = jax.jit(network.call)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs; () if the network predicts a number."""
        return tuple(self.manifest['class_names'])

    def preprocess(self, paths: Sequence[str | Path]) -> np.ndarray:
        """Read image files, and those of folders by name, as float32[N, H, W, channels], the input of the network.

        Raises:
          BadInput: a ValueError, if the network takes no images, or a file cannot be read.
        """
        from pad_jax.data.unlabelled import find_images, prepare_images  # serving needs no decoder

        if not self.manifest['task'].startswith('image'):
            raise BadInput('the network takes texts: encode them with tokenizer.json')
        if isinstance(paths, str | Path):
            raise BadInput(f'paths must be a list, got {str(paths)!r}')
        if not paths:
            raise BadInput('paths must name at least one image or folder, got an empty list')
        return prepare_images(find_images(paths), self.manifest['preprocessing'])

    def __call__(self, *inputs, **named) -> jax.Array:
        """Compute logits, float32[B, outputs], or [B, T, V] of a language model.

        Raises:
          BadInput: a ValueError, if the inputs differ from the manifest.
        """
        specs = self.manifest['inputs']
        names = [spec['name'] for spec in specs]
        given = dict(zip(names, inputs)) | named
        if len(inputs) > len(names) or len(given) < len(inputs) + len(named) or sorted(given) != sorted(names):
            got = [f'{len(inputs)} without a name', *named]
            raise BadInput(f'the network takes {", ".join(names)}, each once; got {", ".join(got)}')
        arrays = [_check_input(spec, given[spec['name']]) for spec in specs]
        sizes: dict[str, int] = {}
        for spec, array in zip(specs, arrays):
            _match_sizes(spec, array.shape, sizes)
        if sizes['batch'] == 0:  # the symbol of the batch stands for one or more
            output = self.manifest['output']
            return jax.numpy.zeros([sizes.get(size, size) for size in output['shape']], output['dtype'])
        return self._call(self._weights, *arrays)


def load_exported(path: str | Path) -> ExportedNetwork:
    """Load a folder that `python -m pad_jax export` wrote.

    Args:
      path: the folder.

    Raises:
      BadInput: a ValueError, if the folder is not a sound export, has another format, or JAX cannot read it.
    """
    folder = reach(path)
    manifest = read_manifest(folder)
    files = read_files(folder, manifest)
    missing = [name for name in (WEIGHTS, NETWORK) if name not in files]
    if missing:
        raise BadInput(f'{quote(folder)} has no {", ".join(missing)}: export the run again')
    network = _open_network(folder / NETWORK, files[NETWORK], manifest)
    return ExportedNetwork(manifest, safetensors.numpy.load(files[WEIGHTS]), network)


def _open_network(path: Path, content: bytes, manifest: dict[str, Any]) -> jax.export.Exported:
    try:
        return jax.export.deserialize(bytearray(content))
    except Exception as error:  # flatbuffers, MLIR and JAX raise errors of many types
        made, reason = manifest['versions'].get('jax'), ' '.join(str(error).split())[:200]
        versions = f'made by jax {made}, cannot be read by jax {jax.__version__}'
        raise BadInput(f'{quote(path)}, {versions}: {reason}') from error


def _check_input(spec: dict[str, Any], values: Any) -> Any:
    """Return an input as an array after checking its dtype, its number of axes and the range of ids."""
    name, shape = spec['name'], spec['shape']
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if str(array.dtype) != spec['dtype'] or array.ndim != len(shape):
        wanted = f'{spec["dtype"]}[{", ".join(map(str, shape))}]'
        raise BadInput(f'{name} must be {wanted}, got {array.dtype}{list(array.shape)}')
    if 'below' in spec and array.size and not isinstance(array, jax.core.Tracer):
        least, most = int(array.min()), int(array.max())
        if least < 0 or most >= spec['below']:
            raise BadInput(f'{name} must be in [0, {spec["below"]}), got {least if least < 0 else most}')
    return array


def _match_sizes(spec: dict[str, Any], shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Check a shape and record its named sizes in `sizes`, which all inputs share."""
    wanted = [sizes.get(size, size) for size in spec['shape']]
    longest = spec.get('longest', max(shape))
    for size, found in zip(wanted, shape):
        named = isinstance(size, str)
        if found != size and not (named and (size == 'batch' or 0 < found <= longest)):
            limit = f', length at most {longest}' if 'longest' in spec else ''
            raise BadInput(f'{spec["name"]} must be of shape [{", ".join(map(str, wanted))}]{limit}, got {list(shape)}')
        if named:
            sizes[size] = found


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write manifest.json: the content, the format, size and checksum of every file, and its own checksum."""
    files = {path.name: _describe_file(path.read_bytes()) for path in sorted(folder.iterdir())}
    manifest = {'format': FORMAT, **content, 'files': files}
    manifest['checksum'] = _checksum(manifest)
    (folder / MANIFEST).write_bytes(json.dumps(manifest, indent=2).encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json.

    Raises:
      BadInput: if it is missing, damaged, changed, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        problem = f'is not an export: it has no {MANIFEST}' if folder.is_dir() else 'is not a folder'
        raise BadInput(f'{quote(folder)} {problem if folder.exists() else "does not exist"}') from None
    except OSError as error:
        raise BadInput(f'{quote(path)} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise BadInput(f'{quote(path)} is not JSON: {error}') from error
    found = manifest.get('format') if isinstance(manifest, dict) else None
    if type(found) is not int:
        raise BadInput(f'{quote(path)} is not the manifest of an export: it has no format')
    if found != FORMAT:
        remedy = 'update pad_jax' if found > FORMAT else 'export the run again, into another folder'
        raise BadInput(f'{quote(path)} has format {found}, this version reads {FORMAT}: {remedy}')
    if manifest.get('checksum') != _checksum(manifest):
        raise BadInput(f'{quote(path)} has been changed: its checksum differs')
    wrong = [name for name, kind in _KEYS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise BadInput(f'{quote(path)} is damaged: it has no {", ".join(wrong)}')
    return manifest


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the files that a manifest lists.

    Raises:
      BadInput: names a file that is missing or has been changed.
    """
    found = {}
    for name, described in manifest['files'].items():
        path = folder / Path(name).name
        try:
            found[name] = read_plain(path)
        except FileNotFoundError:
            raise BadInput(f'{quote(path)} is missing: export the run again') from None
        except OSError as error:
            raise BadInput(f'{quote(path)} cannot be read: {error.strerror}') from error
        if _describe_file(found[name]) != described:
            raise BadInput(f'{quote(path)} has been changed: its checksum differs from that in {MANIFEST}')
    return found


def _describe_file(content: bytes) -> dict[str, Any]:
    return {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != 'checksum'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
