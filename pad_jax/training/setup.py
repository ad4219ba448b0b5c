"""From a checked config to the typed things that a run is made of. The ConfigDict goes no further."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

from pad_jax.data import CHANNELS, ImageSource, TextSource, make_source
from pad_jax.errors import BadInput
from pad_jax.models import LayerAccount, account_layers, build_encoder, build_model
from pad_jax.partition import (
    FLAX,
    Exclusions,
    LayerCount,
    Layout,
    count_layers,
    find_competitions,
    group_size,
    leaf_names,
    plan_dynamic_positions,
    positions_of,
    selection_targets,
)
from pad_jax.pretrained import find_weights, load_pretrained, load_torchvision
from pad_jax.training.configuration import is_partial, is_text
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule, make_temperature_schedule
from pad_jax.training.rules import MOST_STEPS
from pad_jax.training.state import Inputs, TrainState
from pad_jax.training.tasks import IMAGES, TEXTS, Task, image_inputs, text_inputs
from pad_jax.training.texts import open_texts

# Of the section `optim`: what the train step does itself.
_STEP_KEYS = ('accumulate_steps', 'ema_decay')


@dataclasses.dataclass(frozen=True)
class Lengths:
    """A run in optimizer steps.

    Attributes:
      total: of the whole run.
      temperature: over which the attention temperature falls to 1.
    """

    total: int
    temperature: int


def make_model(config: ml_collections.ConfigDict, axis_name: str | None = None) -> nn.Module:
    """The network of a config; partially dynamic where κ < 1.

    Args:
      axis_name: mapped axis that the network is trained over, for norms and routers, which take their statistics over
        all of it. A network that has one only runs inside of that axis; its parameters are those of one without.
    """
    arguments = config.model.to_dict()
    arguments['granularity'] = config.partition.granularity if is_partial(config) else None
    arguments['scales'], arguments['rest'] = config.partition.scales, 'zero' if config.partition.prune else 'static'
    try:
        del arguments['pretrained']
        if is_text(config):
            return build_encoder(dispatcher=arguments.pop('plan'), axis_name=axis_name, **arguments)
        synchronised = arguments.pop('sync_batch_norm')
        return build_model(**arguments, axis_name=axis_name if synchronised else None)
    except ValueError as error:
        raise BadInput(f'model: {error}') from error


def make_task(config: ml_collections.ConfigDict) -> Task:
    """What the network of a config is asked."""
    return dataclasses.replace(TEXTS, regression=config.model.num_classes == 1) if is_text(config) else IMAGES


def make_inputs(config: ml_collections.ConfigDict) -> Inputs:
    """Shapes of one example, as the network of a config takes it."""
    if is_text(config):
        return text_inputs()
    size = config.data.image_size
    return image_inputs((size, size, CHANNELS[config.data.name]))


def make_example(config: ml_collections.ConfigDict) -> Inputs:
    """Shapes of a whole example: an image, or a text of data.max_length tokens, where `make_inputs` has a short one."""
    return text_inputs(config.data.max_length) if is_text(config) else make_inputs(config)


def open_source(config: ml_collections.ConfigDict, workdir: Path | None = None) -> ImageSource | TextSource:
    """The data of a config, known to fit its model.

    Args:
      workdir: of a run, which keeps how its texts become tokens; None goes by the config alone.

    Raises:
      BadInput: on data that can't be read, or has another number of classes than the model, or more words.
    """
    if is_text(config):
        return open_texts(config, workdir)
    source = make_source(**config.data, seed=config.train.seed)
    if source.spec.num_classes != config.model.num_classes:
        raise BadInput(
            f'model.num_classes is {config.model.num_classes}, the data has {source.spec.num_classes} classes: '
            f'--config.model.num_classes={source.spec.num_classes}'
        )
    return source


def measure_lengths(config: ml_collections.ConfigDict, num_train: int) -> Lengths:
    """Epochs turned into steps; `train.steps` wins over `train.epochs`, and the last batch may be part of an epoch.

    Args:
      num_train: training examples in an epoch.

    Raises:
      BadInput: on epochs of more steps than can be counted.
    """
    epoch = num_train / config.data.batch_size
    total = config.train.steps or math.ceil(config.train.epochs * epoch)
    # A network of texts has no temperature.
    lengths = Lengths(total, round(config.train.get('temperature_epochs', 0.0) * epoch))
    for name, steps in (('epochs', lengths.total), ('temperature_epochs', lengths.temperature)):
        if steps > MOST_STEPS:
            raise BadInput(
                f'train.{name} = {config.train[name]:g} makes {steps:.3g} steps of {num_train} training examples, at '
                f'most {MOST_STEPS} can be counted'
            )
    return lengths


def make_temperature(config: ml_collections.ConfigDict, lengths: Lengths) -> optax.Schedule:
    """Attention temperature as a function of the step: constant 1 for texts."""
    return make_temperature_schedule(config.train.get('temperature', 1.0), lengths.temperature)


def make_rate(config: ml_collections.ConfigDict, lengths: Lengths) -> optax.Schedule:
    """Learning rate as a function of the number of updates."""
    optim = config.optim
    return make_rate_schedule(optim.learning_rate, optim.schedule, optim.warmup_steps, lengths.total)


def make_run_optimizer(config: ml_collections.ConfigDict, lengths: Lengths) -> optax.GradientTransformation:
    """The optimizer of a config, for a run of that length."""
    arguments = {name: value for name, value in config.optim.items() if name not in _STEP_KEYS}
    return make_optimizer(**arguments, total_steps=lengths.total)


def make_step_arguments(
    config: ml_collections.ConfigDict, lengths: Lengths, axis_name: str | None = None
) -> dict[str, Any]:
    """All arguments of the train step beside state and batch, but for the axis; texts are neither smoothed nor mixed.

    Args:
      axis_name: of `make_model`.
    """
    return {
        'task': make_task(config),
        'model': make_model(config, axis_name),
        'optimizer': make_run_optimizer(config, lengths),
        'temperature': make_temperature(config, lengths),
        **{name: config.optim[name] for name in _STEP_KEYS},
        **{name: config.train.get(name, 0.0) for name in ('label_smoothing', 'mixup')},
        'most_nonfinite': config.train.max_nonfinite if config.train.on_nonfinite == 'skip' else 1,
    }


def start_from_pretrained(
    config: ml_collections.ConfigDict, model: nn.Module, state: TrainState
) -> tuple[TrainState, list[str]]:
    """The state before the first step with the weights that the config names, and what to say of them.

    Raises:
      BadInput: naming every tensor that doesn't fit.
    """
    if not config.model.pretrained:
        return state, []
    if not is_text(config):
        return _start_from_torchvision(config, state)
    folder = find_weights(config.model.pretrained)
    loaded = load_pretrained(folder, state.params, num_heads=model.num_heads)
    said = [f'weights of {folder}']
    if loaded.fresh:
        said.append(f'not among them, and so drawn anew: {", ".join(loaded.fresh)}')
    return state.replace(params=jax.tree.map(jnp.asarray, loaded.params)), said


def _start_from_torchvision(config, state):
    static = config.copy_and_resolve_references()
    static.model.conv = 'static'
    shapes = abstract_variables(make_model(static), make_inputs(static))
    path = config.model.pretrained
    loaded = load_torchvision(path, config.model.name, shapes, state.params)
    state = state.replace(params=loaded.params, batch_stats=loaded.batch_stats)
    return state, [f'weights of {path}', *loaded.notes]


def make_exclusions(config: ml_collections.ConfigDict) -> Exclusions:
    """Which parameters take no part in the partition."""
    return Exclusions(config.partition.keep_dynamic, config.partition.keep_static)


def abstract_variables(model: nn.Module, inputs: Inputs) -> Mapping[str, Any]:
    """Every collection of a model as shapes, `intermediates` included; nothing is computed or allocated.

    Args:
      inputs: of `make_inputs`.
    """
    return jax.eval_shape(functools.partial(model.init, mutable=True), jax.random.key(0), *inputs)


def plan_layers(config: ml_collections.ConfigDict) -> list[LayerCount]:
    """Parameters of a config's network once it is partitioned, before anything is trained.

    Raises:
      BadInput: where the exclusions don't fit the network, or no group of positions fits the dynamic fraction.
    """
    model = make_model(config)
    variables = abstract_variables(model, make_inputs(config))
    planned = None
    if is_partial(config):
        partition, layout = config.partition, FLAX[config.partition.scales]
        positions = positions_of(layout, variables['params'], variables['partition'])
        try:
            planned = plan_dynamic_positions(
                positions, partition.dynamic_fraction, partition.scope, make_exclusions(config), layout.layer_of
            )
            _check_groups_fit(config, layout, positions, variables['partition'])
        except ValueError as error:
            raise BadInput(f'partition: {error}') from error
    return count_layers(variables, planned)


def account_network(config: ml_collections.ConfigDict, layers: Iterable[LayerCount]) -> list[LayerAccount]:
    """Parameters and multiply-adds of a config's network for one image, or one text of data.max_length tokens.

    Args:
      layers: how many positions of each layer are dynamic, as of `plan_layers`.
    """
    return account_layers(make_model(config), make_example(config), layers)


def _check_groups_fit(config, layout: Layout, positions, masks) -> None:
    """ValueError where the network would be wholly dynamic or static without a word, or a round could select nothing.

    That is if the exclusions leave no layer to compete, and take all to the same side; if no gate is small enough to
    stay dynamic; or if under scope `layer` any gate isn't, which would end the run once it has the best score of its
    layer.
    """
    partition = config.partition
    roles = make_exclusions(config).roles(masks)
    leaves = zip(leaf_names(masks), jax.tree.leaves(masks), jax.tree.leaves(positions), roles, strict=True)
    sizes = {name: group_size(mask, position) for name, mask, position, role in leaves if role is None}
    if not sizes:
        if len(set(roles)) == 1:
            side = 'dynamic' if roles[0] else 'static'
            static = 'model.ffn=dense' if is_text(config) else 'model.conv=static'
            instead = 'partition.dynamic_fraction=1' if roles[0] else static
            raise ValueError(
                f'no layer is left to compete: keep_{side} = {partition[f"keep_{side}"]!r} matches all of them; a '
                f'network that is wholly {side} is --config.{instead}'
            )
        return  # a partition by hand
    targets = selection_targets(positions, partition.dynamic_fraction, partition.scope, roles, layout.layer_of)
    if partition.scope == 'global':
        if min(sizes.values()) > targets:
            raise ValueError(
                f'dynamic_fraction {partition.dynamic_fraction} leaves nothing dynamic: granularity '
                f'{partition.granularity!r} decides for at least {min(sizes.values())} positions at once, {targets} '
                'are to stay'
            )
        return
    names = list(sizes)
    for layer, members in find_competitions(names, partition.scope, layout.layer_of).items():
        largest = max((names[member] for member in members), key=sizes.get)
        if sizes[largest] > targets[layer]:
            raise ValueError(
                f'granularity {partition.granularity!r} decides for {sizes[largest]} positions of {largest} at once, '
                f'and {targets[layer]} of its layer are to stay dynamic under scope {partition.scope!r}: leave such '
                'layers out by the patterns partition.keep_dynamic or partition.keep_static, or take '
                'partition.scope=global'
            )
