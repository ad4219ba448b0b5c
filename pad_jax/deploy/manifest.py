"""manifest.json: what an export is, and that it is whole. Imports nothing that serving doesn't need."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pad_jax.errors import BadInput, quote
from pad_jax.files import read_json, read_plain

FORMAT = 1
"""Version of what an export holds. A reader refuses newer ones."""

MANIFEST, WEIGHTS, NETWORK, TOKENIZER = 'manifest.json', 'weights.safetensors', 'network.stablehlo', 'tokenizer.json'
ONNX = 'network.onnx'

# What a reader relies on, with its type.
_KEYS = {'task': str, 'inputs': list, 'output': dict, 'class_names': list, 'files': dict, 'versions': dict}


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest of a folder: the content, the format, every file's size and checksum, and its own."""
    files = {path.name: describe_file(path.read_bytes()) for path in sorted(folder.iterdir())}
    manifest = {'format': FORMAT, **content, 'files': files}
    manifest['checksum'] = _checksum(manifest)
    (folder / MANIFEST).write_bytes(json.dumps(manifest, indent=2).encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
      BadInput: when there is none, it is damaged, has been changed, or is of a newer format.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        problem = f'holds no {MANIFEST}: it is no export' if folder.is_dir() else 'is not a folder'
        raise BadInput(f'{quote(folder)} {problem if folder.exists() else "does not exist"}') from None
    except OSError as error:
        raise BadInput(f'{quote(path)} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise BadInput(f'{quote(path)} is no JSON: {error}') from error
    found = manifest.get('format') if isinstance(manifest, dict) else None
    if type(found) is not int:
        raise BadInput(f'{quote(path)} says no format: it is not the manifest of an export')
    if found > FORMAT:
        raise BadInput(f'{quote(path)} has format {found}, this version reads up to {FORMAT}: update pad_jax')
    if manifest.get('checksum') != _checksum(manifest):
        raise BadInput(f'{quote(path)} has been changed: its checksum differs')
    wrong = [name for name, kind in _KEYS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise BadInput(f'{quote(path)} is damaged: it has no {", ".join(wrong)}')
    return manifest


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that a manifest lists, each as it was written.

    Raises:
      BadInput: naming one that is missing or has been changed.
    """
    found = {}
    for name, described in manifest['files'].items():
        path = folder / Path(name).name
        try:
            found[name] = read_plain(path)
        except FileNotFoundError:
            raise BadInput(f'{quote(path)} is missing: the export is not whole') from None
        except OSError as error:
            raise BadInput(f'{quote(path)} cannot be read: {error.strerror}') from error
        if describe_file(found[name]) != described:
            raise BadInput(f'{quote(path)} has been changed: its checksum differs from that in {MANIFEST}')
    return found


def describe_file(content: bytes) -> dict[str, Any]:
    """Size in bytes and checksum.

    >>> describe_file(b'')['bytes'], describe_file(b'')['sha256'][:8]
    (0, 'e3b0c442')
    """
    return {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != 'checksum'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
