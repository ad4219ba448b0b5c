"""Weights in torchvision's layout: the network's function against a NumPy twin, and every way not to fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pad_jax.layers import CONVS, find_records
from pad_jax.models import MODELS, BasicBlock, BottleneckBlock, MobileNetV2, ResNet, build_model, make_conv_spec
from pad_jax.pretrained import LAYOUTS, find_layout, load_torchvision
from tests.layers.compiling import jit_quickly
from tests.pretrained import torchvision_twin as twin

STATIC = make_conv_spec('static')
DYNAMIC = [name for name in CONVS if name != 'static']
# Two kinds of blocks, with and without strides, shortcuts and expansion; 8 channels are the fewest.
STAGES = ((1, 8, 1, 1), (2, 8, 2, 2), (3, 16, 1, 2))


def basic(num_classes=3):
    return ResNet((2, 1), BasicBlock, num_classes=num_classes, conv=STATIC, width_multiplier=1 / 16)


def bottleneck(num_classes=3):
    return ResNet((1, 2), BottleneckBlock, num_classes=num_classes, conv=STATIC, width_multiplier=1 / 32)


def mobilenet(num_classes=3):
    return MobileNetV2(STAGES, num_classes=num_classes, conv=STATIC, width_multiplier=0.25)


# name: the network, its tensors, and what it computes from them.
NETWORKS = {
    'resnet18': (basic, lambda: twin.make_resnet((2, 1), 4, 3, bottleneck=False), twin.run_resnet),
    'resnet50': (bottleneck, lambda: twin.make_resnet((1, 2), 2, 3, bottleneck=True), twin.run_resnet),
    'mobilenet_v2': (
        mobilenet,
        # A quarter of 32, 8 and 16 channels is 8 or less, which becomes 8; the last layer keeps its 1280.
        lambda: twin.make_mobilenet([(t, 8, n, s) for t, _, n, s in STAGES], 8, 1280, 3),
        lambda tensors, images: twin.run_mobilenet(tensors, images, STAGES),
    ),
}


def shapes_of(model, size=64):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), jnp.zeros((1, size, size, 3)))


def write(folder, tensors):
    save_file(tensors, folder / 'model.safetensors')
    return folder


def load(path, name, model=None):
    model = model or NETWORKS[name][0]()
    variables = shapes_of(model)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables['params'])
    return load_torchvision(path, name, variables, ones, {})


@pytest.mark.parametrize('name', NETWORKS)
def test_the_function_is_that_of_the_twin(name, tmp_path):
    build, make, run = NETWORKS[name]
    tensors = make()
    loaded = load(write(tmp_path, tensors), name)
    assert loaded.notes == ()
    # 66 and not 64: sides of 33, 17, 9 show a window that is shifted.
    images = np.random.default_rng(1).normal(size=(2, 66, 66, 3))
    variables = {'params': loaded.params, 'batch_stats': loaded.batch_stats}
    logits, _ = jit_quickly(build().apply)(variables, images.astype(np.float32))
    expected = run(tensors, images.transpose(0, 3, 1, 2))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'conv'),
    [
        ('mobilenet_v2', 'dynamic'),
        pytest.param('resnet50', 'dynamic', marks=pytest.mark.slow),
        *(pytest.param('mobilenet_v2', conv, marks=pytest.mark.slow) for conv in DYNAMIC if conv != 'dynamic'),
    ],
)
def test_an_upcycled_network_is_the_static_one(name, conv, tmp_path):
    """At any temperature and with any masks: here every third position is dynamic."""
    build, make, run = NETWORKS[name]
    tensors, model = make(), build().clone(conv=make_conv_spec(conv, num_kernels=2, granularity='element'))
    images = np.random.default_rng(1).normal(size=(2, 66, 66, 3))
    shapes = shapes_of(model)
    # As an initialised network has them: routers are drawn, scale parameters zero.
    draw = np.random.default_rng(2).normal
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.float32(0 if path[-1].key == 'phi' else draw(size=leaf.shape)), shapes['params']
    )
    loaded = load_torchvision(write(tmp_path, tensors), name, shapes_of(build()), params, find_records(model, images))
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    masks = jax.tree.map(lambda mask: (jnp.arange(mask.size) % 3 == 0).reshape(mask.shape), shapes['partition'])
    upcycled = {'params': loaded.params, 'batch_stats': loaded.batch_stats, 'partition': masks}
    logits, _ = jit_quickly(model.apply)(upcycled, images.astype(np.float32), 30.0)
    np.testing.assert_allclose(logits, run(tensors, images.transpose(0, 3, 1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ('name', 'num_tensors', 'samples'),
    [
        # Every convolution has 5 tensors with its norm, the classifier 2; torchvision counts one more for each norm.
        ('resnet18', 20 * 5 + 2, {('stage2_block1', 'shortcut_conv'): 'layer2.0.downsample.0'}),
        ('resnet34', 36 * 5 + 2, {('stage3_block6', 'norm2'): 'layer3.5.bn2'}),
        ('resnet50', 53 * 5 + 2, {('stage4_block3', 'conv3'): 'layer4.2.conv3', ('classifier',): 'fc'}),
        ('resnet101', 104 * 5 + 2, {('stage3_block23', 'conv1'): 'layer3.22.conv1'}),
        ('mobilenet_v2', 52 * 5 + 2, {('stage7_block1', 'project_conv'): 'features.17.conv.2'}),
    ],
)
def test_names_of_whole_networks(name, num_tensors, samples):
    variables = shapes_of(build_model(name, num_classes=1000, conv='static'))
    modules = find_layout(name)(variables['params'])
    assert {place: modules[place] for place in samples} == samples
    assert len(set(modules.values())) == len(modules)
    assert len(jax.tree.leaves(variables)) == num_tensors


def test_only_what_torchvision_has_is_read():
    assert set(MODELS) - set(LAYOUTS) == {'resnet10'}
    with pytest.raises(ValueError, match=r'model.name=resnet10: torchvision has weights of resnet18, '):
        find_layout('resnet10')


def test_a_file_and_half_precision(tmp_path):
    tensors = NETWORKS['resnet18'][1]()
    half = {name: tensor.astype(np.float16) if 'num' not in name else tensor for name, tensor in tensors.items()}
    save_file(half, tmp_path / 'resnet18.safetensors')
    loaded = load(tmp_path / 'resnet18.safetensors', 'resnet18')
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype('float32')}
    kernel = tensors['conv1.weight'].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(loaded.params['stem_conv']['kernel'], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        loaded.batch_stats['stage1_block2']['norm2']['var'], half['layer1.1.bn2.running_var'].astype(np.float32)
    )


def test_another_number_of_classes_leaves_the_classifier(tmp_path):
    tensors = NETWORKS['resnet18'][1]()
    loaded = load(write(tmp_path, tensors), 'resnet18', basic(num_classes=5))
    assert loaded.notes == ('they have 3 classes, the model 5: the classifier keeps its initial values',)
    assert loaded.params['classifier']['kernel'].shape == (8, 5) and (loaded.params['classifier']['kernel'] == 1).all()
    np.testing.assert_array_equal(loaded.params['stem_norm']['scale'], tensors['bn1.weight'])
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith('fc')}
    loaded = load(write(tmp_path, without), 'resnet18')
    assert loaded.notes == ('they have no classifier: it keeps its initial values',)
    assert (loaded.params['classifier']['bias'] == 1).all()
