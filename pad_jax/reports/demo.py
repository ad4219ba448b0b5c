"""The demo: four networks on embedded digits, trained over seeds, compared in a table and two pictures."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pad_jax.errors import BadInput
from pad_jax.reports.compare import compare_networks
from pad_jax.reports.plots import plot_dynamic_fractions, plot_training_curves, save_figure
from pad_jax.reports.runs import read_network
from pad_jax.reports.tables import print_line, print_table
from pad_jax.training.cli import check_count
from pad_jax.training.config import load_config
from pad_jax.training.trainer import train

NETWORKS = ('static', 'dynamic', 'pad', 'random')
"""A static network, a fully dynamic one, and two partially dynamic ones, by sensitivity and at random."""


def run_demo(workdir: Path, configs: Path, seeds: int, overrides: Sequence[str] = ()) -> None:
    """Train configs/digits_resnet10_NETWORK.py for every network and seed, and compare the networks.

    The run of a network and a seed is workdir/NETWORK/seed_N. Finished runs are kept and interrupted ones resumed.
    All run in this process, so that equal networks share their compilation. The results are a table on stdout,
    workdir/training_curves.png and workdir/dynamic_fractions.png.

    Args:
      workdir: folder of the runs and pictures; created.
      configs: folder of the config files.
      seeds: runs of each network, 1 to 1,000, with the seeds 0, 1, ...
      overrides: 'section.key=value' for all runs.

    Raises:
      BadInput: before the first run, if seeds, configs or overrides are wrong.
    """
    check_count('--seeds', seeds)
    if any(override.startswith('train.seed=') for override in overrides):
        raise BadInput('train.seed cannot be changed: --seeds=N trains with the seeds 0 to N - 1')
    # Interleave the networks, so that a machine that becomes slower does so for all of them.
    runs = {
        (name, seed): load_config(str(configs / f'digits_resnet10_{name}.py'), [*overrides, f'train.seed={seed}'])
        for seed in range(seeds)
        for name in NETWORKS
    }
    with_seeds = 'seed 0' if seeds == 1 else f'seeds 0 to {seeds - 1}'
    _say(
        f'{len(runs)} runs in {workdir}: {", ".join(NETWORKS)}, each with {with_seeds}. '
        'The first run of each network compiles. Finished runs are kept.'
    )
    start = time.monotonic()
    for number, ((name, seed), config) in enumerate(runs.items(), start=1):
        train(config, _run_folder(workdir, name, seed), f'run {number} of {len(runs)}, {name}, seed {seed}')
        left = len(runs) - number
        said = 'all runs are done' if left == 0 else f'{left} {"run" if left == 1 else "runs"} left'
        _say(f'{said}, {time.monotonic() - start:.0f} s so far')
    report_demo(workdir, seeds)


def report_demo(workdir: Path, seeds: int) -> None:
    """Print the table of finished runs and draw the pictures."""
    networks = [read_network(name, [_run_folder(workdir, name, seed) for seed in range(seeds)]) for name in NETWORKS]
    print_table(compare_networks(networks, 'Digits: static, dynamic and partially dynamic networks'))
    partitions = {
        f'{network.name}: {network.runs[0].kind}': [run.partition for run in network.runs]
        for network in networks
        if network.has_partition
    }
    first_look = len(networks) - len(partitions)  # the partially dynamic networks are the last ones
    pictures = {
        'training_curves.png': plot_training_curves(networks),
        'dynamic_fractions.png': plot_dynamic_fractions(partitions, first_look),
    }
    for name, figure in pictures.items():
        save_figure(figure, workdir / name)
        print_line(f'Picture: {workdir / name}')
    print_line(f'Runs: {workdir}/NETWORK/seed_N (python -m pad_jax inspect --workdir=... shows the partition of one)')


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run_folder(workdir: Path, name: str, seed: int) -> Path:
    return workdir / name / f'seed_{seed}'
