"""Imports that are a list of what is allowed.

Import-linter checks the direction between packages, but it cannot tell flax.struct from flax, and it does not
see train.py.
"""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED = {
    'pad_jax/partition': {'pad_jax.partition', 'jax', 'numpy', 'optax', 'flax.struct'},
    'configs': {'configs', 'ml_collections'},
    'pad_jax/deploy/serving.py': {
        'pad_jax.data.unlabelled',
        'pad_jax.errors',
        'pad_jax.files',
        'jax',
        'numpy',
        'safetensors',
    },
    'pad_jax/files.py': {'pad_jax.errors'},
    'train.py': {'pad_jax.__main__', 'pad_jax.training'},
}


def imported_names(path):
    """Every dotted name that the file imports; `from a import b` counts as a.b: flax.struct can be told."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('place', ALLOWED)
def test_imports_only_what_the_layout_allows(place):
    paths = [ROOT / place] if place.endswith('.py') else sorted((ROOT / place).rglob('*.py'))
    assert paths
    wrong = [
        f'{path.relative_to(ROOT)}: {name}'
        for path in paths
        for name in imported_names(path)
        if name.split('.')[0] not in sys.stdlib_module_names
        and not any(f'{name}.'.startswith(f'{allowed}.') for allowed in ALLOWED[place])
    ]
    assert not wrong
