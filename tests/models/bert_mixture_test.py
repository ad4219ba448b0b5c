"""The encoder with mixtures of experts: padding, names, remat, and what reaches the routers."""

import functools

import chex
import jax
import numpy as np
import pytest

from pad_jax.models import Bert, make_ffn_spec
from tests.layers.compiling import jit_quickly

TINY = Bert(
    vocab_size=31,
    num_layers=1,
    width=8,
    num_heads=2,
    ffn_width=12,
    max_length=128,
    num_outputs=3,
    ffn=make_ffn_spec('linear', num_experts=4, num_selected=2, granularity='element', plan='dense'),
)
KINDS = {
    'linear': TINY,
    'ffn': TINY.clone(ffn=make_ffn_spec('ffn', num_experts=4, num_selected=2, granularity='output', plan='dense')),
    'sentence': TINY.clone(
        ffn=make_ffn_spec('linear', num_experts=4, num_selected=1, routing='sentence', plan='dense')
    ),
}
LENGTHS = [5, 16, 1, 9]


def make_batch(padded):
    generator = np.random.default_rng(0)
    valid = np.arange(padded)[None] < np.array(LENGTHS)[:, None]
    tokens = np.where(valid, generator.integers(0, 31, (4, 128))[:, :padded], 7).astype(np.int32)
    return tokens, (tokens % 2).astype(np.int32), valid


@functools.cache
def make_variables(kind):
    """Every parameter, routers included, away from its initial value; half of the positions dynamic."""
    variables = jax.eval_shape(KINDS[kind].init, jax.random.key(0), *make_batch(16))
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        if leaf.dtype == bool:
            return generator.random(leaf.shape) < 0.5
        values = (generator.normal(size=leaf.shape) * 0.4).astype(np.float32)
        return np.abs(values) + 0.5 if path[-1].key == 'scale' else values

    return jax.tree_util.tree_map_with_path(draw, variables)


@pytest.mark.parametrize(('kind', 'names'), [('linear', ['up', 'down']), ('ffn', ['experts'])])
def test_reports_by_the_path_of_the_mixture(kind, names):
    model = KINDS[kind].clone(num_layers=2)
    (_, aux), variables = jax.eval_shape(
        lambda *batch: model.init_with_output(jax.random.key(0), *batch, mutable=True), *make_batch(16)
    )
    assert aux.keys() == {f'layer_{index}/ffn/{name}' for index in range(2) for name in names}
    for name in aux:
        masks, routing = variables['partition'], variables['intermediates']
        for part in name.split('/'):
            masks, routing = masks[part], routing[part]
        assert len(masks) == 1 and routing['routing'][0].shape == (64, 4)


@pytest.mark.parametrize('kind', ['linear', pytest.param('ffn', marks=pytest.mark.slow)])
def test_training(kind):
    """Remat gives the same gradients, noise and dropout by their keys; the router loss reaches every router."""
    batch = make_batch(16)
    variables = make_variables(kind)

    def loss(params, key, remat):
        rngs = {'dropout': key, 'routing': jax.random.fold_in(key, 1)}
        model = KINDS[kind].clone(remat=remat)
        (logits, aux), sown = model.apply(
            {**variables, 'params': params}, *batch, train=True, rngs=rngs, mutable='intermediates'
        )
        router_loss = sum(values['router_loss'] for values in aux.values())
        return router_loss, (logits, sown)

    @jit_quickly
    def compare(params, key):
        return [jax.value_and_grad(loss, has_aux=True)(params, key, remat) for remat in (False, True)]

    plain, remat = compare(variables['params'], jax.random.key(0))
    chex.assert_trees_all_close(plain, remat, rtol=1e-4, atol=1e-6)
    again, _ = compare(variables['params'], jax.random.key(0))
    chex.assert_trees_all_equal(plain, again)
    (_, (logits, sown)), gradients = plain
    (_, (other_logits, other_sown)), _ = compare(variables['params'], jax.random.key(1))[0]
    assert np.abs(logits - other_logits).max() > 1e-3
    assert any(map(np.any, jax.tree.leaves(jax.tree.map(lambda a, b: a != b, sown, other_sown))))
    routers = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if 'router' in jax.tree_util.keystr(path)
    ]
    num_mixtures = {'linear': 2, 'ffn': 1}[kind]
    assert len(routers) == 2 * num_mixtures
    assert all(np.any(leaf) and np.isfinite(leaf).all() for leaf in routers)
