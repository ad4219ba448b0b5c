"""Workdirs of runs written by hand, and a reader of printed tables."""

import json
from pathlib import Path

from pad_jax.models import LayerCount, report_counts
from pad_jax.training.config import load_config

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'digits_resnet10_{}.py')


def write_run(workdir, config='pad', seed=0, accuracies=(0.5, 0.75), losses=(2.0, 1.0), dynamic=(6, 2), seconds=0.25):
    """Write a run of steps 10, 20, ... with dynamic layers of 10 and 20 positions, K = 4, and 7 other parameters.

    dynamic: dynamic positions of each layer; None for a static network with 37 other parameters.
    """
    workdir.mkdir(parents=True)
    nested = load_config(CONFIG.format(config), [f'train.seed={seed}']).to_dict()
    (workdir / 'config.json').write_text(json.dumps(nested))
    rows = []
    for index, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        step = 10 * (index + 1)
        rows.append({'step': step, 'split': 'train', 'loss': loss, 'accuracy': 0.0})
        rows.append({'step': step, 'split': 'eval', 'loss': 9.0, 'accuracy': accuracy})
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (workdir / 'timing.json').write_text(json.dumps({'seconds_per_step': seconds}))
    write_partition(workdir, dynamic)
    return workdir


def write_partition(workdir, dynamic=(6, 2), granularity='element'):
    layers = []
    if dynamic is not None:
        names = ('stage1/conv10', 'stage1/conv2')  # as pytrees sort them
        sizes = zip(names, (20, 10), reversed(dynamic), (2, 1), strict=True)
        layers = [LayerCount(name, size, count, 4, other) for name, size, count, other in sizes]
    rest = LayerCount('classifier', other_parameters=4 if layers else 37)
    content = {
        'layers': [{'name': layer.name, 'granularity': granularity, **report_counts([layer])} for layer in layers],
        'totals': report_counts([*layers, rest]),
        'rounds_done': 1,
        'rounds': 1,
    }
    (workdir / 'partition.json').write_text(json.dumps(content))


def cells(text, name):
    """Return the cells of the first row of a table that begins with a name."""
    line = next(line for line in text.splitlines() if line.startswith(f'│ {name} '))
    return [cell.strip() for cell in line.strip('│').split('│')]
