"""The state before the first step: drawn parameters, or pretrained ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from pad_jax.errors import BadInput
from pad_jax.pretrained import find_weights, load_pretrained, load_torchvision, upcycle
from pad_jax.training.config import flatten, is_text
from pad_jax.training.evaluate import restore_run
from pad_jax.training.rounds import walk_factors
from pad_jax.training.setup import abstract_variables, make_inputs, make_model
from pad_jax.training.state import TrainState

# Parts of an encoder that a run of masked tokens trains for other tasks.
_SHARED = ('embeddings', 'layer_')
# Keys that describe them; a dense encoder may become a mixture.
_SIZES = ('model.name', 'model.vocab_size', 'model.max_length')
_MIXTURE_SIZES = ('model.ffn', 'model.num_experts')


def start_from_pretrained(
    config, model: nn.Module, state: TrainState, class_names: Sequence[str] | None = None
) -> tuple[TrainState, list[str]]:
    """Put the weights that the config names into the state before the first step.

    Args:
      class_names: of the data; None if they are unknown.

    Returns:
      The state, and lines that describe the weights.

    Raises:
      BadInput: naming every tensor or key that does not fit.
    """
    path = config.model.get('pretrained')
    if not path:
        return state, []
    if is_text(config):
        folder, lacking = find_weights(path), ()
        if (folder / 'checkpoints').is_dir():
            params = load_encoder(folder, config, state)
        else:
            names = {'num_heads': model.num_heads, 'class_names': class_names}
            params, lacking = load_pretrained(folder, state.params, state.records, **names)
        notes = [f'weights of {folder}']
        if lacking:
            drawn = 'drawn at random, because the weights lack them or have other classes'
            notes.append(f'{drawn}: {", ".join(lacking)}')
        return state.replace(params=jax.tree.map(jnp.asarray, params)), notes
    static = config.copy_and_resolve_references()
    static.model.conv = 'static'
    shapes = abstract_variables(make_model(static), make_inputs(static))
    loaded = load_torchvision(path, config.model.name, shapes, state.params, state.records)
    state = state.replace(params=loaded.params, batch_stats=loaded.batch_stats)
    return state, [f'weights of {path}', *loaded.notes]


def load_encoder(workdir: Path, config, state: TrainState) -> Mapping[str, Any]:
    """Take the encoder of a run with train.objective=masked; pooler and classifier keep their initial values.

    Experts of a partially dynamic run are those that it computed, with the static part merged in. So the new network
    has its own partition. A dense encoder is upcycled if the network has mixtures of experts.

    Args:
      workdir: folder of the run.
      config: of the new network.
      state: of the new network, before the first step.

    Returns:
      The params of the new network.

    Raises:
      BadInput: if workdir holds no such run, or its encoder has another shape.
    """
    run = restore_run(workdir)
    old, new = flatten(run.config.to_dict()), flatten(config.to_dict())
    if old.get('train.objective') != 'masked':
        raise BadInput(f'model.pretrained names the run {workdir}, which has no train.objective=masked')
    is_dense = old['model.ffn'] == 'dense'
    keys = _SIZES if is_dense else _SIZES + _MIXTURE_SIZES
    differing = [f'{key} is {new[key]}, the run in {workdir} has {old[key]}' for key in keys if old[key] != new[key]]
    if differing:
        raise BadInput('; '.join(differing))
    trained = run.state.replace(**run.state.average)
    found = flatten_dict(trained.params, sep='/') | {path: factors for path, _, factors in walk_factors(trained)}
    drawn = flatten_dict(state.params, sep='/')
    if is_dense:
        found = {path: values for path, values in found.items() if path.startswith(_SHARED)}
        found |= {path: values for path, values in drawn.items() if not path.startswith(_SHARED)}
        return upcycle(unflatten_dict(found, sep='/'), state.params, state.records)
    scales = {path.rpartition('/')[0] + f'/{record.scale}' for path, record, _ in walk_factors(state)}
    taken = {path: found[path] for path in drawn if path.startswith(_SHARED) and path in found and path not in scales}
    return unflatten_dict(drawn | taken, sep='/')
