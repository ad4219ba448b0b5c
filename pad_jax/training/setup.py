"""Turn a checked config into the typed parts of a run. The ConfigDict ends here."""

import contextlib
import dataclasses
import functools
import math
import signal
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from pad_jax.data import (
    SOURCES,
    TEXT_SOURCES,
    Source,
    WordPieces,
    list_names,
    make_source,
    open_corpus,
    open_vocabulary,
    split_names,
)
from pad_jax.errors import BadInput
from pad_jax.layers.factors import read_records
from pad_jax.models import account_layers, build_decoder, build_encoder, build_model
from pad_jax.models.accounting import LayerCount, count_layers, plan_dynamic_positions
from pad_jax.partition import Layout, Recipe, find_competitions, group_size, num_dynamic_positions, positions_of
from pad_jax.pretrained import find_vocabulary, find_weights
from pad_jax.training.config import MAX_STEPS, find_length_problems, is_language, is_partial, is_text, name_key
from pad_jax.training.optimizer import find_scales, make_optimizer, make_rate_schedule, make_temperature_schedule
from pad_jax.training.state import Inputs
from pad_jax.training.tasks import CAUSAL, IMAGES, MASKED, TEXTS, Task, image_inputs, text_inputs
from pad_jax.training.workdir import find_tokenizer

# Keys of `data` that only one source of texts has.
_TEXT_KEYS = {'glue': ('task',), 'text': ('text_columns', 'label_column', 'regression', 'holdout')}


class Lengths(NamedTuple):
    """Optimizer steps of the whole run, and until the attention temperature is 1."""

    total: int
    temperature: int


def make_model(config: ConfigDict, axis_name: str | None = None) -> nn.Module:
    """Make the network of a config, partially dynamic if κ < 1.

    Args:
      axis_name: mapped axis of the training devices; norms and routers average their statistics over it. Such a
        network runs only inside that axis, with the same parameters.
    """
    partition, arguments = config.partition, config.model.to_dict()
    arguments.pop('pretrained', None)
    if not arguments.get('num_classes', 1):
        raise BadInput('model.num_classes must be above 0 where no data is read, got 0')
    build = build_encoder if is_text(config) else build_model
    if is_language(config):
        masked = functools.partial(build_encoder, head='words', num_classes=1)
        build = build_decoder if make_task(config) == CAUSAL else masked
    if not arguments.pop('sync_batch_norm', True):
        axis_name = None
    granularity = partition.granularity if is_partial(config) else None
    try:
        return build(
            **arguments, granularity=granularity, scales=partition.scales, prune=partition.prune, axis_name=axis_name
        )
    except ValueError as error:
        raise BadInput(name_key('model', error)) from error


def make_task(config: ConfigDict) -> Task:
    """Make the task of a config: how its batches go through the network, and its losses."""
    if is_language(config):
        return {'causal': CAUSAL, 'masked': MASKED}[config.train.objective]
    return dataclasses.replace(TEXTS, regression=config.model.num_classes == 1) if is_text(config) else IMAGES


def make_inputs(config: ConfigDict, length: int | None = 8) -> Inputs:
    """Shapes of one example for initialising the network: an image, or a text of `length` tokens."""
    if is_text(config):
        return text_inputs(make_task(config), length)
    size = config.data.image_size
    return image_inputs((size, size, SOURCES[config.data.name].channels))


def open_source(config: ConfigDict, workdir: Path | None = None) -> Source:
    """Open the data of a config and check that it fits the model. A model.num_classes of 0 becomes that of the data.

    Args:
      workdir: directory of a run, which keeps its tokenizer. None: use the vocabulary that the config names.

    Raises:
      BadInput: the data cannot be read, or its number of classes or words does not fit the model.
    """
    data, seed = config.data, config.train.seed
    try:
        if is_language(config):
            return _open_corpus(config, workdir)
        if is_text(config):
            arguments = {
                name: data[name]
                for name in ('path', 'batch_size', 'on_bad', *_TEXT_KEYS.get(data.name, _TEXT_KEYS['text']))
            }
            if 'text_columns' in arguments:
                arguments['text_columns'] = split_names(data.text_columns)
            source = TEXT_SOURCES[data.name](**arguments, pieces=open_pieces(config, workdir), seed=seed)
        else:
            source = make_source(**data, seed=seed)
    except BadInput as error:
        raise BadInput(name_key('data', error)) from error
    found, num_classes = source.spec.num_classes, config.model.num_classes
    if not num_classes:
        config.model.num_classes = found
    elif found != num_classes:
        classes = 'numbers for labels' if found == 1 else f'{found} classes ({list_names(source.spec.class_names)})'
        raise BadInput(
            f'model.num_classes is {num_classes}, the data has {classes}: --config.model.num_classes={found}'
        )
    return source


