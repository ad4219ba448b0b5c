"""The benchmark of convolutions: each plan and granularity has a ratio, and the best plan of each shape has a name."""

import importlib
import json
import math

import pytest

from tests.training.fixtures import compiled_quickly
from tests.training.tiny import ROOT


@pytest.fixture
def conv(monkeypatch):
    # As when it is run as a script.
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    module = importlib.import_module('benchmarks.conv')
    small = (module.Shape(4, 8, 8, 3), module.Shape(6, 4, 4, 3, 2, 4), module.Shape(3, 8, 4, 1))
    monkeypatch.setattr(module, 'SHAPES', {'resnet': small})
    return module


@pytest.mark.slow
def test_every_plan_and_granularity_is_measured(conv, tmp_path, capsys):
    flags = ['--granularities=element,output', '--modes=forward', '--repeats=1', '--batch-size=2']
    with compiled_quickly():
        conv.main([*flags, f'--json={tmp_path / "conv.json"}'])
    out = capsys.readouterr().out
    report = json.loads((tmp_path / 'conv.json').read_text())
    for row in report['shapes']:
        ratios = row['ratios']['forward']
        assert ratios.keys() == {'static', *conv.PLANS, 'element', 'output'} and row['shape'] in out
        assert all(0 < ratio < math.inf for ratio in ratios.values()) and row['auto'] in conv.PLANS
    assert 'best' in out and 'geometric mean' in out


@pytest.mark.parametrize(
    ('flag', 'message'),
    [('--plans=fast', '--plans must be some of fused,shift,outputs, got fast'), ('--dynamic-fraction=1', 'got 1.0')],
)
def test_bad_flags(conv, flag, message, capsys):
    with pytest.raises(SystemExit):
        conv.main([flag])
    assert message in capsys.readouterr().err
