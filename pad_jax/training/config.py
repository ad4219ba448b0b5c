"""Configuration: one table of keys, config files, overrides, and checks. The ConfigDict ends at `setup`.

A config file is Python with `get_config() -> ml_collections.ConfigDict`. It describes one of `KINDS`, see `kind_of`.
Keys are checked one by one first. Their combinations are checked only if every key is valid.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from pad_jax.config_files import call_file, find_config_file, flatten
from pad_jax.data import AUGMENTS, CORPUS_SOURCES, GLUE_TASKS, MOST_MAGNITUDE, OBJECTIVES, ON_BAD, SOURCES, TEXT_SOURCES
from pad_jax.errors import BadInput
from pad_jax.files import reach, read_own_object
from pad_jax.layers import CONVS, MIXTURE_GRANULARITIES, MIXTURE_PLANS, PLAN_NAMES, ROUTINGS
from pad_jax.models import DECODERS, ENCODERS, FFNS, MODELS, STEMS, check_image_size
from pad_jax.partition import CRITERIA, GRANULARITIES, HANDOFFS, SCALES, SCHEDULES, SCOPES, round_fractions
from pad_jax.pretrained import find_layout
from pad_jax.training.devices import PARALLEL
from pad_jax.training.optimizer import OPTIMIZERS, RATE_SCHEDULES
from pad_jax.training.steps import ON_NONFINITE

MAX_STEPS = 2**31 - 1  # counted in int32
# Numbers enter a step as float32: beyond these limits they would become infinite or zero.
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)


KINDS = ('images', 'texts', 'causal', 'masked')
"""Networks that classify images or texts, and language models that predict the next or the masked tokens."""


class Rule(NamedTuple):
    """Allowed values of a key: their type, a test, and the rule in words, or the table of the allowed names.

    A table is read when a value is checked, so that modules of `--import` can add rows to it.
    """

    kind: type
    holds: Callable[[Any], bool]
    says: str | Collection[str]

    @property
    def words(self) -> str:
        return self.says if isinstance(self.says, str) else f'one of {", ".join(self.says)}'


class Key(NamedTuple):
    """A row of the table of keys. Configs of `kinds` have the key; the base configs carry `help` as a comment.

    A resumed run may change a free key, because the run computes the same.
    """

    name: str
    rule: Rule
    help: str
    kinds: str = 'images texts causal masked'
    is_free: bool = False


def _one_of(names: Collection[str]) -> Rule:
    return Rule(str, lambda value: value in names, names)


def _integer(least: int, most: int = MAX_STEPS) -> Rule:
    return Rule(int, lambda value: least <= value <= most, f'an integer from {least} to {most}')


def _number(least: float, most: float = _LARGEST) -> Rule:
    return Rule(float, lambda value: least <= value <= most, f'a number from {least:g} to {most:.7g}')


_FLAG = Rule(bool, lambda value: True, 'True or False')
_TEXT = Rule(str, lambda value: True, 'text')
_SHARE = Rule(float, lambda value: 0 <= value < 1, 'in [0, 1)')
# Parameters are float32, and by default JAX turns float64 into float32.
_DTYPES = ('float32', 'bfloat16')
_DTYPE = Rule(str, lambda value: value in _DTYPES, 'one of float32, bfloat16 (float16 would need loss scaling)')
# The upper limits of sizes are far beyond use, but small enough that everything made of them can be counted.
_SIZE = _integer(1, 2**20)

IMAGES, TEXTS, CAUSAL, MASKED = KINDS
LANGUAGE, BERT, TOKENS, ALL, FREE = 'causal masked', 'texts masked', 'texts causal masked', ' '.join(KINDS), True
KEYS = (
    Key('model.name', _one_of(MODELS), 'network', IMAGES),
    Key('model.name', _one_of(ENCODERS), 'encoder', BERT),
    Key('model.name', _one_of(DECODERS), 'family: decides norms, attention and router', CAUSAL),
    Key('model.num_classes', _integer(0, 2**20), 'classes of the data; 0 = as many as it has', IMAGES),
    Key('model.num_classes', _integer(0, 2**20), '0 = those of the task; own texts: 2, or 1 for regression', TEXTS),
    Key('model.conv', _one_of(CONVS), 'layer of all convolutions except the stem', IMAGES),
    Key('model.num_kernels', _integer(1, 1024), 'K, kernels of a dynamic convolution', IMAGES),
    Key('model.reduction', _integer(1, 2**16), 'hidden width of the attention = channels / reduction', IMAGES),
    Key('model.width_multiplier', _number(1 / 64, 128), 'multiplies all channels; 1 = the standard network', IMAGES),
    Key('model.stem', _one_of(STEMS), 'imagenet: ends at size / 32; cifar, for small images: at size / 8', IMAGES),
    Key('model.sync_batch_norm', _FLAG, 'batch statistics over all devices', IMAGES),
    Key('model.plan', _one_of(PLAN_NAMES), 'execution of dynamic convolutions', IMAGES, FREE),
    Key('model.ffn', _one_of(FFNS), 'dense; linear: each linear layer a mixture; ffn: whole experts', TOKENS),
    Key('model.num_experts', _integer(1, 4096), 'E, experts of a mixture', TOKENS),
    Key('model.num_selected', _integer(1, 4096), 'k, experts of each token', TOKENS),
    Key('model.routing', _one_of(ROUTINGS), 'unit that experts are chosen for', BERT),
    Key('model.plan', _one_of(MIXTURE_PLANS), 'execution of mixtures', TOKENS, FREE),
    Key('model.balance_coefficient', _number(0), 'weight of the loss that balances importance and load', TOKENS),
    Key('model.z_coefficient', _number(0), 'weight of the loss that keeps router logits small', TOKENS),
    Key('model.switch_coefficient', _number(0), 'weight of the load-balancing loss of Switch', TOKENS),
    Key('model.num_layers', _integer(1, 1024), 'blocks of attention and feed-forward part', CAUSAL),
    Key('model.width', _SIZE, 'C, features of a token', CAUSAL),
    Key('model.num_heads', _integer(1, 4096), 'attention heads', CAUSAL),
    Key('model.num_kv_heads', _integer(0, 4096), 'heads of keys and values; 0 = as many as num_heads', CAUSAL),
    Key('model.ffn_width', _SIZE, 'F, hidden width of an expert, or of the dense part', CAUSAL),
    Key('model.shared_width', _integer(0, 2**20), 'hidden width of an expert for all tokens; 0 = none', CAUSAL),
    Key('model.vocab_size', _integer(8, 2**24), 'rows of the token embedding', TOKENS),
    Key('model.max_length', _integer(8, 2**20), 'rows of the position embedding', BERT),
    Key('model.max_length', _integer(8, 2**20), 'most tokens of a text', CAUSAL),
    Key('model.dropout', _SHARE, 'dropped fraction in training', BERT),
    Key('model.dtype', _DTYPE, 'dtype to compute in, float32 or bfloat16; parameters stay float32'),
    Key('model.remat', _FLAG, 'recompute activations for the gradient: less memory, more time', TOKENS, FREE),
    Key('model.pretrained', _TEXT, "torchvision's weights as safetensors; '' = from scratch", IMAGES),
    Key('model.pretrained', _TEXT, "weights: folder, package, or workdir of a masked run; '' = from scratch", TEXTS),
    Key('partition.dynamic_fraction', Rule(float, lambda value: 0 < value <= 1, 'in (0, 1]'), 'κ; 1 = fully dynamic'),
    Key('partition.criterion', _one_of(CRITERIA), 'score'),
    Key('partition.scope', _one_of(SCOPES), 'positions compete in the whole network (global) or in their layer'),
    Key('partition.granularity', _one_of(GRANULARITIES), 'positions with one gate', IMAGES),
    Key('partition.granularity', _one_of([*filter(None, MIXTURE_GRANULARITIES)]), 'positions with one gate', TOKENS),
    Key('partition.rounds', _integer(1, 10_000), 'T, rounds of the partition'),
    Key('partition.schedule', _one_of(SCHEDULES), 'dynamic fraction after each round'),
    Key('partition.start_step', _integer(0), 'training steps before the first round'),
    Key('partition.every_steps', _integer(0), 'training steps between rounds'),
    Key('partition.batches', _SIZE, 'scoring batches of a round'),
    Key('partition.batch_size', _SIZE, 'examples of a scoring batch'),
    Key('partition.handoff', _one_of(HANDOFFS), 'static parameters start from independent draws or the mean factor'),
    Key('partition.scales', _one_of(SCALES), 'scale factors λd and λs'),
    Key('partition.prune', _FLAG, 'positions that are not dynamic become zero instead of static'),
    Key('partition.compact', _FLAG, 'train without dead entries after the last round', ALL, FREE),
    Key('partition.keep_dynamic', _TEXT, 'regular expression: layers that stay dynamic, outside κ'),
    Key('partition.keep_static', _TEXT, 'regular expression: layers that become static, outside κ'),
    Key('data.name', _one_of(SOURCES), 'digits, embedded; folder, kept in memory; imagenet, streamed', IMAGES),
    Key('data.name', _one_of(TEXT_SOURCES), 'glue, or text: your own files', TEXTS),
    Key('data.name', _one_of(CORPUS_SOURCES), "corpus: your own texts; stdlib: Python's own library", LANGUAGE),
    Key('data.path', _TEXT, 'file or folder of the data', ALL, FREE),
    Key('data.holdout', _number(0, 0.999), 'share of each class to evaluate on, if the data has no split for it'),
    Key('data.task', _one_of(GLUE_TASKS), 'task of glue', TEXTS),
    Key('data.text_columns', _TEXT, 'of text: one column, or two separated by a comma', TEXTS),
    Key('data.text_column', _TEXT, 'of JSON lines: field of the text', LANGUAGE),
    Key('data.label_column', _TEXT, 'of text: column of the labels', TEXTS),
    Key('data.regression', _FLAG, 'of text: labels are numbers', TEXTS),
    Key('data.vocabulary', _TEXT, "vocab.txt or tokenizer.json; '' = that of the pretrained weights", TEXTS),
    Key('data.vocabulary', _TEXT, "vocab.txt, tokenizer.json or name of a package; '' = bytes", LANGUAGE),
    Key('data.batch_size', _SIZE, 'examples of a batch, over all devices'),
    Key('data.image_size', _integer(1, 2**14), 'side in pixels', IMAGES),
    Key('data.augment', _one_of(AUGMENTS), 'crop moves the image; resized_crop (imagenet only) takes a part', IMAGES),
    Key('data.crop_padding', _integer(0, 2**14), 'largest move of a crop, in pixels', IMAGES),
    Key('data.flip', _FLAG, 'mirror at random', IMAGES),
    Key('data.color_jitter', _number(0, 1), 'random brightness, contrast and saturation; 0 = none', IMAGES),
    Key('data.randaugment_layers', _integer(0, 100), 'operations of RandAugment; 0 = none', IMAGES),
    Key('data.randaugment_magnitude', _integer(0, MOST_MAGNITUDE), 'strength of each operation', IMAGES),
    Key('data.max_length', _integer(8, 2**20), 'tokens of a text or pair; the longer text is cut first', TEXTS),
    Key('data.max_length', _integer(8, 2**20), 'T, tokens of a window', LANGUAGE),
    Key('data.on_bad', _one_of(ON_BAD), 'image, row or file that cannot be read'),
    Key('optim.name', _one_of(OPTIMIZERS), 'optimizer'),
    Key('optim.learning_rate', _number(_SMALLEST), 'peak of the learning rate'),
    Key('optim.schedule', _one_of(RATE_SCHEDULES), 'learning rate after the warm-up'),
    Key('optim.warmup_steps', _integer(0), 'linear warm-up from 0'),
    Key('optim.weight_decay', _number(0), 'applies to weights only'),
    Key('optim.clip_norm', _number(0), 'largest global gradient norm; 0 = no clipping'),
    Key('optim.accumulate_steps', _SIZE, 'microbatches of a batch'),
    Key('optim.ema_decay', _SHARE, 'moving average of parameters, used by evaluation; 0 = none'),
    Key('train.objective', _one_of(OBJECTIVES), 'causal: predict the next token; masked: hidden ones', LANGUAGE),
    Key('train.steps', _integer(0), '0 = given by epochs'),
    Key('train.epochs', _number(0), 'passes over the training data, if steps is 0'),
    Key('train.seed', _integer(0, 2**32 - 1), 'seed of all random draws'),
    Key('train.temperature', _number(1), 'temperature of the attention at the start', IMAGES),
    Key('train.temperature_share', _number(0, 1), 'share of the run in which the temperature falls to 1', IMAGES),
    Key('train.label_smoothing', _SHARE, 'share of a label that is spread over all classes', IMAGES),
    Key('train.mixup', _number(0, 1000), 'α: mixes pairs of images with shares from Beta(α, α); 0 = none', IMAGES),
    # A step that is not finite changes nothing, so a resumed run may skip it.
    Key('train.on_nonfinite', _one_of(ON_NONFINITE), 'loss or gradient that is not finite', ALL, FREE),
    Key('train.max_nonfinite', _integer(1), 'skipped steps in a row that stop the run', ALL, FREE),
    Key('train.eval_every_steps', _integer(1), 'steps between evaluations; like the next two, also at the last step'),
    Key('train.log_every_steps', _integer(1), 'train rows of metrics.jsonl'),
    Key('train.checkpoint_every_steps', _integer(1), 'most steps that an interruption loses'),
    Key('train.keep_checkpoints', _integer(1), 'latest checkpoints that are kept', ALL, FREE),
    Key('train.keep_best', _FLAG, 'also keep the checkpoint of the best evaluation, for --best'),
    Key('train.patience', _integer(0), 'evaluations without a better one that end the run; 0 = never'),
    Key('parallel', _one_of(PARALLEL), 'step on several devices', ALL, FREE),
    Key('debug', _FLAG, 'stop at the operation that makes a NaN', ALL, FREE),
)
_SYNONYMS = {  # last part of a key as others call it: as it is called here
    'lr': 'learning_rate',
    'wd': 'weight_decay',
    'bs': 'batch_size',
    'kappa': 'dynamic_fraction',
    'sparsity': 'dynamic_fraction',
    'top_k': 'num_selected',
    'iterations': 'steps',
}
PATHS = ('data.path', 'data.vocabulary', 'model.pretrained')
FREE_KEYS = frozenset(key.name for key in KEYS if key.is_free)
"""Keys that a resumed run may change."""


def keys_of(flat: Mapping[str, Any]) -> dict[str, Key]:
    """Return the keys that a flattened config must have, by name."""
    return {key.name: key for key in KEYS if kind_of(flat) in key.kinds}


def kind_of(flat: Mapping[str, Any]) -> str:
    """Return the kind of a flattened config, one of `KINDS`."""
    if 'train.objective' in flat:
        return MASKED if flat['train.objective'] == MASKED else CAUSAL
    return TEXTS if 'model.ffn' in flat else IMAGES


def describe_keys(path: str) -> str:
    """List the keys of a config file with value, meaning and rule, for --help; all keys without a file."""
    if not path:
        return '\n'.join(f'--config.{key.name} ({key.kinds}): {key.help}; {key.rule.words}' for key in KEYS)
    flat = call_file(find_config_file(path), 'get_config')
    keys = [(key, flat[name]) for name, key in keys_of(flat).items() if name in flat]
    return '\n'.join(f'--config.{key.name}={value}: {key.help}; {key.rule.words}' for key, value in keys)


def is_text(config) -> bool:
    """Return True for a config whose network reads tokens, False for one of images."""
    return 'ffn' in config.model


def is_language(config) -> bool:
    """Return True for a language model, False for a network that classifies."""
    return 'objective' in config.train


def is_partial(config) -> bool:
    """Return True if the network is partially dynamic: it has dynamic layers, and κ < 1."""
    is_dynamic = config.model.ffn != 'dense' if is_text(config) else config.model.conv != 'static'
    return is_dynamic and config.partition.dynamic_fraction < 1


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read a config file, apply overrides and check the result.

    Args:
      path: a Python file with get_config(), or the name of a shipped one.
      overrides: 'section.key=value', each for a key that the file has.

    Raises:
      BadInput: naming every key that is wrong and its rule, or every combination that cannot work.
    """
    return _finish(call_file(find_config_file(path), 'get_config'), overrides, PATHS)