def _open_corpus(config, workdir: Path | None) -> Source:
    data = config.data
    return open_corpus(
        **{name: data[name] for name in ('name', 'path', 'batch_size', 'text_column', 'holdout', 'on_bad')},
        window=data.max_length,
        vocab_size=config.model.vocab_size,
        objective=config.train.objective,
        tokenizer=find_tokens(config, workdir),
        seed=config.train.seed,
    )


def open_pieces(config: ConfigDict, workdir: Path | None = None) -> WordPieces:
    """Open the tokenizer: that of the run in workdir, else data.vocabulary, else that of the pretrained weights.

    Raise BadInput if it is missing, cannot be read, or has more pieces than the model embeds.
    """
    path, weights = (workdir and find_tokenizer(workdir)) or config.data.vocabulary, config.model.pretrained
    if not path and not weights:
        raise BadInput('data.vocabulary must name a vocab.txt or tokenizer.json: model.pretrained names no weights')
    pieces = open_vocabulary(str(path or find_vocabulary(find_weights(weights))), config.data.max_length)
    if pieces.vocab_size > config.model.vocab_size:
        raise BadInput(f'the vocabulary has {pieces.vocab_size} pieces, model.vocab_size is {config.model.vocab_size}')
    return pieces


def find_tokens(config: ConfigDict, workdir: Path | None = None) -> str:
    """Find the tokenizer of a language model: that of the run in workdir, else data.vocabulary; '' for bytes."""
    name = config.data.vocabulary
    if not name:
        return ''
    folder = find_weights(name)
    return str((workdir and find_tokenizer(workdir)) or (find_vocabulary(folder) if folder.is_dir() else folder))


def measure_lengths(config: ConfigDict, num_train: int) -> Lengths:
    """Turn epochs of `num_train` examples into steps; the last batch may be part of an epoch.

    Raises:
      BadInput: naming every key that does not fit the run: steps, warm-up, partition or scoring batch.
    """
    train = config.train
    total = train.steps or math.ceil(train.epochs * num_train / config.data.batch_size)
    # A network of texts has no temperature.
    lengths = Lengths(total, temperature=round(train.get('temperature_share', 0.0) * total))
    problems, size = find_length_problems(config, lengths.total), config.partition.batch_size
    if total > MAX_STEPS:
        problems.append(f'train.epochs must make at most {MAX_STEPS} steps, got {total:.3g}')
    if is_partial(config) and size > num_train:
        problems.append(f'partition.batch_size must be at most the {num_train} training examples, got {size}')
    if problems:
        raise BadInput('; '.join(problems))
    return lengths


def make_temperature(config: ConfigDict, lengths: Lengths) -> optax.Schedule | None:
    """Make the attention temperature as a function of the step; None for texts, whose networks take none."""
    return None if is_text(config) else make_temperature_schedule(config.train.temperature, lengths.temperature)


def make_rate(config: ConfigDict, lengths: Lengths) -> optax.Schedule:
    """Make the learning rate as a function of the number of updates."""
    optim = config.optim
    return make_rate_schedule(optim.learning_rate, optim.schedule, optim.warmup_steps, lengths.total)


def make_run_optimizer(config: ConfigDict, lengths: Lengths) -> optax.GradientTransformation:
    """Make the optimizer of a config for a run of that length."""
    optim, rate = config.optim, make_rate(config, lengths)
    records = read_records(abstract_variables(make_model(config), make_inputs(config)).get('intermediates', {}))
    return make_optimizer(optim.name, rate, optim.weight_decay, optim.clip_norm, find_scales(records))


def make_step_arguments(config: ConfigDict, lengths: Lengths, axis_name: str | None = None) -> dict[str, Any]:
    """Make all static arguments of the train step except the axis; the network gets `axis_name`."""
    return {
        'task': make_task(config),
        'model': make_model(config, axis_name),
        'optimizer': make_run_optimizer(config, lengths),
        'temperature': make_temperature(config, lengths),
        **{name: config.optim[name] for name in ('accumulate_steps', 'ema_decay')},
        **{name: config.train.get(name, 0.0) for name in ('label_smoothing', 'mixup')},
        'most_nonfinite': config.train.max_nonfinite if config.train.on_nonfinite == 'skip' else 1,
    }


def make_recipe(config: ConfigDict) -> Recipe:
    """Make the settings that all rounds of the partition share."""
    return Recipe(**{field.name: config.partition[field.name] for field in dataclasses.fields(Recipe)})


