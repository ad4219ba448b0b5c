"""Folder of a sweep, made of copies of one finished run with scores written by hand."""

import json
import shutil

from pad_jax.reports.sweep import Sweep, SweepRun, write_sweep
from pad_jax.training.config import flatten
from pad_jax.version import __version__

SCORES = {
    'base': {0: 0.5, 1: 0.75, 2: 0.625},
    'by_magnitude': {0: 0.625, 1: 0.8125, 2: 0.75},
    'static': {0: 0.25, 1: 0.75, 2: 0.5},
}
CHANGES = {'by_magnitude': {'partition.criterion': 'magnitude'}, 'static': {'model.conv': 'static'}}
STATIC_PARAMETERS = 123


def write_miniature(folder, run, scores=SCORES, planned=3):
    """Write runs with the scores {variant: {seed: accuracy}}, the loss 2 − accuracy, and step times 0.25 + seed."""
    config = read_json(run / 'config.json')
    folder.mkdir()
    changes = {name: change for name, change in CHANGES.items() if name in scores}
    write_sweep(folder, Sweep(__version__, 'digits_resnet10_pad.py', config, changes, seeds=planned))
    for name, by_seed in scores.items():
        for seed, score in by_seed.items():
            write_run(SweepRun(folder, name, seed).workdir, run, CHANGES.get(name, {}), seed, score)
    return folder


def write_run(workdir, run, changes, seed, score):
    shutil.copytree(run, workdir, ignore=shutil.ignore_patterns('tensorboard'))
    config = read_json(workdir / 'config.json')
    for key, value in {**changes, 'train.seed': seed}.items():
        section, name = key.split('.')
        assert key in flatten(config)
        config[section][name] = value
    write_json(workdir / 'config.json', config)
    write_json(workdir / 'timing.json', {'seconds_per_step': 0.25 + seed})
    change_rows(workdir, lambda row: row | ({'accuracy': score, 'loss': 2 - score} if row['split'] == 'eval' else {}))
    if changes.get('model.conv') == 'static':
        partition = read_json(workdir / 'partition.json')
        totals = dict.fromkeys(partition['totals'], 0) | {'parameters': STATIC_PARAMETERS}
        write_json(workdir / 'partition.json', partition | {'layers': [], 'totals': totals})


def leave_unfinished(workdir, step):
    """Return a run to an earlier checkpoint."""
    for checkpoint in (workdir / 'checkpoints').iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    assert (workdir / 'checkpoints' / str(step)).is_dir()
    (workdir / 'timing.json').unlink()


def change_rows(workdir, change):
    path = workdir / 'metrics.jsonl'
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def change_json(path, **values):
    write_json(path, read_json(path) | values)


def read_json(path):
    return json.loads(path.read_text())


def write_json(path, content):
    path.write_text(json.dumps(content))
