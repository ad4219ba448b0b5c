"""Configuration: files, overrides and the rules that every key has to keep. Nothing below the trainer sees it.

A config file is Python with `get_config() -> ml_collections.ConfigDict`. Every key has a row in `rules`; a config with
a key missing, unknown or out of range is refused as a whole, with all that is wrong with it.
"""

import ast
import difflib
import importlib.util
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from pad_jax.data import GLUE_TASKS, check_augmentation
from pad_jax.errors import BadInput
from pad_jax.files import read_own_object
from pad_jax.models import check_image_size
from pad_jax.partition import CRITERIA, round_fractions, round_steps
from pad_jax.pretrained import find_layout
from pad_jax.training.rules import FREE_ON_RESUME, IMAGE_RULES, Rule, choose_rules


def load_config(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads a config file, applies overrides and checks the result against the rules.

    Args:
      path: a Python file with get_config(); it can import the files beside it through its folder's name.
      overrides: 'section.key=value', each for a key that the file has.

    Raises:
      BadInput: naming every key that is wrong and what it allows.
    """
    config = _read_file(Path(path))
    refused = _apply(config, overrides)
    wrong = _find_wrong_values(flatten(config)).keys()
    if is_text(config) and wrong.isdisjoint({'model.num_classes', 'data.name', 'data.task', 'data.regression'}):
        config.model.num_classes = config.model.num_classes or _choose_num_classes(config.data)
    problems = [*refused.values(), *find_problems(config, refused)]
    if problems:
        raise BadInput('; '.join(dict.fromkeys(problems)))
    return config


def _choose_num_classes(data) -> int:
    """What data.name and data.task say of the number of classes before there is data; 1 is regression."""
    if data.name == 'glue':
        return GLUE_TASKS[data.task].num_classes
    return 1 if data.regression else 2


def _read_file(path: Path) -> ml_collections.ConfigDict:
    # Base files are imported as `from configs import ...`, from wherever the command was started.
    root = str(path.absolute().parent.parent)
    if path.is_file() and root not in sys.path:
        sys.path.append(root)
    return call_file(path, 'get_config')


def call_file(path: Path, function: str) -> ml_collections.ConfigDict:
    """What a function of a config file returns.

    Raises:
      BadInput: when there is no such file, it fails, or that is no ConfigDict.
    """
    if not path.is_file():
        raise BadInput(f'config file {path} does not exist')
    spec = importlib.util.spec_from_file_location(f'pad_jax_config_{path.stem}', path)
    if spec is None:
        raise BadInput(f'config file {path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = getattr(module, function)()
    except (Exception, SystemExit) as error:
        raise BadInput(f'config file {path} fails: {type(error).__name__}: {error}') from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise BadInput(f'{function}() of {path} must return a ConfigDict, got {type(config).__name__}')
    return config


def flatten(config) -> dict[str, Any]:
    """{'section.key': value} of a config or of the dict in a config.json."""
    nested = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= {f'{name}.{key}': below for key, below in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _apply(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> dict[str, str]:
    """Changes a config by overrides; what is wrong with one that is refused, by the name of its key."""
    refused = {}
    for override in overrides:
        name, _, text = override.partition('=')
        try:
            _override(config, name, text)
        except BadInput as problem:
            refused[name] = str(problem)
    return refused


def _override(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    if not name.strip():
        raise BadInput(f'an override must name a key, as in train.steps=100, got {f"{name}={text}"!r}')
    if name not in flatten(config):
        raise BadInput(_unknown(name, flatten(config)))
    rules = choose_rules(flatten(config))
    *section, key = name.split('.')
    holder = config[section[0]] if section else config
    # By the rules alone: a base file may say 8 where 8.5 is as good, which ConfigDict would hold against the override.
    with holder.unlocked(), holder.ignore_type():
        holder[key] = _parse(name, text, rules.get(name))


def _unknown(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'unknown config key {name}' + (f', did you mean {nearest[0]}?' if nearest else '')


def _parse(name: str, text: str, rule: Rule | None) -> Any:
    kind = rule.kind if rule else str
    if kind is str:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Python's of what may be misread, as 1if
            value = ast.literal_eval(text.strip().capitalize() if kind is bool else text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever it takes for no literal
        value = text
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not kind:
        raise BadInput(f'config key {name} must be {rule.allowed}, got {text!r}')
    return value


def find_problems(config: ml_collections.ConfigDict, refused: Collection[str] = ()) -> list[str]:
    """Everything that is wrong with a config by itself, one sentence each; [] if nothing.

    Args:
      refused: keys that should have had another value: nothing is said of what they have to do with others.
    """
    flat = flatten(config)
    return find_value_problems(flat) + _find_conflicts(flat, {*refused, *_find_wrong_values(flat)})


def find_value_problems(flat: dict[str, Any], suggest: bool = True) -> list[str]:
    """What is wrong with the keys and values of a flattened config, each for itself.

    Args:
      suggest: name the key that an unknown one resembles.
    """
    rules = choose_rules(flat)
    problems = [_unknown(name, rules if suggest else ()) for name in flat if name not in rules]
    return problems + list(_find_wrong_values(flat).values())


def _find_wrong_values(flat: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the value of a key, by its name; that it is missing is one thing."""
    rules = choose_rules(flat)
    wrong = {name: f'config key {name} is missing' for name in rules if name not in flat}
    for name, value in flat.items():
        if name not in rules:
            continue
        rule = rules[name]
        fits = type(value) is rule.kind or (rule.kind is float and type(value) is int)
        if not fits or not rule.holds(value):
            wrong[name] = f'config key {name} must be {rule.allowed}, got {value!r}'
    return wrong


_SECTIONS = frozenset(name.split('.')[0] for name in IMAGE_RULES if '.' in name)


class _WrongKey(Exception):
    """Asked for a value that is wrong by itself: what is made of it says nothing."""


class _Section:
    """The values of a config, or of one of its sections, of which those that are wrong cannot be had."""

    def __init__(self, flat: Mapping[str, Any], wrong: Collection[str], prefix: str = ''):
        self._flat, self._wrong, self._prefix = flat, wrong, prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._flat

    def __getattr__(self, name: str) -> Any:
        full = self._prefix + name
        if full in _SECTIONS:
            return _Section(self._flat, self._wrong, f'{full}.')
        if full in self._wrong:
            raise _WrongKey
        return self._flat[full]


def _find_conflicts(flat: dict[str, Any], wrong: Collection[str] = ()) -> list[str]:
    """What is wrong between keys that are each right.

    Args:
      wrong: keys that are not: nothing is said of their combinations.
    """
    config, problems = _Section(flat, wrong), []
    for find in (*_CONFLICTS, *(_TEXT_CONFLICTS if is_text(config) else _IMAGE_CONFLICTS)):
        try:
            problems += find(config) or ()
        except _WrongKey:
            continue
        except ValueError as error:  # of a function that checks its own arguments
            problems.append(str(error))
    return problems


def _find_no_length(config) -> list[str]:
    none = not config.train.steps and not config.train.epochs
    return ['train.steps or train.epochs must be above 0'] if none else []


def _find_long_warmup(config) -> list[str]:
    steps, warmup = config.train.steps, config.optim.warmup_steps
    return [f'optim.warmup_steps must be below train.steps = {steps}, got {warmup}'] if 0 < steps <= warmup else []


def _find_fractions(config) -> None:
    if is_partial(config):
        round_fractions(config.partition.dynamic_fraction, config.partition.rounds, config.partition.schedule)


def _find_single_gates(config) -> list[str]:
    if not is_partial(config) or not config.partition.granularity == config.partition.scope == 'layer':
        return []
    return ["partition.scope 'layer' can't choose within one gate: granularity 'layer' needs 'global'"]


def _find_late_rounds(config) -> list[str]:
    return find_late_round(config, config.train.steps) if is_partial(config) and config.train.steps else []


def find_late_round(config, num_steps: int) -> list[str]:
    """What is wrong with the rounds of a partition in a run of so many steps; [] if training goes on after the last."""
    partition = config.partition
    last = round_steps(partition.start_step, partition.every_steps, partition.rounds)[-1]
    if last < num_steps:
        return []
    length = 'train.steps' if config.train.steps else 'train.epochs'
    return [
        f'the last round of the partition comes after {last} steps, the run has {num_steps}: lower '
        f'partition.start_step, every_steps or rounds, or raise {length}'
    ]


def _find_no_rest(config) -> list[str]:
    """What is asked of static parameters where there are none."""
    partition = config.partition
    if not is_partial(config) or not partition.prune:
        return []
    asked = {'handoff': partition.handoff == 'mean', 'scales': partition.scales == 'static'}
    return [
        f'partition.{key} {getattr(partition, key)!r} is about static parameters, partition.prune leaves none'
        for key, is_asked in asked.items()
        if is_asked
    ]


def _find_copies(config) -> list[str]:
    """What is wrong with a partition of pretrained weights, whose copies only training moves apart.

    Where layers are excluded there may be none that competes, which the network itself has to tell.
    """
    if not is_partial(config):
        return []
    partition = config.partition
    if partition.prune:
        return []  # a mask that prunes has an effect on copies too
    excluded = partition.keep_dynamic or partition.keep_static
    if not config.model.pretrained or partition.start_step or excluded or not CRITERIA[partition.criterion].reads_data:
        return []
    return [
        f'partition.start_step must be above 0 for model.pretrained with criterion {partition.criterion!r}: dynamic '
        'factors begin as copies of the weights, whose scores say nothing before some steps of training, with handoff '
        "'mean'; or take criterion 'magnitude' or 'random'"
    ]


def _find_network_without_weights(config) -> None:
    if config.model.pretrained:
        find_layout(config.model.name)


def _find_small_images(config) -> None:
    check_image_size(config.model.stem, config.data.image_size)


def _find_augmentation(config) -> None:
    data = config.data
    check_augmentation(data.name, data.augment, data.crop_padding, data.color_jitter, data.randaugment_layers)


def _find_many_selected(config) -> list[str]:
    most, found = config.model.num_experts, config.model.num_selected
    return [f'model.num_selected must be at most model.num_experts = {most}, got {found}'] if found > most else []


def _find_long_texts(config) -> list[str]:
    most, found = config.model.max_length, config.data.max_length
    return [f'data.max_length must be at most model.max_length = {most}, got {found}'] if found > most else []


def _find_other_classes(config) -> list[str]:
    if config.data.name != 'glue' or config.model.num_classes == GLUE_TASKS[config.data.task].num_classes:
        return []
    name, task = config.data.task, GLUE_TASKS[config.data.task]
    what = f'{name} is regression' if task.regression else f'{name} has {task.num_classes} classes'
    return [f'model.num_classes is {config.model.num_classes}, {what}: --config.model.num_classes={task.num_classes}']


def _find_no_columns(config) -> list[str]:
    if config.data.name != 'text':
        return []
    problems = [] if config.data.text_columns else ['data.text_columns must name one column or two']
    return problems if config.data.label_column else [*problems, 'data.label_column must name a column']


# Each reads the keys that it is about, so that of others it does not matter whether they are right.
_CONFLICTS = (
    _find_no_length,
    _find_long_warmup,
    _find_fractions,
    _find_single_gates,
    _find_late_rounds,
    _find_no_rest,
    _find_copies,
)
_IMAGE_CONFLICTS = (_find_network_without_weights, _find_small_images, _find_augmentation)
_TEXT_CONFLICTS = (_find_many_selected, _find_long_texts, _find_other_classes, _find_no_columns)


def is_text(config) -> bool:
    """Whether it is a config of texts."""
    return 'ffn' in config.model


def is_partial(config) -> bool:
    """Whether the network is partially dynamic: it has dynamic layers, and κ < 1."""
    dynamic = config.model.ffn != 'dense' if is_text(config) else config.model.conv != 'static'
    return dynamic and config.partition.dynamic_fraction < 1


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """'key: old -> new' for every key that two flattened configs don't share, but for those free on resume."""
    return [
        f'{name}: {old.get(name, "missing")!r} -> {new.get(name, "missing")!r}'
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in FREE_ON_RESUME
    ]


def read_workdir_config(workdir: Path, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The config that a workdir was made with, checked.

    Args:
      overrides: 'section.key=value', for keys of `FREE_ON_RESUME`.

    Raises:
      BadInput: if there is none or it can't be used by this version, or an override is not allowed.
    """
    path = workdir / 'config.json'
    content = read_own_object(path, 'the workdir of a run')
    flat = flatten(content)
    # On plain dicts: a ConfigDict takes no key with a dot in it.
    dotted = [name for name in content if '.' in name]
    # A key that resembles an old one may mean something else: nothing here is to be renamed.
    problems = find_value_problems(flat, suggest=False) + [_unknown(name, ()) for name in dotted]
    if dotted or flat.keys() != choose_rules(flat).keys():
        problems.append(
            'its keys are not those of this version of pad_jax: go on with the version that made it, or train anew in '
            'another workdir'
        )
    config = None if problems else ml_collections.ConfigDict(content)
    problems = problems or _find_conflicts(flat)
    if problems:
        raise BadInput(f'{path}: {"; ".join(dict.fromkeys(problems))}')
    names, rules = [override.partition('=')[0] for override in overrides], choose_rules(flat)
    fixed = [name for name in names if name in rules and name not in FREE_ON_RESUME]
    if fixed:
        free = ', '.join(sorted(FREE_ON_RESUME & rules.keys()))
        raise BadInput(f'{", ".join(fixed)} cannot be changed for the run in {workdir}, only {free}')
    refused = _apply(config, overrides)
    problems = [*refused.values(), *find_problems(config, refused)]
    problems = problems or [
        f'{differing} cannot be changed for the run in {workdir}' for differing in differing_keys(flat, flatten(config))
    ]
    if problems:
        raise BadInput('; '.join(dict.fromkeys(problems)))
    return config