@functools.lru_cache
def abstract_variables(model: nn.Module, inputs: Inputs) -> Mapping[str, Any]:
    """Shapes of every collection of a model; nothing is computed or allocated.

    `intermediates` also has the outputs of batch norms, as `__call__`.
    """
    is_norm = lambda module, method: isinstance(module, nn.BatchNorm)  # noqa: E731
    trace = functools.partial(model.init, mutable=True, capture_intermediates=is_norm)
    return jax.eval_shape(trace, jax.random.key(0), *inputs)


def check_norms(config: ConfigDict, num_devices: int) -> None:
    """Raise BadInput if a batch norm would see one value, in a step or in scoring: its output would be zero."""
    found = flatten_dict(abstract_variables(make_model(config), make_inputs(config)).get('intermediates', {}))
    positions = [math.prod(shapes[0].shape[1:-1]) for path, shapes in found.items() if path[-1] == '__call__']
    parts, scoring = config.optim.accumulate_steps, config.partition.batch_size
    apart = 1 if config.model.get('sync_batch_norm', True) else num_devices
    devices = '' if apart == 1 else f' / {apart} devices'
    cases = {f'data.batch_size / optim.accumulate_steps{devices}': config.data.batch_size // (parts * apart)}
    cases |= {'partition.batch_size': scoring} if is_partial(config) else {}
    for key, examples in cases.items():
        if positions and examples * min(positions) < 2:
            where = f'with data.image_size={config.data.image_size}'
            raise BadInput(
                f'{key} must be at least 2, got {examples}: {where} the smallest map of {config.model.name} has one '
                'position, so a batch norm would see one value and give zero'
            )


def plan_layers(config: ConfigDict) -> list[LayerCount]:
    """Count the parameters of a config's network after its partition, without training it.

    Raises:
      BadInput: the exclusions do not fit the network, or no group of positions fits the dynamic fraction.
    """
    variables, planned = abstract_variables(make_model(config), make_inputs(config)), None
    if is_partial(config):
        recipe, layout = make_recipe(config), Layout.of(read_records(variables.get('intermediates', {})))
        positions = positions_of(layout, variables['params'], variables['partition'])
        try:
            with _deadline():
                roles = recipe.find_roles(positions)
            planned = plan_dynamic_positions(positions, config.partition.dynamic_fraction, recipe, layout.layer_of)
            _check_groups_fit(config, roles, layout.layer_of, positions, variables['partition'])
        except ValueError as error:
            raise BadInput(f'partition: {error}') from error
    return count_layers(variables, planned)


@contextlib.contextmanager
def _deadline(seconds: int = 10):
    """Raise ValueError if the `with` block takes longer: some regular expressions never end."""

    def stop(number, frame):
        raise ValueError(f'no end of keep_dynamic or keep_static within {seconds} s: they must not repeat a repetition')

    if threading.current_thread() is not threading.main_thread():  # there signals belong to the caller
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def account_network(config: ConfigDict, layers: Iterable[LayerCount]) -> list[LayerCount]:
    """Add the multiply-adds of a config's network to the counts, for one image or one text of data.max_length tokens.

    Args:
      layers: dynamic positions of each layer, from `plan_layers`.
    """
    return account_layers(make_model(config), make_inputs(config, config.data.get('max_length')), layers)


def _check_groups_fit(config, roles, layer_of, positions, masks) -> None:
    """Raise ValueError if the partition would fail later, or leave the network wholly dynamic or static.

    At least the smallest gate must fit under scope 'global'. Under scope 'layer' the largest must, because any gate
    may have the best score of its layer.
    """
    partition, scope = config.partition, config.partition.scope
    if set(roles.values()) in ({True}, {False}):
        raise ValueError(
            'keep_dynamic or keep_static matches all layers, and no layer is left to compete. Such a network has '
            'partition.dynamic_fraction=1, or model.conv=static, model.ffn=dense'
        )
    leaves = zip(roles.items(), jax.tree.leaves(masks), jax.tree.leaves(positions), strict=True)
    groups = {name: (group_size(mask, leaf), leaf.size, name) for (name, role), mask, leaf in leaves if role is None}
    for layer, members in find_competitions(groups, scope, layer_of).items():
        competing = [groups[name] for name in members]
        target = num_dynamic_positions(sum(total for _, total, _ in competing), partition.dynamic_fraction)
        size, _, name = (min if scope == 'global' else max)(competing)
        name = name.removesuffix('_mask')
        if size > target:
            raise ValueError(
                f'granularity {partition.granularity!r} selects {size} positions of {name} at once, but '
                f'dynamic_fraction {partition.dynamic_fraction} keeps {target} of {layer} dynamic under scope '
                f"{scope!r}. Use a larger fraction, a finer granularity or scope 'global', or exclude such layers "
                'with partition.keep_dynamic or partition.keep_static'
            )
