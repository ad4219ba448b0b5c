"""The main job: four networks on embedded digits, trained over seeds, compared and drawn."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pad_jax.errors import BadInput
from pad_jax.reports.comparison import compare_networks
from pad_jax.reports.plots import plot_dynamic_fractions, plot_training_curves, save_figure
from pad_jax.reports.runs import read_network
from pad_jax.reports.tables import print_line, print_table
from pad_jax.training.config import load_config
from pad_jax.training.trainer import train

NETWORKS = ('static', 'dynamic', 'pad', 'random')
"""A static network, a fully dynamic one, and partially dynamic ones by sensitivity and at random."""


def run_demo(workdir: Path, configs: Path, seeds: int, overrides: Sequence[str] = ()) -> None:
    """Trains configs/digits_resnet10_NETWORK.py for every network and seed, and compares them.

    The run of a network and a seed goes to workdir/NETWORK/seed_N; one that is there is gone on with, or kept if it is
    finished. All run in this process, where equal networks share what was compiled. Ends with a table on stdout,
    workdir/training_curves.png and workdir/dynamic_fractions.png.

    Args:
      workdir: folder of all that is written; created.
      configs: folder of the config files.
      seeds: runs of each network, at least 1; their seeds are 0, 1, ...
      overrides: 'section.key=value' for all runs.

    Raises:
      BadInput: before anything is written, if it can be told.
    """
    if seeds < 1:
        raise BadInput(f'--seeds must be at least 1, got {seeds}')
    if any(override.startswith('train.seed=') for override in overrides):
        raise BadInput('train.seed cannot be changed: --seeds=N trains with the seeds 0 to N - 1')
    # Interleaved, so that a machine that gets slower or faster does so for all networks.
    runs = {
        (name, seed): load_config(str(configs / f'digits_resnet10_{name}.py'), [*overrides, f'train.seed={seed}'])
        for seed in range(seeds)
        for name in NETWORKS
    }
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    with_seeds = 'seed 0' if seeds == 1 else f'seeds 0 to {seeds - 1}'
    say(
        f'{len(runs)} runs in {workdir}: {", ".join(NETWORKS)}, each with {with_seeds}. '
        'The first of each compiles; those that are finished already are kept.'
    )
    start = time.monotonic()
    for number, ((name, seed), config) in enumerate(runs.items(), start=1):
        label = f'run {number} of {len(runs)}, {name}, seed {seed}'
        train(config, _run_folder(workdir, name, seed), label)
        left = len(runs) - number
        left = 'all runs are done' if left == 0 else f'{left} {"run" if left == 1 else "runs"} left'
        say(f'{left}, {time.monotonic() - start:.0f} s so far')
    report_demo(workdir, seeds)


def report_demo(workdir: Path, seeds: int) -> None:
    """Prints the table of finished runs and draws the pictures."""
    networks = [read_network(name, [_run_folder(workdir, name, seed) for seed in range(seeds)]) for name in NETWORKS]
    print_table(compare_networks(networks, 'Digits: static, dynamic and partially dynamic networks'))
    pictures = {
        'training_curves.png': plot_training_curves(networks),
        'dynamic_fractions.png': plot_dynamic_fractions(networks),
    }
    for name, figure in pictures.items():
        save_figure(figure, workdir / name)
        print_line(f'Picture: {workdir / name}')
    print_line(f'Runs: {workdir}/NETWORK/seed_N (python -m pad_jax inspect --workdir=... shows the partition of one)')


def _run_folder(workdir: Path, name: str, seed: int) -> Path:
    return workdir / name / f'seed_{seed}'
