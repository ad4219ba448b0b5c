"""Masks of the positions that are still dynamic: their granularity, and the two parts of a parameter.

A parameter without its stack axis has the shape `*shape`: `(H, W, C, F)` for a convolution, `(C, F)` for a matrix. Its
last axis are outputs, the one before inputs, and the other axes are spatial.

A mask is a bool array that broadcasts against `*shape`; its own shape is the granularity. A gate is its float copy, and
the scores are gradients with respect to it. All functions accept either.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

GRANULARITIES = ('element', 'output', 'input', 'spatial', 'layer')
SCALES = ('both', 'static', 'dynamic', 'none')


def mask_shape(shape: Sequence[int], granularity: str) -> tuple[int, ...]:
    """Return the shape of the mask of a parameter [*shape], without its stack axis.

    `element` has a gate for every position, `layer` a single one. `output` has a gate for every entry of the last axis.
    `input` has one for the axis before it, `spatial` for all other axes.

    Raises:
      ValueError: on an unknown granularity, or one that needs axes that the parameter lacks.

    >>> mask_shape((3, 3, 16, 32), 'output')
    (1, 1, 1, 32)
    >>> mask_shape((3, 3, 16, 32), 'spatial')
    (3, 3, 1, 1)
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f'granularity must be one of {", ".join(GRANULARITIES)}, got {granularity!r}')
    shape, needed = tuple(shape), {'output': 1, 'input': 2, 'spatial': 3}.get(granularity, 0)
    if len(shape) < needed:
        raise ValueError(f'granularity {granularity!r} needs a parameter of at least {needed} axes, got shape {shape}')
    axes = range(-len(shape), 0)
    gated = {'element': axes, 'output': [-1], 'input': [-2], 'spatial': axes[:-2], 'layer': []}[granularity]
    return tuple(size if axis in gated else 1 for axis, size in zip(axes, shape, strict=True))


def mask_granularity(gates: Sequence[int]) -> str:
    """Return the granularity of a mask of that shape, the coarsest of several.

    >>> mask_granularity((1, 1, 1, 32)), mask_granularity((3, 3, 1, 32)), mask_granularity((1, 1))
    ('output', 'element', 'layer')
    """
    gated = tuple(axis - len(gates) for axis, size in enumerate(gates) if size != 1)
    by_axes = {(): 'layer', (-1,): 'output', (-2,): 'input'}
    return by_axes.get(gated) or ('spatial' if gated[-1] < -2 else 'element')


def gate_axis(shape: Sequence[int], granularity: str) -> tuple[tuple[int, ...], int]:
    """Return a view of a position tensor, and its axis (negative) with one entry for each gate.

    A layer has one gate for all of its outputs. Taps of a kernel are flattened in C order, and so are elements.

    >>> gate_axis((3, 3, 16, 32), 'spatial'), gate_axis((3, 3, 16, 32), 'element')
    (((9, 16, 32), -3), ((4608,), -1))
    """
    shape = tuple(shape)
    if granularity == 'element':
        return (math.prod(shape),), -1
    if granularity == 'spatial':
        return (math.prod(shape[:-2]), *shape[-2:]), -3
    return shape, -2 if granularity == 'input' else -1


