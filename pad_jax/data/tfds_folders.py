"""Former names of `pad_jax.data.prepared`, until glue uses the new ones."""

from pad_jax.data.prepared import find_prepared as find_readable_set

__all__ = ['find_readable_set']
