"""Verification of an export against its checkpoint, in a fresh process, on the data of the run."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

import pad_jax
from pad_jax.errors import BadInput
from pad_jax.training.setup import make_inputs, open_source
from pad_jax.training.tasks import Task

BATCHES = (1, 3, 32)
TOLERANCE = 1e-4  # largest difference of logits / largest logit that rounding explains

# The fresh process gets `pad_jax` as a bare package: its __init__ would import the models, which serving must not need.
_SERVE = """
import io, sys, types
import numpy as np

package = types.ModuleType('pad_jax')
package.__path__ = [sys.argv[1]]
sys.modules['pad_jax'] = package
from pad_jax.deploy.serving import load_exported
from pad_jax.errors import BadInput
try:
    network = load_exported(sys.argv[2])
except BadInput as error:
    sys.exit(str(error))
given, found = np.load(io.BytesIO(sys.stdin.buffer.read())), io.BytesIO()
batches = {}
for name in given:
    number, _, key = name.partition('/')
    batches.setdefault(number, {})[key] = given[name]
np.savez(found, **{number: network(**inputs) for number, inputs in batches.items()})
sys.stdout.buffer.write(found.getvalue())
"""


class NotVerified(RuntimeError):
    """The export does not compute the same as its checkpoint. The message gives the difference."""


def verify(folder: Path, trained, config, workdir: Path) -> tuple[dict[int, tuple[float, float]], str]:
    """Serve an export from a fresh process and compare its logits with those of the trained `Network`.

    Returns:
      {batch size: (largest difference of logits, largest logit)}, and the origin of the inputs in words.

    Raises:
      NotVerified: if they differ by more than rounding explains, or the export cannot be served.
    """
    batches, said = gather_batches(config, workdir, trained.task)
    try:
        # On the CPU float32 is exact, and another process may hold the memory of an accelerator.
        cpu = jax.local_devices(backend='cpu')[0]
    except RuntimeError as error:
        raise BadInput(f'JAX_PLATFORMS must include cpu, where an export is verified: {error}') from error
    with jax.default_device(cpu):
        # Logits of an example do not depend on the batch: the largest batch is enough, with one compilation.
        expected = np.asarray(jax.jit(trained.apply)(trained.weights, *batches[-1].values()))
    differences, wrong = {}, []
    for found in serve_in_fresh_process(folder, batches):
        size = len(found)
        difference, largest = (float(np.max(np.abs(x))) for x in (found - expected[:size], expected[:size]))
        differences[size] = difference, largest
        if not difference <= TOLERANCE * largest:
            wrong.append(f'{difference:.2g} of {largest:.3g} at batch {size}')
    if wrong:
        raise NotVerified(f'the logits of the export differ from those of the checkpoint by {", ".join(wrong)}: {said}')
    return differences, said


def gather_batches(
    config: ml_collections.ConfigDict, workdir: Path, task: Task
) -> tuple[list[Mapping[str, np.ndarray]], str]:
    """Gather inputs of BATCHES examples each, the first evaluation examples, and their origin in words.

    Without the data they are random, with a fixed seed.
    """
    try:
        batch, said = next(iter(open_source(config, workdir).eval_batches())), "the run's data"
        is_example = batch['weight'] > 0
        examples = {name: batch[name][is_example] for name in task.inputs}
    except BadInput as error:
        examples, said = draw_examples(config, max(BATCHES)), f'random numbers, as the data cannot be read ({error})'

    def repeat(size: int) -> Mapping[str, np.ndarray]:
        return {name: examples[name][np.arange(size) % len(examples[name])] for name in task.inputs}

    return [repeat(size) for size in BATCHES], said


def draw_examples(config: ml_collections.ConfigDict, count: int) -> dict[str, np.ndarray]:
    """Draw random inputs of a network; the same for equal arguments."""
    generator = np.random.default_rng(0)
    if 'vocab_size' not in config.model:
        (image,) = make_inputs(config)
        return {'image': generator.normal(size=(count, *image.shape[1:])).astype(np.float32)}
    length = min(config.data.max_length, 64)
    tokens = generator.integers(config.model.vocab_size, size=(count, length), dtype=np.int32)
    ends = generator.integers(3, length + 1, size=(count, 1))
    return {'tokens': tokens, 'segments': np.zeros_like(tokens), 'valid': np.arange(length) < ends}


def serve_in_fresh_process(folder: Path, batches: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    """Compute logits float32[B, outputs] of each batch by `load_exported`, in a process without model code.

    Raises:
      NotVerified: if the process fails; with the last line of its output.
    """
    given, package = io.BytesIO(), str(Path(pad_jax.__file__).parent)
    arrays = {f'{number}/{key}': values for number, batch in enumerate(batches) for key, values in batch.items()}
    np.savez(given, **arrays)
    command = [sys.executable, '-c', _SERVE, package, str(folder)]
    on_cpu = os.environ | {'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(command, input=given.getvalue(), capture_output=True, env=on_cpu)
    if done.returncode:
        said = done.stderr.decode(errors='replace').strip().splitlines() or [f'exit {done.returncode}']
        raise NotVerified(f'a fresh process cannot serve the export: {said[-1]}')
    found = np.load(io.BytesIO(done.stdout))
    return [found[str(number)] for number in range(len(batches))]
