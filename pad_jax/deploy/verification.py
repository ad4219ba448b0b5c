"""Whether an export computes what its checkpoint does: in a fresh process, on the data of the run.

Legend: B batch, T length of texts, O outputs.
"""

import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

import pad_jax
from pad_jax.data import TextSource
from pad_jax.deploy.network import Network
from pad_jax.errors import BadInput
from pad_jax.training.setup import make_inputs, open_source
from pad_jax.training.tasks import Task

BATCHES = (1, 3, 32)
TOLERANCE = 1e-4
"""Largest difference of logits / largest logit: what rounding may amount to."""

Inputs = Mapping[str, np.ndarray]

# What a fresh process does to have `network`, by form. `pad_jax` is its folder alone there: its __init__ would import
# the models, which serving must not need.
_OPEN = {
    'stablehlo': """
package = types.ModuleType('pad_jax')
package.__path__ = [sys.argv[1]]
sys.modules['pad_jax'] = package
from pad_jax.deploy.loading import load_exported
from pad_jax.errors import BadInput
try:
    network = load_exported(sys.argv[2])
except BadInput as error:
    sys.exit(str(error))
""",
    'onnx': """
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[2] + '/network.onnx')
network = lambda **inputs: session.run(None, inputs)[0]
""",
}
_SERVE = """
import io, sys, types
import numpy as np
{open}
given, found = np.load(io.BytesIO(sys.stdin.buffer.read())), io.BytesIO()
batches = dict()
for name in given:
    number, _, key = name.partition('/')
    batches.setdefault(number, dict())[key] = given[name]
np.savez(found, **dict((number, network(**inputs)) for number, inputs in batches.items()))
sys.stdout.buffer.write(found.getvalue())
"""


class NotVerified(RuntimeError):
    """What was written does not compute what the checkpoint does; its message says by how much."""


class Agreement(NamedTuple):
    """How well both agree.

    Attributes:
      differences: by batch size, (largest difference of logits, largest logit).
      inputs: what they were compared on, in words.
    """

    differences: dict[int, tuple[float, float]]
    inputs: str


def verify(
    folder: Path, trained: Network, config: ml_collections.ConfigDict, workdir: Path, form: str = 'stablehlo'
) -> Agreement:
    """Serves an export from a fresh process and compares it with the network that it was made of.

    Raises:
      NotVerified: on a difference that no rounding explains, or when it can't be served.
    """
    batches, said = gather_batches(config, workdir, trained.task)
    with jax.default_device(_find_cpu()):
        # Logits of an example depend on that example alone: once is enough, and one program to compile.
        expected = np.asarray(jax.jit(trained.apply)(trained.weights, *batches[-1].values()))
    differences = {}
    for found in serve_in_fresh_process(folder, batches, form):
        differences[len(found)] = compare_logits(found, expected[: len(found)])
    wrong = [
        f'{difference:.2g} of {largest:.3g} at batch {size}'
        for size, (difference, largest) in differences.items()
        if not difference <= TOLERANCE * largest
    ]
    if wrong:
        raise NotVerified(f'the logits of the export differ from those of the checkpoint by {", ".join(wrong)}: {said}')
    return Agreement(differences, said)


def _find_cpu() -> jax.Device:
    """There float32 is float32, and another process may hold all memory of another device."""
    try:
        return jax.local_devices(backend='cpu')[0]
    except RuntimeError as error:
        raise BadInput(f'an export is verified on CPU, which JAX_PLATFORMS leaves out: {error}') from error


def gather_batches(config: ml_collections.ConfigDict, workdir: Path, task: Task) -> tuple[list[Inputs], str]:
    """Inputs of BATCHES examples each, the first ones to be evaluated on, and where they are from in words.

    Where the data is gone, random ones under a fixed seed. Texts of a batch are as long as the longest of them.
    """
    try:
        source = open_source(config, workdir)
        examples, said = _first_examples(source, task, max(BATCHES)), "the run's data"
    except BadInput as error:
        examples, said = draw_examples(config, max(BATCHES)), f'random numbers, as the data cannot be read ({error})'
    return [_cut(examples, size) for size in BATCHES], said


def _first_examples(source, task: Task, count: int) -> dict[str, np.ndarray]:
    found = {name: [] for name in task.inputs}
    for batch in source.eval_batches():
        there = batch['weight'] > 0
        for name, rows in found.items():
            rows.extend(batch[name][there])
        if len(rows) >= count:
            break
    if isinstance(source, TextSource):  # of batches of several lengths; what pads is not valid
        longest = max(map(len, rows))
        found = {name: [np.pad(row, (0, longest - len(row))) for row in rows] for name, rows in found.items()}
    # Few examples are repeated.
    return {name: np.stack(rows)[np.arange(count) % len(rows)] for name, rows in found.items()}


def draw_examples(config: ml_collections.ConfigDict, count: int) -> dict[str, np.ndarray]:
    """Inputs of a network that come from nowhere; the same for equal arguments."""
    generator = np.random.default_rng(0)
    if 'vocab_size' not in config.model:
        (image,) = make_inputs(config)
        return {'image': generator.normal(size=(count, *image.shape[1:])).astype(np.float32)}
    length = min(config.data.max_length, 64)
    tokens = generator.integers(config.model.vocab_size, size=(count, length), dtype=np.int32)
    ends = generator.integers(3, length + 1, size=(count, 1))
    return {'tokens': tokens, 'segments': np.zeros_like(tokens), 'valid': np.arange(length) < ends}


def _cut(examples: Inputs, size: int) -> dict[str, np.ndarray]:
    cut = {name: values[:size] for name, values in examples.items()}
    if 'valid' not in cut:
        return cut
    longest = int(np.flatnonzero(cut['valid'].any(axis=0))[-1]) + 1
    return {name: np.ascontiguousarray(values[:, :longest]) for name, values in cut.items()}


def serve_in_fresh_process(folder: Path, batches: Sequence[Inputs], form: str = 'stablehlo') -> list[np.ndarray]:
    """Logits float32[B, O] of each batch, by `load_exported` or onnxruntime in a process that has no model code.

    Raises:
      NotVerified: with the last line that it said, when it fails.
    """
    given, package = io.BytesIO(), str(Path(pad_jax.__file__).parent)
    np.savez(
        given, **{f'{number}/{key}': values for number, batch in enumerate(batches) for key, values in batch.items()}
    )
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', _SERVE.format(open=_OPEN[form]), package, str(folder)]
    done = subprocess.run(command, input=given.getvalue(), capture_output=True, env=environment)
    if done.returncode:
        said = done.stderr.decode(errors='replace').strip().splitlines() or [f'it ended with {done.returncode}']
        raise NotVerified(f'a fresh process cannot serve the export: {said[-1]}')
    found = np.load(io.BytesIO(done.stdout))
    return [found[str(number)] for number in range(len(batches))]


def compare_logits(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(largest difference, largest logit).

    >>> compare_logits(np.array([[1., -4.]]), np.array([[1.5, -4.]]))
    (0.5, 4.0)
    """
    return float(np.max(np.abs(found - expected))), float(np.max(np.abs(expected)))
