"""Export of the newest checkpoint of a run as a folder that is served without its models.

The network is served in float32, because rounding in bfloat16 could not be told from an error. Constants are folded
into its parameters, and dead entries are removed. `length` is the symbol for the length T of texts.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import ml_collections
import numpy as np
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

import pad_jax
from pad_jax.deploy.folding import fold_norms, fold_scales
from pad_jax.deploy.predict import describe_inputs
from pad_jax.deploy.serving import MANIFEST, NETWORK, TOKENIZER, WEIGHTS, read_manifest, write_manifest
from pad_jax.deploy.verify import verify
from pad_jax.errors import BadInput, quote
from pad_jax.files import fill_folder, reach
from pad_jax.layers.compact import compact, expand_elements
from pad_jax.models.accounting import count_layers, report_counts
from pad_jax.partition import walk_records
from pad_jax.training.config import is_partial, is_text
from pad_jax.training.evaluate import RestoredRun, restore_run
from pad_jax.training.setup import abstract_variables, make_inputs, make_model, make_task, plan_layers
from pad_jax.training.tasks import Task
from pad_jax.training.workdir import find_tokenizer

PLATFORMS = ('cpu', 'cuda', 'tpu')
_FILES = ('pretrained',)  # keys of config.model that name files of the training machine


class Network(NamedTuple):
    """A trained network.

    Attributes:
      model: the module.
      variables: its collections, as NumPy arrays.
      records: of `find_records`.
      task: how a batch goes through it.
      temperature: of its attention, > 0; None for a network without it.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    records: Mapping[str, Any]
    task: Task
    temperature: float | None

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The variables by 'COLLECTION/PATH'."""
        return traverse_util.flatten_dict(self.variables, sep='/')

    def apply(self, weights: Mapping[str, jax.Array], *inputs: jax.Array) -> jax.Array:
        """Compute logits float32[B, outputs], or [B, T, V] of a language model."""
        variables = expand_elements(traverse_util.unflatten_dict(weights, sep='/'), self.records)
        batch = dict(zip(self.task.inputs, inputs, strict=True))
        return self.task.apply(self.model, variables, batch, self.temperature, train=False)[0]


class Export(NamedTuple):
    """An export that was written and verified.

    Attributes:
      folder: its path.
      counts: `report_counts` of the trained network.
      fully_dynamic: number of parameters of the network with κ = 1.
      sizes: bytes of each file.
      differences: batch size -> (largest difference of logits, largest logit).
      inputs: origin of the inputs of that comparison, in words.
    """

    folder: Path
    counts: dict[str, Any]
    fully_dynamic: int
    sizes: dict[str, int]
    differences: dict[int, tuple[float, float]]
    inputs: str

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return rows of a table: figure, this export, the fully dynamic network, ratio."""
        parameters, size = self.counts['parameters'], self.sizes[WEIGHTS]
        pairs = [('parameters', parameters, self.fully_dynamic), (f'{WEIGHTS}, bytes', size, 4 * self.fully_dynamic)]
        rows = [(name, f'{here:,}', f'{dynamic:,}', f'{here / dynamic:.4f}') for name, here, dynamic in pairs]
        rows.append((f'{WEIGHTS}, bytes / 4 for each parameter', f'{size / (4 * parameters):.4f}', '', ''))
        rows += [(f'{name}, bytes', f'{size:,}', '', '') for name, size in self.sizes.items() if name != WEIGHTS]
        for size, (difference, largest) in self.differences.items():
            rows.append((f'largest difference of logits, batch {size}', f'{difference:.2g} of {largest:.3g}', '', ''))
        return rows


