"""Models: which layers are dynamic. The layer class is a field, never a second file."""

from pad_jax.models.accounting import LayerAccount, MultiplyAdds, account_layers, sum_multiply_adds
from pad_jax.models.bert import Bert
from pad_jax.models.encoders import ENCODERS, build_encoder
from pad_jax.models.feed_forward import FFNS, FfnSpec, make_ffn_spec
from pad_jax.models.mobilenet import MobileNetV2
from pad_jax.models.registry import DTYPES, MODELS, build_model
from pad_jax.models.resnet import BasicBlock, BottleneckBlock, ResNet
from pad_jax.models.stems import STEMS, check_image_size

__all__ = [
    'DTYPES',
    'ENCODERS',
    'FFNS',
    'MODELS',
    'STEMS',
    'BasicBlock',
    'Bert',
    'BottleneckBlock',
    'FfnSpec',
    'LayerAccount',
    'MobileNetV2',
    'MultiplyAdds',
    'ResNet',
    'account_layers',
    'build_encoder',
    'build_model',
    'check_image_size',
    'make_ffn_spec',
    'sum_multiply_adds',
]
