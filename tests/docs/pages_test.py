"""Every snippet below docs/extend and of ablations.md runs as it stands, and prints what the page says it prints.

Those of compose.md, export.md and the README have tests of their own; that no page is forgotten is tested here.
"""

import pathlib
import re
import runpy
import shlex

import pytest

from pad_jax import CONVS, CRITERIA, MODELS, data
from pad_jax.__main__ import VERBS
from pad_jax.reports.sweep import read_ablation
from pad_jax.training.config import load_config
from tests.training.fixtures import compiled_quickly

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [*sorted((ROOT / 'docs' / 'extend').glob('*.md')), ROOT / 'docs' / 'ablations.md']
ELSEWHERE = {
    'README.md': 'docs/readme_test.py',
    'compose.md': 'docs/compose_test.py',
    'export.md': 'deploy/serving_test.py',
}


@pytest.fixture
def tables():
    """What a page adds to them is gone afterwards."""
    tables = (CONVS, CRITERIA, MODELS, data.SOURCES)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.mark.usefixtures('tables')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_snippets_run_and_print_what_they_say(page, capsys):
    text = page.read_text()
    namespace = {'__name__': page.stem}
    with compiled_quickly():
        for block in re.finditer(r'^```python\n(.*?)^```$', text, flags=re.MULTILINE | re.DOTALL):
            # On the lines where it stands, so that a traceback points into the page.
            lines = '\n' * text.count('\n', 0, block.start(1)) + block[1]
            exec(compile(lines, str(page), 'exec'), namespace)
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r'^print\(.*\)  # (.*?)(?::|$)', text, flags=re.MULTILINE)
    assert [line for line in said if line not in printed] == []


def test_every_page_with_snippets_is_run_somewhere():
    found = {path for path in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')] if '```python\n' in path.read_text()}
    assert {path.name for path in found - set(PAGES)} == ELSEWHERE.keys()
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / 'tests' / test).read_text()


def test_commands_name_verbs_files_and_keys_that_exist():
    found = 0
    for page in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
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


def test_links_lead_somewhere():
    for page in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]:
        for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text()):
            assert (page.parent / target).exists(), f'{page.name}: {target}'


def test_every_ablation_is_in_the_table():
    files = {path.name for path in (ROOT / 'configs' / 'ablations').glob('[!_]*.py')}
    assert (
        set(re.findall(r'^\| `(\w+\.py)`', (ROOT / 'docs' / 'ablations.md').read_text(), flags=re.MULTILINE)) == files
    )


def test_the_figure_is_drawn_by_its_code():
    drawing = runpy.run_path(str(ROOT / 'docs' / 'figures' / 'concepts.py'))
    with compiled_quickly():
        kernels, scores, mask = drawing['partition']()
    assert mask.sum() == 22  # 0.3 · 72 = 21.6
    assert scores[mask].min() >= scores[~mask].max()
    titles = [axes.get_title() for axes in drawing['draw'](kernels, scores, mask).axes]
    # 72 static or dynamic, and three more of each dynamic one: 72 + 3 · 22.
    assert [title for title in titles if title.startswith('138 parameters')]
