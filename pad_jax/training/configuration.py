"""Configuration: files, overrides and the rules that every key has to keep. Nothing below the trainer sees it.

A config file is Python with `get_config() -> ml_collections.ConfigDict`. Every key has a row in `RULES`; a config with
a key missing, unknown or out of range is refused as a whole, with all that is wrong with it.
"""

import ast
import difflib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from pad_jax.data import ON_BAD, SOURCES
from pad_jax.errors import BadInput
from pad_jax.layers import CONVS, PLAN_NAMES
from pad_jax.models import DTYPES, MODELS, STEMS, check_image_size
from pad_jax.partition import CRITERIA, GRANULARITIES, HANDOFFS, SCALES, SCHEDULES, SCOPES, round_fractions, round_steps
from pad_jax.training.optimizer import OPTIMIZERS, RATE_SCHEDULES
from pad_jax.training.parallel import PARALLEL


class Rule(NamedTuple):
    """What a key may hold: its type, a test, and the allowed values in words."""

    kind: type
    holds: Callable[[Any], bool]
    allowed: str


def _one_of(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule(str, lambda value: value in names, f'one of {", ".join(names)}')


def _integer(least: int) -> Rule:
    return Rule(int, lambda value: value >= least, f'an integer of at least {least}')


def _number(least: float) -> Rule:
    return Rule(float, lambda value: least <= value < math.inf, f'a number of at least {least:g}')


def _pattern_holds(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True


_FLAG = Rule(bool, lambda value: True, 'True or False')
_TEXT = Rule(str, lambda value: True, 'text')
_PATTERN = Rule(str, _pattern_holds, 'a regular expression')
_POSITIVE = Rule(float, lambda value: 0 < value < math.inf, 'a number above 0')
_FRACTION = Rule(float, lambda value: 0 < value <= 1, 'in (0, 1]')

RULES = {
    'model.name': _one_of(MODELS),
    'model.num_classes': _integer(2),
    'model.conv': _one_of(CONVS),
    'model.num_kernels': _integer(1),
    'model.reduction': _integer(1),
    'model.width': _integer(1),
    'model.stem': _one_of(STEMS),
    'model.sync_batch_norm': _FLAG,
    'model.plan': _one_of(PLAN_NAMES),
    # Parameters are float32, and without a switch of its own jax turns float64 into that.
    'model.dtype': _one_of(name for name in DTYPES if name != 'float64'),
    'partition.dynamic_fraction': _FRACTION,
    'partition.criterion': _one_of(CRITERIA),
    'partition.scope': _one_of(SCOPES),
    'partition.granularity': _one_of(GRANULARITIES),
    'partition.rounds': _integer(1),
    'partition.schedule': _one_of(SCHEDULES),
    'partition.start_step': _integer(0),
    'partition.every_steps': _integer(0),
    'partition.batches': _integer(1),
    'partition.batch_size': _integer(1),
    'partition.handoff': _one_of(HANDOFFS),
    'partition.scales': _one_of(SCALES),
    'partition.keep_dynamic': _PATTERN,
    'partition.keep_static': _PATTERN,
    'data.name': _one_of(SOURCES),
    'data.path': _TEXT,
    'data.batch_size': _integer(1),
    'data.image_size': _integer(1),
    'data.crop_padding': _integer(0),
    'data.flip': _FLAG,
    'data.on_bad': _one_of(ON_BAD),
    'optim.name': _one_of(OPTIMIZERS),
    'optim.learning_rate': _POSITIVE,
    'optim.schedule': _one_of(RATE_SCHEDULES),
    'optim.warmup_steps': _integer(0),
    'optim.weight_decay': _number(0),
    'optim.clip_norm': _number(0),
    'optim.accumulate_steps': _integer(1),
    'train.steps': _integer(0),
    'train.epochs': _number(0),
    'train.seed': Rule(int, lambda value: 0 <= value < 2**32, 'an integer in [0, 2**32)'),
    'train.temperature': Rule(float, lambda value: 1 <= value < math.inf, 'a number of at least 1'),
    'train.temperature_epochs': _number(0),
    'train.eval_every_steps': _integer(1),
    'train.log_every_steps': _integer(1),
    'train.checkpoint_every_steps': _integer(1),
    'train.keep_checkpoints': _integer(1),
    'parallel': _one_of(PARALLEL),
    'debug': _FLAG,
}

# Keys that change how a run is done and not what it computes: a resumed run may change them.
FREE_ON_RESUME = frozenset({'data.path', 'model.plan', 'train.keep_checkpoints', 'parallel', 'debug'})


def load_config(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads a config file, applies overrides and checks the result against `RULES`.

    Args:
      path: a Python file with get_config(); it can import the files beside it through its folder's name.
      overrides: 'section.key=value', each for a key that the file has.

    Raises:
      BadInput: naming every key that is wrong and what it allows.
    """
    config = _read_file(Path(path))
    problems = []
    for override in overrides:
        name, _, text = override.partition('=')
        try:
            _override(config, name, text)
        except BadInput as problem:
            problems.append(str(problem))
    problems += find_problems(config)
    if problems:
        raise BadInput('; '.join(dict.fromkeys(problems)))
    return config


def _read_file(path: Path) -> ml_collections.ConfigDict:
    if not path.is_file():
        raise BadInput(f'config file {path} does not exist')
    # Base files are imported as `from configs import ...`, from wherever the command was started.
    root = str(path.absolute().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    spec = importlib.util.spec_from_file_location(f'pad_jax_config_{path.stem}', path)
    if spec is None:
        raise BadInput(f'config file {path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise BadInput(f'config file {path} fails: {type(error).__name__}: {error}') from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise BadInput(f'get_config() of {path} must return a ConfigDict, got {type(config).__name__}')
    return config


def flatten(config) -> dict[str, Any]:
    """{'section.key': value} of a config or of the dict in a config.json."""
    nested = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= {f'{name}.{key}': below for key, below in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _override(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    if name not in flatten(config):
        raise BadInput(_unknown(name, flatten(config)))
    kind = RULES[name].kind if name in RULES else str
    *section, key = name.split('.')
    holder = config[section[0]] if section else config
    # By the rules alone: a base file may say 8 where 8.5 is as good, which ConfigDict would hold against the override.
    with holder.unlocked(), holder.ignore_type():
        holder[key] = _parse(name, text, kind)


def _unknown(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'unknown config key {name}' + (f', did you mean {nearest[0]}?' if nearest else '')


def _parse(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text.strip().capitalize() if kind is bool else text.strip())
    except (ValueError, SyntaxError):
        value = text
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise BadInput(f'config key {name} must be {RULES[name].allowed}, got {text!r}')
    return value


def find_problems(config: ml_collections.ConfigDict) -> list[str]:
    """Everything that is wrong with a config by itself, one sentence each; [] if nothing."""
    flat = flatten(config)
    problems = [_unknown(name, RULES) for name in flat if name not in RULES]
    problems += [f'config key {name} is missing' for name in RULES if name not in flat]
    for name, value in flat.items():
        if name not in RULES:
            continue
        rule = RULES[name]
        fits = type(value) is rule.kind or (rule.kind is float and type(value) is int)
        if not fits or not rule.holds(value):
            problems.append(f'config key {name} must be {rule.allowed}, got {value!r}')
    return problems or _find_conflicts(config)


def _find_conflicts(config) -> list[str]:
    """What is wrong between keys that are each right."""
    problems = []
    if not config.train.steps and not config.train.epochs:
        problems.append('train.steps or train.epochs must be above 0')
    if config.train.steps and config.optim.warmup_steps >= config.train.steps:
        problems.append(
            f'optim.warmup_steps must be below train.steps = {config.train.steps}, got {config.optim.warmup_steps}'
        )
    checks = [(check_image_size, (config.model.stem, config.data.image_size))]
    if is_partial(config):
        partition = config.partition
        checks.append((round_fractions, (partition.dynamic_fraction, partition.rounds, partition.schedule)))
        if partition.granularity == 'layer' and partition.scope == 'layer':
            problems.append("partition.scope 'layer' can't choose within one gate: granularity 'layer' needs 'global'")
        last = round_steps(partition.start_step, partition.every_steps, partition.rounds)[-1]
        if config.train.steps and last >= config.train.steps:
            problems.append(
                f'the last round of the partition comes after {last} steps, train.steps is {config.train.steps}: lower '
                'partition.start_step, every_steps or rounds'
            )
    for check, arguments in checks:
        try:
            check(*arguments)
        except ValueError as error:
            problems.append(str(error))
    return problems


def is_partial(config) -> bool:
    """Whether the network is partially dynamic: it has dynamic layers, and κ < 1."""
    return config.model.conv != 'static' and config.partition.dynamic_fraction < 1


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """'key: old -> new' for every key that two flattened configs don't share, but for those free on resume."""
    return [
        f'{name}: {old.get(name, "missing")!r} -> {new.get(name, "missing")!r}'
        for name in sorted(old.keys() | new.keys())
        if name not in FREE_ON_RESUME and old.get(name) != new.get(name)
    ]


def read_workdir_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config that a workdir was made with, checked.

    Raises:
      BadInput: if there is none or it can't be used by this version.
    """
    path = workdir / 'config.json'
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f'{workdir} is not the workdir of a run: it holds no config.json') from None
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise BadInput(f'{path} is damaged: {error}') from error
    if not isinstance(content, dict):
        raise BadInput(f'{path} is damaged: it holds no object')
    config = ml_collections.ConfigDict(content)
    problems = find_problems(config)
    if problems:
        raise BadInput(f'{path}: {"; ".join(problems)}')
    return config
