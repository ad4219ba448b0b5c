"""Ablation files: a base and what each variant changes in it, one to three keys.

A file of configs/ablations/ is Python with `get_ablation() -> ml_collections.ConfigDict`:

    base: a file of the folder above
    variants: pairs (name, {'section.key': value}); pairs, as a dict would swallow the first of two equal names
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from pad_jax.errors import BadInput, check_together
from pad_jax.reports.sweep_layout import BASE, is_plain_name
from pad_jax.training.config import call_file, flatten, load_config

MOST_KEYS = 3
"""Of a variant: what changes more is another experiment."""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What a file compares, checked but for the configs that it leads to.

    Attributes:
      path: of the file.
      base: the config file.
      variants: {name: {'section.key': value}}, without the base.
    """

    path: Path
    base: Path
    variants: dict[str, dict[str, Any]]


def read_ablation(path: Path) -> Ablation:
    """Reads an ablation file.

    Raises:
      BadInput: with all that is wrong with it.
    """
    content = call_file(path, 'get_ablation').to_dict()
    if content.keys() != {'base', 'variants'} or type(content['base']) is not str:
        raise BadInput(f'get_ablation() of {path} must return base, the name of a config file, and variants')
    pairs = content['variants']
    if not isinstance(pairs, Sequence) or not pairs or not all(map(_is_variant, pairs)):
        raise BadInput(f"variants of {path} must be pairs (name, {{'section.key': value}}), at least one")
    problems = [
        f'{count} variants of {path} are called {name}: give each a name of its own'
        for name, count in collections.Counter(name for name, _ in pairs).items()
        if count > 1
    ]
    for name, change in pairs:
        if name == BASE:
            problems.append(f'variant {BASE} of {path}: that is what the base itself is called, which needs no line')
        elif not is_plain_name(name):
            problems.append(f'variant {name!r} of {path} cannot name a folder: letters, digits and _.+=- will do')
        if not 1 <= len(change) <= MOST_KEYS:
            problems.append(f'variant {name} of {path} must change 1 to {MOST_KEYS} keys, got {len(change)}')
        if 'train.seed' in change:
            problems.append(f'variant {name} of {path} cannot change train.seed: every variant has the same seeds')
        if 'data.path' in change:
            problems.append(f'variant {name} of {path} cannot change data.path: a sweep compares on one data set')
    if problems:
        raise BadInput('; '.join(dict.fromkeys(problems)))
    return Ablation(
        path, path.absolute().parent.parent / content['base'], {name: dict(change) for name, change in pairs}
    )


def _is_variant(pair: Any) -> bool:
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return False
    name, change = pair
    return type(name) is str and isinstance(change, Mapping) and all(type(key) is str for key in change)


def load_variants(ablation: Ablation, overrides: Sequence[str] = ()) -> dict[str, ml_collections.ConfigDict]:
    """The configs of the base and of every variant, by name, the base first.

    Args:
      overrides: 'section.key=value' of the base; where a variant changes the same key it has the last word.

    Raises:
      BadInput: with all that is wrong with any of them, and those that are alike.
    """
    base = load_config(str(ablation.base), overrides)
    names = list(ablation.variants)
    found = check_together(*(lambda name=name: _load_variant(ablation, name, overrides) for name in names))
    configs = {BASE: base, **dict(zip(names, found, strict=True))}
    first, problems = {}, []
    for name, config in configs.items():
        twin = first.setdefault(repr(sorted(flatten(config).items())), name)
        if twin != name:
            problems.append(f'variant {name} of {ablation.path} changes nothing: it is the same as {twin}')
    if problems:
        raise BadInput('; '.join(problems))
    return configs


def _load_variant(ablation: Ablation, name: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    changes = [f'{key}={value}' for key, value in ablation.variants[name].items()]
    try:
        return load_config(str(ablation.base), [*overrides, *changes])
    except BadInput as problem:
        raise BadInput(f'variant {name} of {ablation.path}: {problem}') from problem
