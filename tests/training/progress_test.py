import time

import pytest
from rich.console import Console

from pad_jax.training import progress
from pad_jax.training.progress import StepProgress

VALUES = {'loss': 0.12345, 'accuracy': 0.98437, 'κ': 0.3}


@pytest.fixture
def on_terminal(monkeypatch):
    """`on_terminal(width, label, ...)`: the progress of a run after 120 of 361 steps, 30 a second."""
    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])

    def make(width, label='train', steps=120, **values):
        console = Console(stderr=True, force_terminal=True, width=width, legacy_windows=False)
        monkeypatch.setattr(progress, 'Console', lambda **_: console)
        found = StepProgress(label, 361)
        if steps:
            found.update(1)
            now[0] += (steps - 1) / 30
            found.update(steps, **values)
        return found

    return make


@pytest.mark.parametrize('width', [80, 120])
@pytest.mark.parametrize('label', ['train', 'run 3 of 12, dynamic, seed 0', 'run 12/12, dynamic, seed 2'])
def test_what_matters_fits_on_a_terminal(on_terminal, capsys, width, label):
    found = on_terminal(width, label, **VALUES)
    line = found.line().plain
    assert line.startswith(label) and len(line) <= width
    assert '120/361 0:08 left 30.0/s loss 0.123 acc 0.984 κ 0.3' in line and '…' not in line
    # As rich puts it on the screen.
    found._console.print(found.line())
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    for text in ('120/361', '0:08 left', '30.0/s', 'loss', 'acc', 'κ'):
        assert text in shown


def test_a_narrow_terminal_cuts_the_values_and_not_the_time_left(on_terminal):
    assert on_terminal(45, **VALUES).line().plain == 'train 120/361 0:08 left 30.0/s loss 0.123 …'
    assert on_terminal(40, **VALUES).line().plain == 'train 120/361 0:08 left 30.0/s …'
    assert on_terminal(10, **VALUES).line().plain == 'train 120…'


def test_before_there_is_a_rate(on_terminal):
    assert on_terminal(40, steps=0).line().plain.endswith('   0/361 compiling')
    assert on_terminal(40, steps=1).line().plain.endswith('   1/361 compiled')


def test_plain_lines_elsewhere(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    with StepProgress('run 3 of 12', 361) as found:
        found.update(1)
        now[0] += 4
        found.update(121, **VALUES)
    assert capsys.readouterr().err.splitlines() == [
        'run 3 of 12: 361 steps',
        'run 3 of 12: step 121/361, 30.0 steps/s, 8 s left, loss 0.1235 accuracy 0.9844 κ 0.3',
    ]
