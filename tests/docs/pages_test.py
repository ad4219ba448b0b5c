"""The pages do what they say: their snippets run and print what is said, and what they name exists.

The snippets of compose.md and export.md have tests of their own; a test here finds forgotten pages.
"""

import argparse
import pathlib
import re
import runpy
import shlex
import tomllib

import pytest

from pad_jax import CONVS, CRITERIA, MODELS, data
from pad_jax.__main__ import VERBS
from pad_jax.reports.sweep import read_ablation
from pad_jax.training.config import load_config
from pad_jax.training.processes import add_flags

ROOT = pathlib.Path(__file__).parents[2]
ALL = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
ELSEWHERE = {'compose.md': 'docs/compose_test.py', 'export.md': 'deploy/serving_test.py'}
PAGES = [path for path in ALL if '```python\n' in path.read_text() and path.name not in ELSEWHERE]
PODS = (ROOT / 'docs' / 'pods.md').read_text()


@pytest.fixture
def tables():
    """Remove the rows that a page adds."""
    tables = (CONVS, CRITERIA, MODELS, data.SOURCES)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.mark.usefixtures('tables', 'one_block')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_snippets_run_and_print_what_they_say(page, capsys):
    text = page.read_text()
    namespace = {'__name__': page.stem}
    for block in re.finditer(r'^```python\n(.*?)^```$', text, flags=re.MULTILINE | re.DOTALL):
        # On the lines where it stands, so that a traceback points into the page.
        lines = '\n' * text.count('\n', 0, block.start(1)) + block[1]
        exec(compile(lines, str(page), 'exec'), namespace)
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r'^print\(.*\)  # (.*?)(?::|$)', text, flags=re.MULTILINE)
    assert [line for line in said if line not in printed] == []


def test_pages_links_ablations_and_the_map_of_the_readme_name_what_exists():
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / 'tests' / test).read_text()
    for page in ALL:
        for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text()):
            assert (page.parent / target).exists(), f'{page.name}: {target}'
    files = {path.name for path in (ROOT / 'configs' / 'ablations').glob('[!_]*.py')}
    page = (ROOT / 'docs' / 'ablations.md').read_text()
    assert set(re.findall(r'^\| `(\w+\.py)`', page, flags=re.MULTILINE)) == files
    section = (ROOT / 'README.md').read_text().split('## Where things are')[1].split('\n## ')[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith('    ')]
    assert len(lines) >= 20
    path = []
    for line in lines:
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        path = [*path[:depth], name]
        assert (ROOT / '/'.join(part.rstrip('/') for part in path)).exists(), path


def test_commands_name_verbs_files_and_keys_that_exist():
    found = 0
    for page in ALL:
        for line in re.findall(r'^    (python .*)$', page.read_text().replace('\\\n', ''), flags=re.MULTILINE):
            words = shlex.split(line, comments=True)
            overrides = [word.removeprefix('--config.') for word in words if word.startswith('--config.')]
            config = next((word.removeprefix('--config=') for word in words if word.startswith('--config=')), None)
            if words[1:3] == ['-m', 'pad_jax']:
                assert words[3] in VERBS, f'{page.name}: {line}'
            else:
                assert words[1] == '-m' or (ROOT / words[1]).exists(), f'{page.name}: {line}'
            if config is None and words[3:4] == ['sweep']:
                config = ROOT / 'configs' / read_ablation(ROOT / words[4]).base.name
            if config is not None:
                load_config(str(ROOT / config), overrides)
            found += 1
    assert found > 30


def test_what_the_page_on_pods_names_exists():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert set(re.findall(r'^\| `(--[\w-]+)`', PODS, flags=re.MULTILINE)) <= set(parser.format_help().split())
    for name in re.findall(r'configs/\w+\.py', PODS):
        assert (ROOT / name).exists(), name
    # Without a coordinator each host would train on its own.
    recipe = (ROOT / 'configs' / 'imagenet_resnet50_pad_tpu_v4_32.py').read_text()
    for flag in ('--config.parallel=shard_map', '--coordinator=auto'):
        assert flag in recipe and flag in PODS
    wanted = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['requires-python']
    oldest, beyond = re.fullmatch(r'>=3\.(\d+),<3\.(\d+)', wanted).groups()
    assert f'Python 3.{oldest} to 3.{int(beyond) - 1}' in PODS and f'--python 3.{oldest} ' in PODS
    # `runs` is in no checkout, and neither the shell nor srun makes it.
    logged = [block for block in re.findall(r'(?:^    .*\n|^\n(?=    ))+', PODS, re.MULTILINE) if 'runs/log' in block]
    assert len(logged) == 2 and all('mkdir -p runs\n' in block.split('runs/log')[0] for block in logged)


@pytest.mark.slow
def test_the_figure_is_drawn_by_its_code():
    drawing = runpy.run_path(str(ROOT / 'docs' / 'figures' / 'concepts.py'))
    kernels, scores, mask = drawing['partition']()
    assert mask.sum() == 22  # 0.3 · 72 = 21.6
    assert scores[mask].min() >= scores[~mask].max()
    titles = [axes.get_title() for axes in drawing['draw'](kernels, scores, mask).axes]
    # 72 static or dynamic, and three more of each dynamic one: 72 + 3 · 22.
    assert [title for title in titles if title.startswith('138 parameters')]
