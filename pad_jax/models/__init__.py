"""Models: which layers are dynamic. The layer class is a field, never a second file."""

from pad_jax.models.registry import DTYPES, MODELS, build_model
from pad_jax.models.resnet import BasicBlock, BottleneckBlock, ResNet
from pad_jax.models.stems import STEMS, check_image_size

__all__ = ['DTYPES', 'MODELS', 'STEMS', 'BasicBlock', 'BottleneckBlock', 'ResNet', 'build_model', 'check_image_size']
