"""The README does what it says: its code runs, and its map shows what is there."""

import pathlib
import re

from pad_jax.training.config import flatten, load_config

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
TRAIN = (ROOT / 'docs' / 'train.md').read_text()


def test_code_runs_and_gives_what_the_comments_promise():
    namespace = {}
    for code in re.findall(r'^```python\n(.*?)^```$', README, flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, 'README.md', 'exec'), namespace)
    assert namespace['outputs'].shape == (2, 16, 16, 8)
    assert namespace['variables']['partition']['kernel'].shape == (3, 3, 3, 8)


def test_map_names_what_exists():
    section = README.split('## Where things are')[1].split('\n## ')[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith('    ')]
    assert 20 <= len(lines) <= 25
    path = []
    for line in lines:
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = [*path[:depth], name]
        assert (ROOT / '/'.join(part.rstrip('/') for part in path)).exists(), path


def test_linked_pages_exist():
    for link in re.findall(r'\]\(([^)]+)\)', README):
        assert link.startswith('https://') or (ROOT / link).exists(), link


def test_four_keys_make_a_recipe_one_for_other_hardware():
    """All that the recipe for one GPU changes but for what counts steps."""
    base, gpu = (flatten(load_config(str(ROOT / f'configs/imagenet_resnet50_pad{end}.py'))) for end in ('', '_gpu'))
    changed = {f'--config.{key}={gpu[key]}' for key in base if base[key] != gpu[key] and not key.endswith('_steps')}
    assert len(changed) == 4 and all(f' {flag}' in TRAIN for flag in changed), changed