def _finish(flat: dict[str, Any], overrides: Sequence[str], paths: Collection[str] = ()) -> ConfigDict:
    """Apply overrides to a flattened config; check the keys, the overridden and the given paths, then combinations."""
    keys, problems = keys_of(flat), []
    for override in overrides:
        name, _, text = override.partition('=')
        if not name.strip():
            problems.append(f'an override must name a key, as in train.steps=100, got {override!r}')
        elif name not in flat:
            problems.append(_unknown(name, flat))
        else:
            flat[name] = _parse(text, keys[name].rule.kind) if name in keys else text
    _raise(problems + find_key_problems(flat))
    for name in {*paths, *(override.partition('=')[0] for override in overrides)} & {*PATHS} & flat.keys():
        try:
            found = reach(flat[name])
        except BadInput as error:
            problems.append(f'{name}: {error}')
        else:  # a name of a package or a bucket stays as it is
            flat[name] = str(found) if flat[name].startswith('~') else flat[name]
    _raise(problems)
    config = ConfigDict(unflatten_dict(flat, sep='.'))
    if 'task' in config.data and not config.model.num_classes:
        config.model.num_classes = _num_classes(config.data)
    _raise(find_conflicts(config))
    return config


def _num_classes(data) -> int:
    """Number of classes that data.name and data.task imply before the data is read; 1 is regression."""
    if data.name == 'glue':
        return GLUE_TASKS[data.task].num_classes
    return 1 if data.regression else 2


