"""Networks as ONNX, by the converter jax2onnx where that can convert them; weights inside of the file.

jax2onnx is no dependency: it asks for versions of others that this package can't have.
"""

import functools
import importlib
import logging

import ml_collections

from pad_jax.deploy.network import Network
from pad_jax.errors import BadInput
from pad_jax.training.config import is_text
from pad_jax.training.setup import make_inputs

INSTALL = 'pip install onnx onnx-ir onnxruntime && pip install --no-deps jax2onnx'


def check_onnx(config: ml_collections.ConfigDict) -> None:
    """BadInput where nothing can be converted: of texts, or without the converter and what runs its result."""
    if is_text(config):
        raise BadInput('--format=onnx takes networks of images: --format=stablehlo takes texts too')
    for name in ('jax2onnx', 'onnxruntime'):
        try:
            _import_quietly(name)
        except ImportError as error:
            raise BadInput(f'--format=onnx needs {name} ({error}): {INSTALL}') from error


def convert_to_onnx(network: Network, config: ml_collections.ConfigDict) -> bytes:
    """The network with a symbolic batch, as the bytes of an ONNX file.

    Raises:
      BadInput: saying what the converter can't do.
    """
    (image,) = make_inputs(config)
    apply = functools.partial(network.apply, network.weights)
    try:
        with _Silence():
            model = _import_quietly('jax2onnx').to_onnx(
                lambda images: apply(images),
                [('batch', *image.shape[1:])],
                input_names=list(network.task.inputs),
                output_names=['logits'],
            )
        return model.SerializeToString()
    except Exception as error:  # whatever the converter trips over
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        raise BadInput(f'jax2onnx cannot convert this network ({reason}): --format=stablehlo takes it') from error


def _import_quietly(name: str):
    with _Silence():
        return importlib.import_module(name)


class _Silence:
    """While the `with` block runs nothing is logged: the converter complains of each of its examples."""

    def __enter__(self):
        self._before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *exception):
        logging.disable(self._before)
