"""python -m pad_jax export: the newest checkpoint of a run as a folder that is served without its models.

Legend: B batch, T length of texts.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import ml_collections
import safetensors.numpy

import pad_jax
from pad_jax.data import SOURCES
from pad_jax.deploy.manifest import MANIFEST, NETWORK, ONNX, TOKENIZER, WEIGHTS, read_manifest, write_manifest
from pad_jax.deploy.network import Network, read_network, shrink_network
from pad_jax.deploy.onnx import check_onnx, convert_to_onnx
from pad_jax.deploy.verification import Agreement, verify
from pad_jax.errors import BadInput, quote
from pad_jax.files import check_vacant, fill_folder
from pad_jax.partition import count_layers, report_counts
from pad_jax.training.config import is_partial, is_text
from pad_jax.training.evaluate import RestoredRun, restore_run
from pad_jax.training.setup import abstract_variables, make_inputs, plan_layers
from pad_jax.training.workdir import find_tokenizer

FORMS = ('stablehlo', 'onnx')
PLATFORMS = ('cpu', 'cuda', 'tpu')
FLOAT_BYTES = 4

# Keys of config.model that name files of the machine that it was trained on.
_FILES = ('pretrained',)


class Export(NamedTuple):
    """What was written.

    Attributes:
      folder: where.
      counts: of `report_counts`, of the network as it was trained.
      fully_dynamic: parameters of the network whose κ is 1.
      sizes: bytes of each file.
      agreement: of `verify`.
    """

    folder: Path
    counts: dict[str, Any]
    fully_dynamic: int
    sizes: dict[str, int]
    agreement: Agreement

    def rows(self) -> list[tuple[str, str, str, str]]:
        """For a table: what, here, in the fully dynamic network, ratio."""
        weights = WEIGHTS if WEIGHTS in self.sizes else ONNX
        pairs = [
            ('parameters', self.counts['parameters'], self.fully_dynamic),
            (f'{weights}, bytes', self.sizes[weights], FLOAT_BYTES * self.fully_dynamic),
        ]
        rows = [(what, f'{here:,}', f'{dynamic:,}', f'{here / dynamic:.4f}') for what, here, dynamic in pairs]
        excess = self.sizes[weights] / (FLOAT_BYTES * self.counts['parameters'])
        rows.append((f'{weights}, bytes / {FLOAT_BYTES} for each parameter', f'{excess:.4f}', '', ''))
        rows += [(f'{name}, bytes', f'{size:,}', '', '') for name, size in self.sizes.items() if name != weights]
        for size, (difference, largest) in self.agreement.differences.items():
            rows.append((f'largest difference of logits, batch {size}', f'{difference:.2g} of {largest:.3g}', '', ''))
        return rows


def export_workdir(
    workdir: Path, out: Path, overwrite: bool = False, overrides: Sequence[str] = (), form: str = 'stablehlo'
) -> Export:
    """Writes the newest checkpoint of a run to a folder, once a fresh process has served it from there.

    Args:
      out: the folder; made, with those above it.
      overwrite: whether an export that is there may be replaced.
      overrides: 'section.key=value' for keys that are free on resume, as data.path where the data has moved.
      form: one of FORMS.

    Raises:
      BadInput: when `out` is there, or can't be written; when workdir holds no run, no checkpoint that fits it, or one
        from before the last round of its partition; when this network can't have that form.
      NotVerified: when what was written computes something else. Nothing is left of it.
    """
    out = out.expanduser().resolve()
    _check_replaceable(out, overwrite)
    run = restore_run(workdir, overrides)
    if form == 'onnx':
        check_onnx(run.config)
    _check_partitioned(run, workdir)
    trained = read_network(run)
    network = shrink_network(trained, run.config)
    counts = count_parameters(trained, run.config)
    with fill_folder(out, overwrite) as folder:
        if form == 'onnx':
            (folder / ONNX).write_bytes(convert_to_onnx(network, run.config))
        else:
            (folder / WEIGHTS).write_bytes(safetensors.numpy.save(network.weights))
            (folder / NETWORK).write_bytes(lower(network, run.config).serialize())
        if is_text(run.config):
            shutil.copyfile(find_tokenizer(workdir), folder / TOKENIZER)
        write_manifest(folder, _describe(run, network, counts))
        agreement = verify(folder, trained, run.config, workdir, form)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Export(out, counts, _count_fully_dynamic(run.config), sizes, agreement)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """BadInput unless there is nothing, or an export or an empty folder that may be replaced."""
    check_vacant(out, overwrite)
    if not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f'{quote(out)} is not a folder: --overwrite replaces an export')
    try:
        there = {path.name for path in out.iterdir()}
    except OSError as error:
        raise BadInput(f'{quote(out)} cannot be read: {error.strerror}') from error
    if there:
        try:
            there -= {MANIFEST, *read_manifest(out)['files']}
        except BadInput as error:
            raise BadInput(f'--overwrite replaces an export alone: {error}') from error
    if there:
        raise BadInput(f'{quote(out)} holds {sorted(there)[0]}, which no export has: --overwrite would remove it')


def _check_partitioned(run: RestoredRun, workdir: Path) -> None:
    done, rounds = int(run.state.round), run.config.partition.rounds
    if is_partial(run.config) and done < rounds:
        raise BadInput(f'{done} of {rounds} rounds of the partition of {workdir} are done: train it to their end')


def count_parameters(trained: Network, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """`report_counts` of a network as it was trained: what theory says of its export."""
    shapes = abstract_variables(trained.model, make_inputs(config))
    return report_counts(count_layers({**shapes, 'partition': trained.variables.get('partition', {})}))


def _count_fully_dynamic(config: ml_collections.ConfigDict) -> int:
    dynamic = config.copy_and_resolve_references()
    dynamic.partition.dynamic_fraction = 1.0
    return report_counts(plan_layers(dynamic))['parameters']


def lower(network: Network, config: ml_collections.ConfigDict) -> jax.export.Exported:
    """As StableHLO, with symbols for the batch and the length of texts; the weights are its first argument."""
    constraints = [f'length <= {config.model.max_length}'] if is_text(config) else []
    symbols = dict(zip(('batch', 'length'), jax.export.symbolic_shape('batch, length', constraints=constraints)))
    inputs = [
        jax.ShapeDtypeStruct([symbols.get(size, size) for size in spec['shape']], spec['dtype'])
        for spec in _describe_inputs(network, config)
    ]
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in network.weights.items()}
    # Where in which file an operation was written, and who called it, is nobody's business who serves the network.
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update('jax_traceback_in_locations_limit', 0)
    try:
        return jax.export.export(jax.jit(network.apply), platforms=PLATFORMS)(weights, *inputs)
    finally:
        jax.config.update('jax_traceback_in_locations_limit', limit)


def _describe_inputs(network: Network, config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    axes = ('length',) if is_text(config) else ()
    described = []
    for name, one in zip(network.task.inputs, make_inputs(config), strict=True):
        shape = ['batch', *axes, *one.shape[1 + len(axes) :]]
        described.append({'name': name, 'dtype': str(one.dtype), 'shape': shape})
        if is_text(config):
            described[-1]['longest'] = config.model.max_length
    limits = {'tokens': config.model.get('vocab_size'), 'segments': getattr(network.model, 'num_segments', None)}
    return [{**one, 'below': limits[one['name']]} if one['name'] in limits else one for one in described]


def _describe(run: RestoredRun, network: Network, counts: dict[str, Any]) -> dict[str, Any]:
    """The content of the manifest but for the files."""
    config, text = run.config, is_text(run.config)
    if text:
        prepared = {'tokenizer': TOKENIZER, 'max_length': config.data.max_length, 'columns': config.data.text_columns}
    else:
        prepared = {**SOURCES[config.data.name].preprocessing._asdict(), 'size': config.data.image_size}
    kind = 'regression' if network.task.regression else 'classification'
    return {
        'task': f'{"text" if text else "image"} {kind}',
        'inputs': _describe_inputs(network, config),
        'preprocessing': prepared,
        'output': {'name': 'logits', 'dtype': 'float32', 'shape': ['batch', config.model.num_classes]},
        'class_names': list(run.record.class_names),
        'model': {name: value for name, value in config.model.items() if name not in _FILES},
        'partition': {'granularity': config.partition.granularity if is_partial(config) else None, **counts},
        'step': int(run.state.step),
        'temperature': network.temperature or 1.0,
        'dtype': 'float32',
        'platforms': list(PLATFORMS),
        'versions': {'pad_jax': pad_jax.__version__, 'jax': jax.__version__},
    }