def _parse(text: str, kind: type) -> Any:
    """Parse an override into a value of its key's type; return the text if that fails, for the check to report."""
    try:
        return {'true': True, 'false': False}[text.strip().lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return text


def _unknown(name: str, known: Collection[str]) -> str:
    """Describe an unknown key, with the known one of nearest spelling or meaning."""
    section, _, last = name.lower().rpartition('.')
    meant = [key for key in known if key.rpartition('.')[2] == _SYNONYMS.get(last, last)]
    meant.sort(key=lambda key: (not key.startswith(f'{section}.'), key.startswith('partition.')))
    meant += difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    meant += [key.name for key in KEYS if key.name in known and last in re.findall(r'\w+', key.help.lower())]
    meant += difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'unknown config key {name}' + (f', did you mean {meant[0]}?' if meant else '')


def _raise(problems: Iterable[str], where: str = '') -> None:
    if problems := list(dict.fromkeys(problems)):
        raise BadInput(where + '; '.join(problems))


def find_key_problems(flat: Mapping[str, Any]) -> list[str]:
    """Describe unknown and missing keys and values against their rules, in a flattened config."""
    keys = keys_of(flat)
    problems = [_unknown(name, keys) for name in flat if name not in keys]
    for name, (_, rule, *_) in keys.items():
        value = flat.get(name)
        if name not in flat:
            problems.append(f'config key {name} is missing')
        elif type(value) not in (rule.kind, {float: int}.get(rule.kind)) or not rule.holds(value):
            problems.append(f'{name} must be {rule.words}, got {value!r}')
    return problems


def find_conflicts(config: ConfigDict) -> list[str]:
    """Describe combinations of keys that cannot work, one sentence each. Every key is valid by itself."""
    model, partition, data, train = config.model, config.partition, config.data, config.train
    problems = find_length_problems(config, train.steps) if train.steps else []

    def check(holds: bool, message: str) -> None:
        if not holds:
            problems.append(message)

    def ask(section: str, function: Callable, *arguments) -> None:
        try:
            function(*arguments)
        except ValueError as error:
            problems.append(name_key(section, error))

    check(train.steps or train.epochs, 'train.steps or train.epochs must be above 0, got 0 for both')
    if is_partial(config):
        ask('partition', round_fractions, partition.dynamic_fraction, partition.rounds, partition.schedule)
        for key, value in (('handoff', 'mean'), ('scales', 'static')):
            asks = partition.prune and partition[key] == value
            check(not asks, f'partition.{key}={value} needs static parameters, and partition.prune=True leaves none')
        # Pruned copies differ from the start; and where layers are excluded, the network may have no competition.
        copies = model.get('pretrained') and not (partition.prune or partition.keep_dynamic or partition.keep_static)
        check(
            not copies or partition.start_step or not CRITERIA[partition.criterion].needs,
            f'partition.start_step must be above 0 for model.pretrained with criterion {partition.criterion!r}, got 0. '
            'Dynamic factors begin as copies, which need some steps of training before their scores differ: use '
            "handoff 'mean' with it, or criterion 'magnitude' or 'random'",
        )
    if is_text(config):
        found, most = model.num_selected, model.num_experts
        check(found <= most, f'model.num_selected must be at most model.num_experts = {most}, got {found}')
        check(
            found > 1 or not model.get('pretrained') or model.ffn == 'dense',
            'model.num_selected must be at least 2 for model.pretrained, got 1. A single expert has a weight below 1, '
            'so copies would not compute what the pretrained layer does',
        )
        found, most = data.max_length, model.max_length
        check(found <= most, f'data.max_length must be at most model.max_length = {most}, got {found}')
    if is_language(config):
        check(data.name != 'stdlib' or not data.path, f'data.path must be empty for stdlib, got {data.path!r}')
    elif is_text(config):
        found, right = model.num_classes, _num_classes(data)
        check(data.name != 'glue' or found == right, f'model.num_classes must be {right} for {data.task}, got {found}')
        holdout = data.holdout
        check(data.name != 'glue' or not holdout, f'data.holdout must be 0 for glue, got {holdout}: it has own splits')
    else:
        check(model.num_classes != 1, 'model.num_classes must be at least 2, or 0 for those of the data, got 1')
        ask('data', check_image_size, model.stem, data.image_size)
        if model.pretrained:
            ask('model', find_layout, model.name)
    return problems


def find_length_problems(config, total: int) -> list[str]:
    """Describe the keys that do not fit a run of `total` steps: warm-up and rounds of the partition."""
    partition, warmup = config.partition, config.optim.warmup_steps
    problems = []
    if warmup >= total:
        problems.append(f'optim.warmup_steps must be below the {total} steps of the run, got {warmup}')
    last = partition.start_step + partition.every_steps * (partition.rounds - 1)
    if is_partial(config) and last >= total:
        problems.append(
            f'the last round of the partition comes after {last} steps, the run has {total}: lower '
            f'partition.start_step, every_steps or rounds, or raise train.{"steps" if config.train.steps else "epochs"}'
        )
    return problems


def name_key(section: str, error: ValueError) -> str:
    """Put the section in front of an error that begins with a key's name.

    >>> name_key('data', ValueError('image_size must be at least 8'))
    'data.image_size must be at least 8'
    """
    first = re.match(r'\w*', str(error)).group()
    return f'{section}.{error}' if any(key.name == f'{section}.{first}' for key in KEYS) else str(error)


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List 'key: old -> new' for the keys of two flattened configs that differ and are not free on resume.

    A model.num_classes of 0 equals any number: it stands for that of the data.
    """
    return [
        f'{name}: {old.get(name, "missing")!r} -> {new.get(name, "missing")!r}'
        for name in sorted((old.keys() | new.keys()) - FREE_KEYS)
        if old.get(name) != new.get(name) and (name != 'model.num_classes' or 0 not in (old.get(name), new.get(name)))
    ]


def read_workdir_config(workdir: Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read and check the config of the run in workdir.

    Args:
      overrides: 'section.key=value', for keys that are free on resume.

    Raises:
      BadInput: the config is missing, this version cannot use it, or an override is not allowed.
    """
    path = workdir / 'config.json'
    flat = flatten(read_own_object(path, 'the workdir of a run'))
    other = 'does not fit this version of pad_jax (use the version and the --import that made it, or another workdir)'
    _raise(find_key_problems(flat), f'{path} {other}: ')
    names = [override.partition('=')[0] for override in overrides]
    if fixed := [name for name in names if name in flat and name not in FREE_KEYS]:
        allowed = ', '.join(sorted(FREE_KEYS & flat.keys()))
        raise BadInput(f'{", ".join(fixed)} cannot be changed for the run in {workdir}, only {allowed}')
    return _finish(flat, overrides)
