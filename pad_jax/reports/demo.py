"""The demo: language models on Python's own library, then networks on digits, compared in tables and pictures."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pad_jax.errors import BadInput, check_choice
from pad_jax.reports.compare import compare_networks
from pad_jax.reports.plots import plot_dynamic_fractions, plot_tradeoff, plot_training_curves, save_figure
from pad_jax.reports.runs import read_network
from pad_jax.reports.tables import print_line, print_table
from pad_jax.training.cli import check_count
from pad_jax.training.config import load_config
from pad_jax.training.trainer import train


class Half(NamedTuple):
    """Networks that are compared with one another: those of configs/PREFIX_NETWORK.py."""

    title: str
    prefix: str
    networks: tuple[str, ...]  # one without dynamics, a fully dynamic one, and partially dynamic ones
    seeds: int  # by default
    changes: tuple[str, ...] = ()  # overrides of the configs, before those of the user


HALVES = {
    'lm': Half(
        'Bytes of Python: a dense, a dynamic and two partially dynamic language models of equal multiply-adds',
        'lm',
        ('dense', 'moe', 'pad', 'random'),
        seeds=1,
        changes=('train.steps=600', 'train.eval_every_steps=200'),
    ),
    'digits': Half(
        'Digits: static, dynamic and partially dynamic networks',
        'digits_resnet10',
        ('static', 'dynamic', 'pad', 'random'),
        seeds=2,
    ),
}


def run_demo(
    workdir: Path, configs: Path, seeds: int | None = None, only: str | None = None, overrides: Sequence[str] = ()
) -> None:
    """Train the networks of both halves for every seed, and compare them.

    The run of a network and a seed is workdir/HALF/NETWORK/seed_N. Finished runs are kept and interrupted ones resumed.
    All run in this process, so that equal networks share their compilation. Each half has a table on stdout and its
    pictures in workdir/HALF: training_curves.png and dynamic_fractions.png, for language models also
    loss_against_parameters.png.

    Args:
      workdir: folder of the runs and pictures; created.
      configs: folder of the config files.
      seeds: runs of each network, 1 to 1,000, with the seeds 0, 1, ...; None: as many as the half has by default.
      only: a key of HALVES; None: both.
      overrides: 'section.key=value' for all runs.

    Raises:
      BadInput: before the first run, if an argument, a config or an override is wrong.
    """
    check_count('--seeds', 1 if seeds is None else seeds)
    check_choice('--only', only or 'lm', HALVES)
    if any(override.startswith('train.seed=') for override in overrides):
        raise BadInput('train.seed cannot be changed: --seeds=N trains with the seeds 0 to N - 1')
    # Interleave the networks, so that a machine that becomes slower does so for all of them.
    runs = {
        (name, network, seed): load_config(
            str(configs / f'{half.prefix}_{network}.py'), [*half.changes, *overrides, f'train.seed={seed}']
        )
        for name, half in HALVES.items()
        if only in (None, name)
        for seed in range(seeds or half.seeds)
        for network in half.networks
    }
    _say(f'{len(runs)} runs in {workdir}. The first run of each network compiles. Finished runs are kept.')
    start = time.monotonic()
    for number, ((name, network, seed), config) in enumerate(runs.items(), start=1):
        label = f'run {number} of {len(runs)}, {name} {network}, seed {seed}'
        train(config, _run_folder(workdir / name, network, seed), label)
        left = len(runs) - number
        said = 'all runs are done' if left == 0 else f'{left} {"run" if left == 1 else "runs"} left'
        _say(f'{said}, {time.monotonic() - start:.0f} s so far')
    for name in dict.fromkeys(name for name, *_ in runs):
        report_half(workdir / name, HALVES[name], seeds or HALVES[name].seeds)


def report_half(workdir: Path, half: Half, seeds: int) -> None:
    """Print the table of the finished runs of a half and draw its pictures."""
    networks = [
        read_network(name, [_run_folder(workdir, name, seed) for seed in range(seeds)]) for name in half.networks
    ]
    print_table(compare_networks(networks, half.title))
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
    if networks[0].measure.better == 'lower':
        pictures['loss_against_parameters.png'] = plot_tradeoff(networks, 'parameters', 'parameters')
    for name, figure in pictures.items():
        save_figure(figure, workdir / name)
        print_line(f'Picture: {workdir / name}')
    print_line(f'Runs: {workdir}/NETWORK/seed_N (python -m pad_jax inspect --workdir=... shows the partition of one)')


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run_folder(workdir: Path, name: str, seed: int) -> Path:
    return workdir / name / f'seed_{seed}'
