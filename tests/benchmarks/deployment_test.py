"""The benchmark of what is deployed: that it runs, and that its tables are of the networks that it says."""

import importlib
import re

import pytest

from pad_jax.models import MODELS
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ONE_BLOCK, ROOT


@pytest.fixture
def deployment(monkeypatch):
    # As when it is run as a script.
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)
    return importlib.import_module('benchmarks.deployment')


@pytest.mark.slow
def test_every_table_is_printed(deployment, capsys):
    with compiled_quickly():
        deployment.main(['--model=resnet10', '--image-size=64', '--repeats=1', '--plans=shift,patches'])
    out, err = capsys.readouterr()
    rows = [re.findall(r'[^│┃\s][^│┃]*[^│┃\s]|[^│┃\s]', line) for line in out.splitlines() if line.startswith('│')]
    memory, files, latency = rows[:4], rows[4:8], rows[8:]
    assert [row[0] for row in memory] == [row[0] for row in files] == list(deployment.FORMS)
    for row in memory:
        assert float(row[-1].removesuffix('%')) < 2
    # Names and shapes weigh more in the file of a small network than in that of ResNet-18.
    for row in files:
        assert 0.98 < float(row[3]) < 1.05
    assert [row[0] for row in latency if row[0] in deployment.FORMS] == list(deployment.FORMS)
    # The static network has no plan, each other one two, of which the best stands beside its name.
    assert len(latency) == 1 + 3 * 2 and latency[0][1] == '-'
    assert {plan for row in latency[1:] for plan in row if plan in ('shift', 'patches')} == {'shift', 'patches'}
    best = next(row for row in latency if row[0] == deployment.DYNAMIC)
    assert best[-1] == '1.00' and latency[0][3] == '1.00'
    assert 'resnet10: measuring 2 × 7 images' in err


@pytest.mark.parametrize('flag', ['--plans=grouped', '--image-size=32', '--repeats=0'])
def test_a_wrong_flag_says_what_is_allowed(deployment, capsys, flag):
    with pytest.raises(SystemExit):
        deployment.parse_options([flag])
    assert flag.split('=')[0] + ' must be' in capsys.readouterr().err
