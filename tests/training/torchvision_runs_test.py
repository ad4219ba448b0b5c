"""Runs of images that start from weights in torchvision's layout."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from pad_jax.models import MODELS
from pad_jax.training.setup import make_inputs, make_model, make_run_optimizer, measure_lengths
from pad_jax.training.start import start_from_pretrained
from pad_jax.training.state import init_state
from tests.pretrained.torchvision_twin import make_resnet
from tests.training.tiny import DIGITS, ONE_BLOCK, small_config


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file for ResNet-18, which is a network of one block here, and its tensors."""
    monkeypatch.setitem(MODELS, 'resnet18', ONE_BLOCK)
    tensors = make_resnet((1,), 4, 10, bottleneck=False, image_channels=1, stem_side=3)
    save_file(tensors, tmp_path / 'resnet18.safetensors')
    return tmp_path / 'resnet18.safetensors', tensors


def start(path, **changes):
    config = small_config(model__name='resnet18', model__conv='static', model__pretrained=path, **changes)
    model, optimizer = make_model(config), make_run_optimizer(config, measure_lengths(config, 1442))
    state = init_state(model, optimizer, make_inputs(config), 0, averaged=config.optim.ema_decay > 0)
    return state, *start_from_pretrained(config, model, state)


def test_a_run_starts_from_parameters_and_statistics(weights):
    """Not from the classifier, as the number of classes is another one."""
    path, tensors = weights
    before, after, said = start(path, model__num_classes=7)
    assert said == [f'weights of {path}', 'they have 10 classes, the model 7: the classifier keeps its initial values']
    norm = after.batch_stats['stage1_block1']['norm2']
    np.testing.assert_array_equal(norm['mean'], tensors['layer1.0.bn2.running_mean'])
    np.testing.assert_array_equal(after.params['stem_norm']['scale'], tensors['bn1.weight'])
    np.testing.assert_array_equal(after.params['classifier']['kernel'], before.params['classifier']['kernel'])
    shapes = lambda state: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)  # noqa: E731
    assert shapes(before) == shapes(after)


def test_refused_before_anything_is_written(weights, refused, tmp_path):
    flags = f'--config={DIGITS}', f'--workdir={tmp_path}/run', '--config.model.conv=static'
    line = refused('train', *flags, f'--config.model.pretrained={weights[0]}')
    assert 'torchvision has weights of resnet18' in line
    resnet18 = (*flags, '--config.model.name=resnet18', '--config.model.width_multiplier=0.0625')
    assert 'missing does not exist' in refused('train', *resnet18, '--config.model.pretrained=missing')
    line = refused(
        'train', *resnet18, '--config.model.width_multiplier=0.125', f'--config.model.pretrained={weights[0]}'
    )
    assert 'misshapen: bn1.bias [4] instead of [8], ' in line
