"""Variables of networks that might have been trained."""

import jax
import numpy as np


def draw_variables(model, inputs):
    """Nothing is where it starts, and half of what can be dynamic is."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.dtype == bool:
            return generator.random(leaf.shape) < 0.5
        values = generator.normal(size=leaf.shape, scale=0.5).astype(np.float32)
        return 0.5 + values**2 if path[-1].key == 'var' else values

    return jax.tree_util.tree_map_with_path(draw, shapes)
