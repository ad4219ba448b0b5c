"""The train steps lower for machines that aren't there, and don't keep a second copy of the state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from pad_jax.training.config import is_text, load_config
from pad_jax.training.devices import AXIS, PARALLEL, Replicas, map_over_mesh
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule, make_temperature_schedule
from pad_jax.training.setup import make_inputs, make_model, make_step_arguments, measure_lengths
from pad_jax.training.state import abstract_state, init_state
from pad_jax.training.steps import train_step
from pad_jax.training.tasks import IMAGES, image_inputs
from tests.training.tiny import GLUE, ROOT, NormFree, small_config

NUM_CHIPS = 256
IMAGENET = ROOT / 'configs' / 'imagenet_resnet50_pad.py'
BERT = ROOT / 'configs' / 'glue_bert_base_moe.py'


def lower(config, platforms):
    """(exported train step of a run with this config over the chips, leaves of its state)."""
    arguments = make_step_arguments(config, measure_lengths(config, num_train=1_281_167), AXIS)
    mesh = AbstractMesh((NUM_CHIPS,), (AXIS,), axis_types=(AxisType.Auto,))
    step = map_over_mesh(train_step, mesh, donate=True, **arguments)
    inputs = make_inputs(config)
    state = abstract_state(make_model(config), arguments['optimizer'], inputs, averaged=config.optim.ema_decay > 0)
    names = arguments['task'].inputs
    shapes = [(config.data.max_length,) if is_text(config) else leaf.shape[1:] for leaf in inputs]
    batch = {
        name: jax.ShapeDtypeStruct(shape, leaf.dtype) for name, shape, leaf in zip(names, shapes, inputs, strict=True)
    }
    batch['label'] = jax.ShapeDtypeStruct((), jnp.int32)

    def place(tree, rows, spec):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*rows, *leaf.shape), leaf.dtype, sharding=NamedSharding(mesh, spec)),
            tree,
        )

    placed = place(state, (), PartitionSpec()), place(batch, (config.data.batch_size,), PartitionSpec(AXIS))
    return export.export(step, platforms=platforms)(*placed), len(jax.tree.leaves(state))


def assert_lowers(config, platforms):
    exported, num_leaves = lower(config, platforms)
    assert exported.platforms == tuple(platforms) and exported.nr_devices == NUM_CHIPS
    program = exported.mlir_module()
    assert program.count('jax.buffer_donor = true') == num_leaves  # the whole state's memory is given away
    assert 'stablehlo.all_reduce' in program


@pytest.mark.usefixtures('one_block')
def test_a_small_network_of_images_lowers_for_256_chips_with_all_that_a_step_can_do():
    changes = {'optim__accumulate_steps': 2, 'optim__ema_decay': 0.9, 'train__mixup': 0.2}
    assert_lowers(small_config(data__batch_size=1024, train__label_smoothing=0.1, **changes), ['tpu', 'cuda'])


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
@pytest.mark.parametrize(('path', 'batch_size'), [(IMAGENET, 4096), (BERT, 1024), (GLUE, 1024)])
def test_the_train_steps_of_the_recipes_lower_for_256_chips(path, batch_size, platform):
    overrides = ['data.path=FOLDER', f'data.batch_size={batch_size}', 'model.dtype=bfloat16']
    assert_lowers(load_config(str(path), overrides), [platform])


@pytest.mark.parametrize('form', PARALLEL)
def test_the_step_takes_the_memory_of_the_state_that_it_is_given(form):
    replicas = Replicas(form, jax.local_devices()[:2])
    optimizer = make_optimizer('sgd', make_rate_schedule(0.1, 'constant', 0, 5), 0, 0)
    static = {'task': IMAGES, 'model': NormFree(), 'temperature': make_temperature_schedule(1.0, 1)}
    step = replicas.map_step(train_step, donate=True, optimizer=optimizer, **static)
    state = replicas.place_state(init_state(NormFree(), optimizer, image_inputs((8, 8, 1)), 0))
    batch = replicas.place_batch({'image': np.ones((4, 8, 8, 1), np.float32), 'label': np.zeros(4, np.int32)})
    memory = step.lower(state, batch).compile().memory_analysis()
    leaves = jax.tree.leaves(replicas.fetch(state.replace(key=jax.random.key_data(state.key))))
    size = sum(leaf.nbytes for leaf in leaves)
    # On one device; besides the state only a few scalars are returned.
    assert memory.alias_size_in_bytes == size
    assert size <= memory.output_size_in_bytes < size + 1000
    new, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))
