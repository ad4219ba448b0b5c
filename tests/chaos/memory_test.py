"""A long run takes no more memory than a short one."""

import gc
from pathlib import Path

import pytest

from pad_jax.training import trainer
from pad_jax.training.trainer import train
from tests.training.tiny import one_device, small_config

LONG = {'train__steps': 12_000, 'train__log_every_steps': 10, 'train__eval_every_steps': 500}


def allocated():
    """Bytes that this process has of its own, in memory or swapped out; what it maps of files may come and go."""
    gc.collect()
    lines = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    return 1024 * sum(int(lines[name].split()[0]) for name in ('RssAnon', 'VmSwap'))


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='asks Linux')
@pytest.mark.usefixtures('one_block')
def test_memory_does_not_grow_over_ten_thousand_steps(monkeypatch, tmp_path):
    """With rows, evaluations and checkpoints; after 2000 steps everything has been there once."""
    sizes = {}
    inner = trainer.Run.train

    def noted(run, step, batch):
        if step % 1000 == 0:
            sizes[step] = allocated()
            print(f'step {step}: {sizes[step] / 2**20:.1f} MiB', flush=True)
        inner(run, step, batch)

    monkeypatch.setattr(trainer.Run, 'train', noted)
    config = small_config(**LONG, train__checkpoint_every_steps=500, model__width_multiplier=1 / 64)
    train(config, tmp_path / 'run', devices=one_device())
    growth = sizes[12_000] - sizes[2000]
    # A leak of a kilobyte a step would be ten times that.
    assert growth < 2**20, f'{growth / 2**20:.2f} MiB more after 10,000 steps: {sizes}'