def leaf_names(tree) -> list[str]:
    """Return the path of every leaf, joined by '/', in the order of jax.tree.leaves.

    >>> leaf_names({'conv': {'kernel': 0, 'bias': 1}})
    ['conv/bias', 'conv/kernel']
    """
    return [
        jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def init_masks(positions, granularity: str = 'element'):
    """Make all-dynamic masks for a pytree of position tensors (arrays, or objects with a `.shape`)."""
    masks = []
    for name, leaf in zip(leaf_names(positions), jax.tree.leaves(positions), strict=True):
        try:
            masks.append(jnp.ones(mask_shape(leaf.shape, granularity), bool))
        except ValueError as error:
            raise ValueError(f'{name}: {error}' if name else str(error)) from None
    return jax.tree.unflatten(jax.tree.structure(positions), masks)


def scale_factors(phi, scales: str = 'both'):
    """Return (λd, λs) from φ: λd = 2σ(φ), λs = 2 − λd; a factor that `scales` leaves out is 1.

    `scales` is one of `SCALES`. At φ = 0 both factors are 1, so a layer starts unscaled.
    """
    if scales not in SCALES:
        raise ValueError(f'scales must be one of {", ".join(SCALES)}, got {scales!r}')
    dynamic_scale = 2 * jax.nn.sigmoid(phi)
    return (
        dynamic_scale if scales in ('both', 'dynamic') else 1.0,
        2 - dynamic_scale if scales in ('both', 'static') else 1.0,
    )


def split(dynamic, static, mask, dynamic_scale=1.0, static_scale=1.0):
    """Return the two parts of a partially dynamic parameter (paper, eq. 7).

        dynamic_part = λd · mask · dynamic          [K, *shape]
        static_part  = λs · (1 − mask) · static     [*shape]

    Args:
      dynamic: float[K, *shape], the dynamic factors.
      static: float[*shape], the static parameters.
      mask: bool or float, broadcasts against `*shape`; True or 1 = dynamic.
      dynamic_scale, static_scale: λd and λs, scalars.
    """
    gate = jnp.asarray(mask, dynamic.dtype)
    return scale_values(dynamic_scale, gate[None] * dynamic), scale_values(static_scale, (1 - gate) * static)


def scale_values(factor, values):
    """Multiply values by a scalar factor, as a product of matrices.

    So the gradient of the factor is a product of vectors. A plain product would have a sum over all positions there.
    XLA on CPU is slow at it: a partially dynamic layer would spend most of its step in this sum.
    """
    if isinstance(factor, (int, float)):
        return factor * values
    factor = jnp.asarray(factor, values.dtype).reshape(1, 1)
    return jax.lax.dot(factor, values.reshape(1, -1), precision=jax.lax.Precision.HIGHEST).reshape(values.shape)


def merge(dynamic, static, mask, dynamic_scale=1.0, static_scale=1.0):
    """Return effective factors float[K, *shape]: the static part added to every dynamic one.

    They are right for mixing weights that sum to one: Σ_k α_k (d_k + s) = Σ_k α_k d_k + s. The operator that mixes the
    factors then needs no mask.

    >>> merge(jnp.array([[1., 2.], [3., 4.]]), jnp.array([9., 9.]), jnp.array([True, False])).tolist()
    [[1.0, 9.0], [3.0, 9.0]]
    """
    dynamic_part, static_part = split(dynamic, static, mask, dynamic_scale, static_scale)
    # Repeated by hand, not by broadcasting, so the gradient is K − 1 additions. XLA's reduction over the stack axis on
    # CPU takes longer than all other steps of the merge.
    return dynamic_part + jnp.concatenate([static_part[None]] * dynamic.shape[0])


def group_size(mask, position) -> int:
    """Return the number of positions that one gate of `mask` decides for; both need only a `.shape`.

    Raises:
      ValueError: if the mask doesn't broadcast against the positions axis by axis.
    """
    shape, gates = tuple(position.shape), tuple(mask.shape)
    if len(shape) != len(gates) or any(gate not in (1, size) for gate, size in zip(gates, shape, strict=True)):
        raise ValueError(f'a mask of shape {gates} does not broadcast against positions of shape {shape}')
    return math.prod(shape) // math.prod(gates)


def count_positions(positions) -> int:
    """Count the positions n in a pytree of position tensors."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(positions))


def count_dynamic(masks, positions) -> int:
    """Count the positions that `masks` keeps dynamic (reads the masks' values)."""
    counts = jax.tree.map(lambda mask, leaf: int(mask.sum()) * group_size(mask, leaf), masks, positions)
    return sum(jax.tree.leaves(counts))


def dynamic_fraction(masks, positions) -> float:
    """Return κ in [0, 1]: dynamic positions / positions; 0 without positions."""
    return count_dynamic(masks, positions) / max(1, count_positions(positions))


def dynamic_share(fraction: float, num_factors: int) -> float:
    """Return the share of a layer's parameters that are dynamic, Kκ / (1 − κ + Kκ), in [0, 1].

    The paper's tables count this way; report it beside κ.

    >>> round(dynamic_share(0.1, 4), 3)
    0.308
    """
    return num_factors * fraction / (1 - fraction + num_factors * fraction)
