"""A small network that the tests of the partition share.

Axis letters: N rows, S space, C inputs, F outputs, K factors.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.partition import Layout, Part, Problem, merge

NUM_FACTORS = 3
SHAPES = {'first': (2, 3, 5), 'second': (1, 5, 2)}  # (S, C, F) of each layer
SCALES = {'first': (1.2, 0.8), 'second': (0.9, 1.1)}  # (λd, λs)


def make_params(seed=0, dtype=np.float32):
    """Two partially dynamic layers [S, C, F], each with a router float[S, C, K]."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    return {
        'dynamic': {name: draw(NUM_FACTORS, *shape) for name, shape in SHAPES.items()},
        'static': {name: draw(*shape) for name, shape in SHAPES.items()},
        'router': {name: draw(*shape[:2], NUM_FACTORS) for name, shape in SHAPES.items()},
    }


def make_batch(seed=1, num_rows=8, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        'x': rng.normal(size=(num_rows, *SHAPES['first'][:2])).astype(dtype),
        'y': rng.normal(size=(num_rows, SHAPES['second'][2])).astype(dtype),
    }


def layer(params, gates, name, x):
    """[N, S, C] -> ([N, F], routing weights [N, K])."""
    attention = jax.nn.softmax(jnp.einsum('nsc,sck->nk', x, params['router'][name]))
    factors = merge(params['dynamic'][name], params['static'][name], gates[name], *SCALES[name])
    return jnp.einsum('nk,nsc,kscf->nf', attention, x, factors), attention


def apply(params, gates, batch):
    hidden, first = layer(params, gates, 'first', batch['x'])
    outputs, second = layer(params, gates, 'second', jnp.tanh(hidden)[:, None])
    return outputs, {'first': first, 'second': second}


def loss_fn(params, gates, batch):
    return jnp.mean((apply(params, gates, batch)[0] - batch['y']) ** 2)


def output_fn(params, gates, batch):
    return apply(params, gates, batch)[0]


def routing_fn(params, gates, batch):
    return apply(params, gates, batch)[1]


class Scaled(Layout):
    """The plain layout, with the scale factors that `layer` uses."""

    def read(self, params, masks):
        if jax.tree.structure(params['static']) != jax.tree.structure(params['dynamic']):
            raise ValueError('the dynamic and the static parameters differ')
        return {name: Part(leaf, params['static'][name], *SCALES[name]) for name, leaf in params['dynamic'].items()}


SCALED = Scaled()

PROBLEM = Problem(loss_fn, SCALED, output_fn, routing_fn)
