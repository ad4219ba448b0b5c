"""A sweep of one-block networks, in a process that can be killed.

small_sweep.py RUN FILE DIR SEEDS JOBS [section.key=value ...]; RUN is the script that trains one run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pad_jax.models import MODELS
from pad_jax.reports.sweep import run_sweep
from pad_jax.training.cli import exit_status
from tests.training.tiny import ONE_BLOCK

if __name__ == '__main__':
    MODELS['resnet10'] = ONE_BLOCK
    run, file, folder, seeds, jobs, *overrides = sys.argv[1:]
    command = [sys.executable, run]
    sys.exit(exit_status(lambda: run_sweep(Path(file), Path(folder), int(seeds), int(jobs), overrides, command)))
