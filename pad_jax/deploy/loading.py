"""Serving an export: numbers in, logits out. No model, layer or training code is needed, nor Flax.

Legend: B batch, T length of texts, O outputs.
"""

from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors
import safetensors.numpy

from pad_jax.deploy.manifest import NETWORK, ONNX, WEIGHTS, read_files, read_manifest
from pad_jax.errors import BadInput, quote


class ExportedNetwork:
    """A network as it was exported; called with its inputs, in the order of the manifest or by name.

    Of images: `image` float32[B, H, W, channels], normalised as the manifest says. Of texts: `tokens` int32[B, T],
    `segments` int32[B, T] and `valid` bool[B, T], False on padding. The result is a jax.Array float32[B, O] on the
    default device. The batch may have any size, zero included; each new size compiles once.

    Attributes:
      manifest: what manifest.json says.
    """

    def __init__(self, manifest: dict[str, Any], weights: dict[str, np.ndarray], network: jax.export.Exported):
        self.manifest = manifest
        self._weights = jax.device_put(weights)
        self._call = jax.jit(network.call)

    @property
    def class_names(self) -> tuple[str, ...]:
        """By output; () where the network predicts a number."""
        return tuple(self.manifest['class_names'])

    def __call__(self, *inputs, **named) -> jax.Array:
        """Logits, float32[B, O].

        Raises:
          BadInput: a ValueError, where the inputs are not what the manifest says.
        """
        specs = self.manifest['inputs']
        names = [spec['name'] for spec in specs]
        given = dict(zip(names, inputs)) | named
        if len(inputs) > len(names) or len(given) < len(inputs) + len(named) or sorted(given) != sorted(names):
            got = [f'{len(inputs)} without a name', *named]
            raise BadInput(f'the network takes {", ".join(names)}, each once; got {", ".join(got)}')
        sizes, arrays = {}, [_check(spec, given[spec['name']]) for spec in specs]
        for spec, array in zip(specs, arrays):
            _match(spec, array.shape, sizes)
        if sizes['batch'] == 0:  # its symbol stands for one or more
            return jax.numpy.zeros((0, *self.manifest['output']['shape'][1:]), self.manifest['output']['dtype'])
        return self._call(self._weights, *arrays)


def load_exported(path: str | Path) -> ExportedNetwork:
    """Opens what `python -m pad_jax export` wrote.

    Args:
      path: the folder.

    Raises:
      BadInput: a ValueError: it is no export; a file is missing or has been changed; its format is newer; the weights
        are not those of the network; this version of JAX can't read the network.
    """
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    if ONNX in manifest['files']:
        raise BadInput(f'{quote(folder)} is an export to ONNX: onnxruntime serves its {ONNX}')
    files = read_files(folder, manifest)
    missing = [name for name in (WEIGHTS, NETWORK) if name not in files]
    if missing:
        raise BadInput(f'{quote(folder)} has no {", ".join(missing)}: it cannot be served')
    network = _open_network(folder / NETWORK, files[NETWORK], manifest)
    return ExportedNetwork(manifest, _open_weights(folder / WEIGHTS, files[WEIGHTS], network), network)


def _open_network(path: Path, content: bytes, manifest: dict[str, Any]) -> jax.export.Exported:
    try:
        return jax.export.deserialize(bytearray(content))
    except Exception as error:  # of flatbuffers, MLIR or JAX: whatever this version can't make sense of
        made = manifest['versions'].get('jax')
        reason = ' '.join(str(error).split())[:200]
        raise BadInput(
            f'{quote(path)}, made by jax {made}, cannot be read by jax {jax.__version__}: {reason}'
        ) from error


def _open_weights(path: Path, content: bytes, network: jax.export.Exported) -> dict[str, np.ndarray]:
    try:
        weights = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise BadInput(f'{quote(path)} is no safetensors file: {error}') from error
    (wanted, *_), _ = jax.tree.unflatten(network.in_tree, network.in_avals)
    found = {name: f'{array.dtype}{list(array.shape)}' for name, array in weights.items()}
    wanted = {name: f'{array.dtype}{list(array.shape)}' for name, array in wanted.items()}
    differing = [
        f'{name} is {found.get(name, "missing")}, not {wanted.get(name, "expected")}'
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        more = f' (and {len(differing) - 3} more)' if len(differing) > 3 else ''
        raise BadInput(f'{quote(path)} does not fit the network: {"; ".join(differing[:3])}{more}')
    return weights


def _check(spec: dict[str, Any], values: Any) -> Any:
    """An input as an array of the dtype, the number of axes and, for ids, the range that it has to have."""
    name, shape = spec['name'], spec['shape']
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    wanted = f'{spec["dtype"]}[{", ".join(map(str, shape))}]'
    if str(array.dtype) != spec['dtype'] or array.ndim != len(shape):
        raise BadInput(f'{name} must be {wanted}, got {array.dtype}{list(array.shape)}')
    if 'below' in spec and array.size and not isinstance(array, jax.core.Tracer):
        least, most = int(array.min()), int(array.max())
        if least < 0 or most >= spec['below']:
            raise BadInput(f'{name} must be in [0, {spec["below"]}), got {least if least < 0 else most}')
    return array


def _match(spec: dict[str, Any], shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Whether an input has the sizes of its spec; a name stands for one size in all inputs, which `sizes` keeps."""
    wanted = [sizes.get(size, size) for size in spec['shape']]
    longest = spec.get('longest', max(shape))
    for size, found in zip(wanted, shape):
        named = isinstance(size, str)
        if found != size and not (named and (size == 'batch' or 0 < found <= longest)):
            limit = f', length at most {longest}' if 'longest' in spec else ''
            raise BadInput(f'{spec["name"]} must be of shape [{", ".join(map(str, wanted))}]{limit}, got {list(shape)}')
        if named:
            sizes[size] = found