def export_workdir(
    workdir: Path, out: Path, overwrite: bool = False, overrides: Sequence[str] = (), best: bool = False
) -> Export:
    """Write the newest checkpoint of a run to a folder, and verify it in a fresh process.

    Args:
      workdir: folder of the run.
      out: folder of the export; created with its parents.
      overwrite: replace an export that exists.
      overrides: 'section.key=value' for keys that may change on resume, as data.path for data that has moved.
      best: as in `restore_run`.

    Raises:
      BadInput: if `out` exists or cannot be written. Also if workdir holds no run, or no checkpoint after the last
        round of its partition.
      NotVerified: if the export computes something else. Nothing is left of it.
    """
    out = reach(out).resolve()
    _check_replaceable(out, overwrite)
    run = restore_run(workdir, overrides, best)
    config, done = run.config, int(run.state.round)
    if is_partial(config) and done < config.partition.rounds:
        rounds = f'{done} of {config.partition.rounds} rounds of the partition of {workdir} are done'
        raise BadInput(f'{rounds}: continue its training first')
    trained = read_network(run)
    network, shapes = shrink_network(trained, config), abstract_variables(trained.model, make_inputs(config))
    counts = report_counts(count_layers({**shapes, 'partition': trained.variables.get('partition', {})}))
    with fill_folder(out) as folder:
        (folder / WEIGHTS).write_bytes(safetensors.numpy.save(network.weights))
        (folder / NETWORK).write_bytes(lower(network, config).serialize())
        if 'tokenizer' in describe_inputs(config):
            shutil.copyfile(find_tokenizer(workdir), folder / TOKENIZER)
        write_manifest(folder, _describe(run, network, counts))
        differences, said = verify(folder, trained, config, workdir)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    dynamic = config.copy_and_resolve_references()
    dynamic.partition.dynamic_fraction = 1.0
    return Export(out, counts, report_counts(plan_layers(dynamic))['parameters'], sizes, differences, said)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise BadInput unless `out` is free, or an export or empty folder that may be replaced."""
    try:
        if not out.exists():
            return
        if not overwrite:
            raise BadInput(f'{quote(out)} is there already: --overwrite puts a new one in its place')
        found = {path.name for path in out.iterdir()}
    except OSError as error:
        raise BadInput(f'{quote(out)} cannot be read: {error.strerror}') from error
    if found and (found := found - {MANIFEST, *read_manifest(out)['files']}):
        raise BadInput(f'{quote(out)} holds {sorted(found)[0]}, which no export has: move it elsewhere')


def read_network(run: RestoredRun) -> Network:
    """Return the network as it was trained, in float32: averaged parameters if the run keeps an average."""
    variables = {name: jax.device_get(found) for name, found in run.state.averaged_variables.items() if found}
    model, task = make_model(_serving_config(run.config)), make_task(run.config)
    return Network(model, variables, run.state.records, task, run.temperature)


def shrink_network(network: Network, config: ml_collections.ConfigDict) -> Network:
    """Fold constants into the parameters of a network and remove dead entries; its outputs stay the same."""
    variables, served = dict(network.variables), _serving_config(config)
    variables['params'] = fold_norms(variables['params'], variables.pop('batch_stats', {}), network.records)
    if all(record.linear for _, record in walk_records(network.records)):
        variables['params'] = fold_scales(variables['params'], network.records)
        served.partition.scales = 'none'
    model = make_model(served) if is_text(config) else make_model(served).clone(norms_folded=True)
    if jax.tree.leaves(variables.get('partition', {})):
        variables = compact(variables, network.records)
    return network._replace(model=model, variables=jax.device_get(variables))


def _serving_config(config):
    served = config.copy_and_resolve_references()
    served.model.dtype, served.model.plan = 'float32', 'auto'
    return served


def lower(network: Network, config: ml_collections.ConfigDict) -> jax.export.Exported:
    """Lower a network to StableHLO with symbols for the batch and the length; its first argument are the weights."""
    constraints = [f'length <= {config.model.max_length}'] if is_text(config) else []
    symbols = dict(zip(('batch', 'length'), jax.export.symbolic_shape('batch, length', constraints=constraints)))
    inputs = [
        jax.ShapeDtypeStruct([symbols.get(size, size) for size in spec['shape']], spec['dtype'])
        for spec in _describe_inputs(network, config)
    ]
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in network.weights.items()}
    # Strip source locations: they would leak local paths into the export.
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update('jax_traceback_in_locations_limit', 0)
    try:
        return jax.export.export(jax.jit(network.apply), platforms=PLATFORMS)(weights, *inputs)
    finally:
        jax.config.update('jax_traceback_in_locations_limit', limit)


def _describe_inputs(network: Network, config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    axes = ('length',) if is_text(config) else ()
    limits = {'tokens': config.model.get('vocab_size'), 'segments': getattr(network.model, 'num_segments', None)}
    described = []
    for name, one in zip(network.task.inputs, make_inputs(config), strict=True):
        spec = {'name': name, 'dtype': str(one.dtype), 'shape': ['batch', *axes, *one.shape[1 + len(axes) :]]}
        if is_text(config):
            spec['longest'] = config.model.max_length
        if name in limits:
            spec['below'] = limits[name]
        described.append(spec)
    return described


def _describe(run: RestoredRun, network: Network, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the manifest except for the files."""
    config, spec = run.config, describe_inputs(run.config)
    task = f'{"text" if is_text(config) else "image"} {"regression" if network.task.regression else "classification"}'
    shape = ['length', config.model.vocab_size] if network.task.by_token else [config.model.num_classes]
    return {
        'task': f'{spec["objective"]} language model' if network.task.by_token else task,
        'inputs': _describe_inputs(network, config),
        'preprocessing': spec,
        'output': {'name': 'logits', 'dtype': 'float32', 'shape': ['batch', *shape]},
        'class_names': list(run.record.class_names),
        'model': {name: value for name, value in config.model.items() if name not in _FILES},
        'partition': {'granularity': config.partition.granularity if is_partial(config) else None, **counts},
        'step': int(run.state.step),
        'temperature': network.temperature or 1.0,
        'dtype': 'float32',
        'platforms': list(PLATFORMS),
        'versions': {'pad_jax': pad_jax.__version__, 'jax': jax.__version__},
    }
