"""Draws docs/figures/concepts.png: one dynamic convolution before and after its partition, with its real scores.

    python docs/figures/concepts.py [FILE]

The layer has K = 4 freshly drawn kernels of 3 × 3 for 8 outputs. Its input is 256 scanned digits.
Of its 72 positions 30 % stay dynamic.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pad_jax import DynamicConv, Problem, find_records
from pad_jax.partition import (
    Layout,
    dynamic_share,
    init_masks,
    num_dynamic_positions,
    partition_step,
    score_positions,
)

K, F, KAPPA = 4, 8, 0.3
NOTHING, STATIC, DYNAMIC = 0, 1, 2
KINDS = {'cmap': ListedColormap(['#FFFFFF', '#B8B8B8', '#0072B2']), 'vmin': NOTHING, 'vmax': DYNAMIC}


class Network(nn.Module):
    """The layer, and a classifier behind it."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(DynamicConv(F, (3, 3), num_kernels=K, granularity='element', name='layer')(images))
        return nn.Dense(10)(x.mean((1, 2)))


def partition() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(kernels [K, P, F], scores [P, F], mask bool[P, F])."""
    digits = load_digits()
    batch = jnp.asarray(digits.images[:256, ..., None] / 16, jnp.float32), jnp.asarray(digits.target[:256])
    network = Network()
    params = network.init(jax.random.key(0), batch[0])['params']

    def loss(params, gates, batch):
        logits = network.apply({'params': params, 'partition': gates}, batch[0])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], axis=1))

    problem = Problem(loss, Layout.of(find_records(network, batch[0])))
    masks = init_masks({'layer': {'kernel_mask': params['layer']['static_kernel']}})
    scores = score_positions(problem, params, masks, [batch], 'sensitivity')
    target = num_dynamic_positions(9 * F, KAPPA)
    mask = partition_step(problem, params, masks, batch, target)['layer']['kernel_mask']
    flat = [np.asarray(leaf).reshape(*leaf.shape[:-4], 9, F) for leaf in (scores['layer']['kernel_mask'], mask)]
    return np.asarray(params['layer']['kernel']).reshape(K, 9, F), *flat


def draw(kernels: np.ndarray, scores: np.ndarray, mask: np.ndarray) -> Figure:
    """Four panels from left to right: kernels, scores, mask, what is left to store."""
    figure = Figure(figsize=(11, 3.4), layout='constrained')
    before, score, kept, after = panels = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1.5))

    limit = np.abs(kernels).max()
    draw_stack(before, kernels, cmap='RdBu', vmin=-limit, vmax=limit)
    before.set_title(f'{K} kernels, {kernels[0].size} positions:\n{kernels.size} parameters, all dynamic')

    score.imshow(scores, cmap='viridis', interpolation='nearest')
    score.set(title='scores: |∂ loss / ∂ gate|\nof each position', xlabel=f'{F} outputs', ylabel='3 × 3 places')

    kept.imshow(np.where(mask, DYNAMIC, STATIC), interpolation='nearest', **KINDS)
    kept.set(title=f'mask: the best {mask.sum()} stay\ndynamic, κ = {mask.mean():.2f}', xlabel=f'{F} outputs')

    behind = np.where(mask, DYNAMIC, NOTHING)
    draw_stack(after, [np.where(mask, DYNAMIC, STATIC), *[behind] * (K - 1)], **KINDS)
    left, share = mask.size + (K - 1) * mask.sum(), dynamic_share(mask.mean(), K)
    after.set_title(f'{left} parameters: one static (grey)\nor {K} dynamic (blue, {share:.0%} of them)')
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def draw_stack(axes, layers, **colours) -> None:
    """K layers [P, F] one behind the other, the first in front."""
    step = 1.1
    room = step * (K - 1)
    for number in reversed(range(K)):
        left, top = step * number, room - step * number
        extent = (left, left + F, top + 9, top)
        axes.imshow(layers[number], extent=extent, interpolation='nearest', zorder=K - number, **colours)
        axes.add_patch(Rectangle((left, top), F, 9, fill=False, linewidth=0.8, zorder=K - number))
    axes.set(xlim=(-0.3, F + room + 0.3), ylim=(9 + room + 0.3, -0.3))


if __name__ == '__main__':
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix('.png')
    draw(*partition()).savefig(path, dpi=120)
    print(f'drawn: {path}')
