"""docs/pods.md names what exists, and its commands can be given in a fresh checkout."""

import argparse
import pathlib
import re
import tomllib

from pad_jax.training.processes import add_flags

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'pods.md').read_text()
COMMANDS = re.findall(r'(?:^    .*\n|^\n(?=    ))+', PAGE, flags=re.MULTILINE)


def test_the_folder_of_logs_is_made_before_it_is_written_into():
    """`runs` is in no checkout, and neither the shell nor srun makes it."""
    logged = [block for block in COMMANDS if 'runs/log' in block]
    assert len(logged) == 2
    for block in logged:
        assert 'mkdir -p runs\n' in block.split('runs/log')[0]


def test_every_pod_has_a_python_that_will_do():
    wanted = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['requires-python']
    oldest, beyond = re.fullmatch(r'>=3\.(\d+),<3\.(\d+)', wanted).groups()
    assert f'Python 3.{oldest} to 3.{int(beyond) - 1}' in PAGE and f'--python 3.{oldest} ' in PAGE


def test_flags_and_configs_exist():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    known = set(parser.format_help().split())
    for flag in re.findall(r'^\| `(--[\w-]+)`', PAGE, flags=re.MULTILINE):
        assert flag in known
    for name in re.findall(r'configs/\w+\.py', PAGE):
        assert (ROOT / name).exists(), name
