"""docs/compose.md does what it says: every section is run, and looked at."""

import pathlib
import re

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


@pytest.fixture(autouse=True)
def unchanged_criteria():
    """Remove the criteria that a section adds."""
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


def check_plain_jax(found):
    assert count_dynamic(found['masks'], found['params']['static']) == round(0.3 * 96) == 29
    assert found['losses'][-1] < 0.3 * found['losses'][0]


def check_haiku(found):
    assert count_dynamic(found['masks'], found['params']['static']) == 592
    for layer in found['masks'].values():
        assert layer['w'].any() and not layer['w'].all() and not layer['b'].any()


def check_equinox(found):
    # Rows of 2, 16, 16 and biases of 1: within the largest row of half of 2·16 + 16 + 16·16 + 16 + 16 + 1 = 337.
    assert 168 - 16 < count_dynamic(found['masks'], found['params']['static']) <= 168
    assert [layer.weight.shape for layer in found['masks'].layers] == [(16, 1), (16, 1), (1, 1)]


def check_flax(found):
    # Half of 3·3·1·8 + 3·3·8·16 = 1224 positions, in groups of 9 and of 72.
    sizes = zip(found['masks'].values(), (9, 72), strict=True)
    counts = [int(mask['kernel_mask'].sum()) * size for mask, size in sizes]
    assert 612 - 72 < sum(counts) <= 612
    assert found['logits'].shape == (4, 10)


def check_nnx(found):
    masks = found['found'].masks
    # In groups of 27 of 216, and of 17 of 272 positions: half of 488, but for less than the largest group.
    kept = 27 * int(masks['conv']['kernel_mask'].sum()) + 17 * int(masks['ffn']['neurons_mask'].sum())
    assert 244 - 27 < kept <= 244
    np.testing.assert_array_equal(found['network'].conv.kernel_mask[...], masks['conv']['kernel_mask'])
    assert found['logits'].shape == (8, 4)


def check_mesh(found):
    np.testing.assert_allclose(found['together'], found['alone'], rtol=1e-5)


def check_mixture(found):
    assert found['mixed'].shape == (2, 5, 8) and not found['mixed'][1, 3:].any()
    assert found['aux']['load'].shape == (4,)


def check_compact(found):
    assert found['difference'] < 1e-5
    np.testing.assert_array_equal(found['restored']['partition']['kernel_mask'], found['masks']['kernel_mask'])
    np.testing.assert_array_equal(found['restored']['params']['kernel'][..., :3], found['params']['kernel'])


def check_loop(found):
    assert found['counts'] == [18, 10, 6] and found['devices'] == 8
    assert count_dynamic(found['together'], found['params']['static']) == 6


def check_criterion(found):
    kept = {name: mask.tolist() for name, mask in found['kept'].items()}
    assert kept == {'sensitivity': [False, True, False], 'squared': [True, False, False]}


CHECKS = {
    'Plain JAX': check_plain_jax,
    'Haiku': check_haiku,
    'Equinox': check_equinox,
    'Flax: ': check_flax,
    'Flax NNX': check_nnx,
    'On several devices': check_mesh,
    'Mixture': check_mixture,
    'Compact': check_compact,
    'In a loop of your own': check_loop,
    'A criterion of your own': check_criterion,
}


# The section on Equinox calls the functions of `partition` that other sections call too.
@pytest.mark.parametrize(
    'title', [pytest.param(title, marks=pytest.mark.slow) if 'Equinox' in title else title for title in read_sections()]
)
def test_a_section_runs(title, capsys):
    (check,) = [check for name, check in CHECKS.items() if title.startswith(name)]
    namespace = {'__name__': 'compose'}
    exec(compile(read_sections()[title], str(PAGE), 'exec'), namespace)
    check(namespace)
    if title.startswith(('Plain JAX', 'Compact')):
        assert capsys.readouterr().out.splitlines()[0] in PAGE.read_text()
