import time

import pytest
import rich.console

from pad_jax.training import progress
from pad_jax.training.progress import StepProgress

VALUES = {'loss': 0.12345, 'accuracy': 0.98437, 'κ': 0.3}


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    for module, name in ((time, 'monotonic'), (rich.console, 'monotonic')):
        monkeypatch.setattr(module, name, lambda: now[0])
    return now


@pytest.fixture
def shown(monkeypatch, clock, capsys):
    """`shown(width, label, steps)`: the live line on a terminal after so many of 361 steps, 30 a second."""

    def show(width, label='train', steps=120):
        console = rich.console.Console(stderr=True, force_terminal=True, width=width, legacy_windows=False)
        monkeypatch.setattr(progress, 'Console', lambda **_: console)
        found = StepProgress(label, 361)
        if steps:
            found.update(1)
            clock[0] += (steps - 1) / 30
            found.update(steps, **VALUES)
            found.update(steps)
        console.no_color = True
        console.print(found._live)
        return capsys.readouterr().err.removesuffix('\n')

    return show


@pytest.mark.parametrize('label', ['train', 'run 3 of 12, dynamic, seed 0'])
def test_what_matters_fits_on_a_terminal(shown, label):
    assert shown(80, label).rstrip() == f'{label} 120/361 00:09 left 30/s loss 0.123 acc 0.984 κ 0.3'


def test_a_narrow_terminal_and_the_start(shown):
    assert shown(45) == 'train 120/361 00:09 left 30/s loss 0.123 acc…'
    assert shown(40, steps=0).rstrip() == 'train   0/361 --:-- left compiling'


def test_plain_lines_elsewhere(clock, capsys):
    with StepProgress('run 3 of 12', 361) as found:
        found.update(1)
        clock[0] += 4
        found.update(121, **VALUES)
    assert capsys.readouterr().err.splitlines() == [
        'run 3 of 12: 361 steps',
        'run 3 of 12: step 121/361, 8 s left, 30/s loss 0.123 acc 0.984 κ 0.3',
    ]
