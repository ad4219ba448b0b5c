import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.training.devices import PARALLEL, Replicas
from pad_jax.training.optimizer import make_optimizer
from pad_jax.training.state import init_state
from pad_jax.training.steps import find_nan, train_step
from pad_jax.training.tasks import IMAGES, image_inputs

BATCH = {'image': np.ones((4, 8, 8, 1), np.float32), 'label': np.zeros(4, np.int32)}


class Root(nn.Module):
    """Finite forward; backward, the infinite slope of a root at zero is multiplied by 0."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(10, kernel_init=nn.initializers.zeros)(images.mean(axis=(1, 2)))
        return 0 * jnp.sqrt(x), {}  # the line


def line_of(text):
    return next(number for number, line in enumerate(open(__file__), start=1) if text in line)


def test_a_nan_of_the_backward_pass_has_a_line_of_the_model():
    optimizer = make_optimizer('sgd', 0.1, 'constant', 0, 0.0, 0.0, 5)
    state = init_state(Root(), optimizer, image_inputs((8, 8, 1)), 0)
    found = find_nan(functools.partial(train_step, task=IMAGES, model=Root(), optimizer=optimizer), state, BATCH)
    line = line_of('# the line')
    assert found == f'invalid value (nan) encountered in mul, in __call__ ({__file__}, line {line})'


@pytest.mark.parametrize(
    ('function', 'argument', 'operation'),
    [
        (lambda x: jnp.log(x - 2), 1.0, 'log'),
        (lambda x: jax.jit(lambda y: jnp.sqrt(y) + 1)(-x), 1.0, 'sqrt'),  # within a compiled function
        (lambda x: jax.nn.relu(x) / (x - x), 0.0, 'div'),
        (lambda x: jax.lax.scan(lambda carry, _: (jnp.log(carry), None), x, length=3)[0], 1.0, 'scan'),
    ],
)
def test_the_first_operation_that_makes_one_is_named(function, argument, operation):
    found = find_nan(function, jnp.float32(argument))
    assert f'encountered in {operation}, in <lambda> ({__file__}, line ' in found


def test_finite_numbers_are_not_blamed():
    assert find_nan(lambda x: x + 1, jnp.float32(1)) is None
    assert find_nan(lambda x, key: x * jax.random.uniform(key), jnp.float32(1), jax.random.key(0)) is None


@pytest.mark.parametrize('strategy', PARALLEL)
def test_under_nan_checks_the_state_before_the_step_is_still_there(strategy):
    replicas = Replicas(strategy, jax.local_devices()[:2])
    step = replicas.map_step(lambda state, batch, axis_name: (state - batch.sum(), {}), donate=True)
    state, batch = replicas.place_state(jnp.float32(np.inf)), replicas.place_batch(np.full(2, np.inf, np.float32))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        step(state, batch)
    assert float(replicas.fetch(state)) == np.inf
