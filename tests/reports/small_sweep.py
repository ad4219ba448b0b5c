"""A sweep of one-block networks, in a process that can be killed.

small_sweep.py RUN FILE DIR SEEDS JOBS [section.key=value ...]; RUN is the script that trains one run. With the
arguments of such a script it trains one itself.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pad_jax.models import MODELS
from pad_jax.reports.sweep import run_sweep, train_one
from pad_jax.training.cli import exit_status
from tests.training.tiny import ONE_BLOCK


def main():
    if len(sys.argv) < 6:
        return train_one()
    run, file, folder, seeds, jobs, *overrides = sys.argv[1:]
    run_sweep(Path(file), Path(folder), int(seeds), int(jobs), overrides, [sys.executable, run])


if __name__ == '__main__':
    MODELS['resnet10'] = ONE_BLOCK
    sys.exit(exit_status(main))
