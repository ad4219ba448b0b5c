"""Fast execution of dynamic operators: arrays and geometry, no Flax. Skip this package on a first reading."""
