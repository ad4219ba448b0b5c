"""docs/compose.md does what it says: every section is run, and looked at."""

import pathlib
import re

import jax
import numpy as np
import pytest

from pad_jax.partition import CRITERIA, count_dynamic

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'compose.md'


def read_sections():
    """Title of a section -> its Python blocks as one program, on the lines where they stand in the page."""
    sections = {}
    text = PAGE.read_text()
    for section in re.finditer(r'^## (.*?)\n(.*?)(?=^## |\Z)', text, flags=re.MULTILINE | re.DOTALL):
        lines = [''] * text.count('\n')
        for block in re.finditer(r'^```python\n(.*?)^```$', section[2], flags=re.MULTILINE | re.DOTALL):
            start = text.count('\n', 0, section.start(2) + block.start(1))
            code = block[1].splitlines()
            lines[start : start + len(code)] = code
        sections[section[1]] = '\n'.join(lines)
    return sections


SECTIONS = read_sections()


@pytest.fixture
def run():
    """Runs the section whose title starts so; what it adds to the table of criteria is gone afterwards."""
    before = dict(CRITERIA)

    def run_section(title):
        (code,) = [code for name, code in SECTIONS.items() if name.startswith(title)]
        namespace = {'__name__': 'compose'}
        exec(compile(code, str(PAGE), 'exec'), namespace)
        return namespace

    yield run_section
    CRITERIA.clear()
    CRITERIA.update(before)


def test_every_section_is_run_by_a_test_below():
    run_below = re.findall(r"run\('(.*?)'\)", pathlib.Path(__file__).read_text())
    assert [title for title in SECTIONS if not title.startswith(tuple(run_below))] == []
    assert len(run_below) == len(SECTIONS)


def test_plain_jax(run, capsys):
    found = run('Plain JAX')
    assert count_dynamic(found['masks'], found['params']['static']) == round(0.3 * 96) == 29
    assert capsys.readouterr().out.splitlines()[0] in PAGE.read_text()
    assert found['losses'][-1] < 0.3 * found['losses'][0]


def test_haiku(run):
    found = run('Haiku')
    masks, params = found['masks'], found['params']
    assert count_dynamic(masks, params['static']) == 592
    for layer in masks.values():
        assert layer['w'].any() and not layer['w'].all()
        assert not layer['b'].any()


def test_equinox(run):
    found = run('Equinox')
    masks, params = found['masks'], found['params']
    # Rows of 2, 16, 16 and biases of 1: within the largest row of half of 2·16 + 16 + 16·16 + 16 + 16 + 1 = 337.
    assert 168 - 16 < count_dynamic(masks, params['static']) <= 168
    assert [layer.weight.shape for layer in masks.layers] == [(16, 1), (16, 1), (1, 1)]
    turned = ~np.asarray(masks.layers[1].weight)[:, 0]
    assert turned.any()
    mean = params['dynamic'].layers[1].weight.mean(0)
    np.testing.assert_allclose(params['static'].layers[1].weight[turned], mean[turned], rtol=1e-5, atol=1e-6)


def test_flax(run):
    found = run('Flax')
    masks, params = found['masks'], found['params']
    first = found['network'].init(jax.random.key(0), found['images'][:1])['params']
    # Half of 3·3·1·8 + 3·3·8·16 = 1224 positions, in groups of 9 and of 72.
    dynamic = sum(int(mask['kernel'].sum()) * size for mask, size in zip(masks.values(), (9, 72), strict=True))
    assert 612 - 72 < dynamic <= 612
    turned = ~np.asarray(masks['DynamicConv_1']['kernel']).ravel()
    assert turned.any()
    # φ = 0, and at temperature 30 every kernel has about a quarter.
    mean = found['factors'].mean(0)
    np.testing.assert_allclose(found['static'][..., turned], mean[..., turned], atol=0.02)
    np.testing.assert_array_equal(
        params['DynamicConv_1']['static_kernel'][..., ~turned], first['DynamicConv_1']['static_kernel'][..., ~turned]
    )
    assert found['logits'].shape == (4, 10)


def test_mixture(run):
    found = run('Mixture')
    assert found['mixed'].shape == (2, 5, 8) and not found['mixed'][1, 3:].any()
    assert found['aux']['load'].shape == (4,)


def test_compact(run, capsys):
    found = run('Compact')
    assert capsys.readouterr().out.strip() in PAGE.read_text()
    assert found['difference'] < 1e-5
    masks = found['restored']['partition']
    np.testing.assert_array_equal(masks['kernel'], found['masks']['kernel'])
    assert found['state'][0].trace['kernel'].shape == (4, 3, 3, 3, 3)
    np.testing.assert_array_equal(found['restored']['params']['kernel'][..., :3], found['params']['kernel'])


def test_a_loop_of_ones_own(run):
    found = run('In a loop of your own')
    assert found['counts'] == [18, 10, 6]
    assert found['devices'] == jax.local_device_count() == 8
    assert count_dynamic(found['together'], found['params']['static']) == 6


def test_a_criterion_of_ones_own(run):
    found = run('A criterion of your own')
    assert {name: mask.tolist() for name, mask in found['kept'].items()} == {
        'sensitivity': [False, True, False],
        'squared': [True, False, False],
    }
