"""Real processes that are killed, by `make chaos`; trainer_test.py has the same promise within one process."""

import pytest

from tests.chaos.chaos import NETWORKS, kill_again_and_again, kill_at_every_write

pytestmark = pytest.mark.slow
SEED = 20_240


@pytest.mark.parametrize('name', NETWORKS)
def test_fifty_kills_at_random_moments(name, tmp_path):
    print(f'seed {SEED}', flush=True)
    counts = kill_again_and_again(name, tmp_path, kills=50, seed=SEED)
    assert sum(counts.values()) == 50
    print(f'{name}: {counts}', flush=True)


def test_a_kill_at_every_write(tmp_path):
    assert kill_at_every_write('resnet', tmp_path) > 30
