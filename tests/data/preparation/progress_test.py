import io
import re

import pytest
from rich.console import Console

from pad_jax.data.preparation import progress as module
from pad_jax.data.preparation.progress import CountProgress


def test_plain_lines_at_first_now_and_then_and_at_the_end(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: clock[0])
    with CountProgress('writing train', 100, 'examples') as progress:
        for _ in range(100):
            clock[0] += 0.25
            progress.advance()
    assert capsys.readouterr().err.splitlines() == [
        'writing train: 100 examples',
        # The first line later than ten seconds: 41 × 0.25 s, and 59 to go.
        'writing train: 41/100 examples, 15 s left',
        'writing train: 82/100 examples, 4 s left',
        'writing train: 100/100 examples in 25.0 s',
    ]


@pytest.mark.parametrize('done', [3, 7])
def test_a_bar_with_counts_in_a_terminal(monkeypatch, done):
    screen = io.StringIO()
    monkeypatch.setattr(module, 'Console', lambda **_: Console(file=screen, force_terminal=True, width=100))
    with CountProgress('writing train', 7, 'examples') as progress:
        progress.advance(done)
    shown = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', screen.getvalue())
    assert 'writing train' in shown and re.search(rf'{done}/7 +examples', shown)
