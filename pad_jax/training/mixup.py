"""Mixup: training on convex combinations of two examples.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412: an image is λ·its own +
(1 − λ)·another's, and so is its loss, with one λ ~ Beta(α, α) a step. The other example is its neighbour, the first
with the second, the third with the fourth, as the order of the examples is random already: so what is mixed depends on
no more than the batch and the step, and not on how many devices it is spread over.

Axis letters: B examples.
"""

import jax

PARTNER = 'partner_label'
# Folded into a step's key: a number that no replica has.
_STREAM = 2**32 - 1


def draw_share(step_key: jax.Array, concentration: float) -> jax.Array:
    """λ in [0, 1] of a step, which is the same on all replicas if their `step_key` is."""
    return jax.random.beta(jax.random.fold_in(step_key, _STREAM), concentration, concentration)


def mix_neighbours(batch, share: jax.Array | float):
    """The batch with images mixed, and besides `label` [B] the partners' as `partner_label` [B].

    Args:
      batch: `image` float[B, ...] and `label`; B is even.
      share: λ, of an example itself.

    >>> batch = {'image': jax.numpy.array([[0.0], [8.0]]), 'label': jax.numpy.array([1, 2])}
    >>> mixed = mix_neighbours(batch, 0.75)
    >>> mixed['image'].tolist(), mixed['partner_label'].tolist()
    ([[2.0], [6.0]], [2, 1])
    """
    image, label = batch['image'], batch['label']
    return {**batch, 'image': share * image + (1 - share) * _swap(image), PARTNER: _swap(label)}


def _swap(rows):
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)
