"""Real processes that are killed: one in the default suite, the rest by `make chaos`."""

import pytest

from tests.chaos.chaos import NETWORKS, PHASES, kill_again_and_again, kill_at_every_write

SEED = 20_240


def say(line):
    print(line, flush=True)


def test_a_kill(tmp_path):
    counts = kill_again_and_again('resnet', tmp_path, kills=1, seed=SEED, say=say, twice=False)
    assert sum(counts[phase] for phase in PHASES) == 1


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_fifty_kills_at_random_moments(name, tmp_path):
    say(f'seed {SEED}')
    counts = kill_again_and_again(name, tmp_path, kills=50, seed=SEED, say=say)
    assert sum(counts[phase] for phase in PHASES) == 50
    say(f'{name}: {counts}')


@pytest.mark.slow
def test_a_kill_at_every_write(tmp_path):
    kills = kill_at_every_write('resnet', tmp_path, say=say)
    assert kills > 30
    say(f'{kills} kills, each at another write')
