"""Masks of a seed equal those of before the rebuild, except for scores near the threshold. Ends with the rebuild."""

import os
import pathlib

import jax
import numpy as np
import pytest

from pad_jax.partition import rounds
from pad_jax.training import trainer
from pad_jax.training.config import load_config

HERE = pathlib.Path(__file__).parent
CIFAR = pathlib.Path(os.environ.get('CIFAR_SUBSET', 'missing'))
CASES = {
    'digits': ('digits_resnet10_pad', []),
    'digits_output': ('digits_resnet10_pad', ['partition.granularity=output']),
    'digits_rounds': (
        'digits_resnet10_pad',
        ['partition.rounds=3', 'partition.scope=layer', 'partition.criterion=grasp'],
    ),
    'cifar': ('cifar_resnet10_pad', [f'data.path={CIFAR}']),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_masks(name, tmp_path, monkeypatch):
    config, overrides = CASES[name]
    if name == 'cifar' and not CIFAR.exists():
        pytest.skip('CIFAR_SUBSET does not name a folder with the CIFAR-10 subset')
    chosen, real = [], rounds.select_positions

    def record(scores, masks, *rest, **options):
        chosen.append(jax.device_get((real(scores, masks, *rest, **options), scores)))
        return chosen[-1][0]

    monkeypatch.setattr(rounds, 'select_positions', record)
    ends = ['train.steps=1', 'train.eval_every_steps=1', 'partition.start_step=0', 'optim.warmup_steps=0']
    path = HERE.parents[1] / 'configs' / f'{config}.py'
    trainer.train(load_config(str(path), [*overrides, *ends]), tmp_path / 'run')
    masks, scores = (dict(flat(tree)) for tree in chosen[-1])
    kept = np.load(HERE / f'{name}.npz')
    assert masks.keys() == {key.rsplit(':', 1)[0] for key in kept if ':' in key}
    differing = total = 0
    for leaf, mask in masks.items():
        shape = tuple(kept[f'{leaf}:shape'])
        before = np.unpackbits(kept[f'{leaf}:mask'], count=mask.size).astype(bool)
        assert mask.shape == shape
        changed = np.flatnonzero(before != mask.ravel())
        assert set(changed) <= set(kept[f'{leaf}:near']), f'{leaf}: {len(changed)} positions'
        sample = kept[f'{leaf}:sample']
        np.testing.assert_allclose(
            scores[leaf].ravel()[: len(sample)], sample, rtol=2e-3, atol=1e-3 * np.abs(sample).max()
        )
        differing, total = differing + len(changed), total + mask.size
    print(f'{name}: {differing} of {total} gates differ')
    assert differing <= total / 1000


def flat(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator='/'), np.asarray(leaf)
