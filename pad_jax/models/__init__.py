"""Networks: a choice of which layers are dynamic. The layer class is a field, never a second file."""

from pad_jax.models.accounting import (
    LayerAccount,
    LayerCount,
    MultiplyAdds,
    account_layers,
    count_layers,
    plan_dynamic_positions,
    report_counts,
    sum_multiply_adds,
)
from pad_jax.models.bert import Bert
from pad_jax.models.feed_forward import FFNS, FeedForward, make_ffn_spec
from pad_jax.models.mobilenet import MobileNetV2
from pad_jax.models.registry import DTYPES, ENCODERS, MODELS, build_encoder, build_model, make_conv_spec
from pad_jax.models.resnet import STEMS, BasicBlock, BottleneckBlock, ImageNetwork, ResNet, check_image_size
from pad_jax.models.spec import LayerSpec, make_spec

__all__ = [
    'DTYPES',
    'ENCODERS',
    'FFNS',
    'MODELS',
    'STEMS',
    'BasicBlock',
    'Bert',
    'BottleneckBlock',
    'FeedForward',
    'ImageNetwork',
    'LayerAccount',
    'LayerCount',
    'LayerSpec',
    'MobileNetV2',
    'MultiplyAdds',
    'ResNet',
    'account_layers',
    'build_encoder',
    'build_model',
    'check_image_size',
    'count_layers',
    'make_conv_spec',
    'make_ffn_spec',
    'make_spec',
    'plan_dynamic_positions',
    'report_counts',
    'sum_multiply_adds',
]
