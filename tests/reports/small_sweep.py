"""small_sweep.py CELL FILE DIR SEEDS JOBS [section.key=value ...]: a sweep of one-block networks, in a process that
can be killed. CELL is the script that runs one cell.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pad_jax.models import MODELS
from pad_jax.reports.sweeps import run_sweep
from pad_jax.training.cli import exit_status
from tests.training.tiny import ONE_BLOCK

if __name__ == '__main__':
    MODELS['resnet10'] = ONE_BLOCK
    cell, file, folder, seeds, jobs, *overrides = sys.argv[1:]
    command = [sys.executable, cell]
    sys.exit(exit_status(lambda: run_sweep(Path(file), Path(folder), int(seeds), int(jobs), overrides, command)))
