"""Where a params pytree keeps its partially dynamic parameters."""

import dataclasses

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PartialParameter:
    """Record of one partially or fully dynamic parameter, declared by the layer that holds it.

    It is hashable, has no arrays and is a pytree without leaves. So gradients, jit and checkpoints never see it.

    Attributes:
      factors: name of the stack [K, *shape] in the module's params.
      shape: shape of one factor.
      granularity: of its mask, one of `GRANULARITIES`; None if the parameter is fully dynamic.
      static: name of the static parameter [*shape]; None if the parameter is fully dynamic or pruned.
      scale: name of φ; None without scale factors.
      scales: which of λd and λs are used, one of `SCALES`.
      copies_at: multiple of the static parameter at which factors are copies of it: 1 / sum of the mixing weights.
      generated: True if the network computes with generated values instead of a mixture of the factors.
      linear: True if the scale factors may be folded into the parameters.
      beside: names of parameters [*shape] that are dead at static positions.
      layer: path of the layer it belongs to, relative to its module: '' for the module, '..' for the one around it.
    """

    factors: str
    shape: tuple[int, ...]
    granularity: str | None = None
    static: str | None = None
    scale: str | None = None
    scales: str = 'none'
    copies_at: float = 1.0
    generated: bool = False
    linear: bool = True
    beside: tuple[str, ...] = ()
    layer: str = ''

    @property
    def is_pruned(self) -> bool:
        """True if positions that are not dynamic are zero."""
        return self.granularity is not None and self.static is None
