"""Residual networks whose convolution is a field.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; the bottleneck takes
its stride in the 3×3 convolution, as torchvision does.

Legend: B batch, H/W space, C channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.layers.static_conv import StaticConv
from pad_jax.models.norm import make_norm
from pad_jax.models.stems import STEMS, check_image_size

MakeConv = Callable[..., nn.Module]
MakeNorm = Callable[..., nn.Module]

FIRST_FEATURES = 64


def _pad_same(kernel_size: int) -> tuple[tuple[int, int], ...]:
    # Explicit pairs: with strides 'SAME' would shift the windows against torchvision's by one pixel.
    return ((kernel_size // 2, kernel_size // 2),) * 2


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [B, H, W, C] -> [B, H/s, W/s, features]."""

    features: int
    strides: int
    conv: MakeConv
    norm: MakeNorm
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        y = self.conv(self.features, (3, 3), strides=self.strides, padding=_pad_same(3), name='conv1')(x, temperature)
        y = nn.relu(self.norm(name='norm1')(y))
        y = self.conv(self.features, (3, 3), padding=_pad_same(3), name='conv2')(y, temperature)
        y = self.norm(name='norm2')(y)
        return nn.relu(y + _shortcut(self, x, y.shape[-1], temperature))


class BottleneckBlock(nn.Module):
    """1×1, 3×3, 1×1 with a quarter of the width inside: [B, H, W, C] -> [B, H/s, W/s, 4·features]."""

    features: int
    strides: int
    conv: MakeConv
    norm: MakeNorm
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        y = self.conv(self.features, (1, 1), name='conv1')(x, temperature)
        y = nn.relu(self.norm(name='norm1')(y))
        y = self.conv(self.features, (3, 3), strides=self.strides, padding=_pad_same(3), name='conv2')(y, temperature)
        y = nn.relu(self.norm(name='norm2')(y))
        y = self.conv(self.features * self.expansion, (1, 1), name='conv3')(y, temperature)
        y = self.norm(name='norm3')(y)
        return nn.relu(y + _shortcut(self, x, y.shape[-1], temperature))


def _shortcut(block, x, features, temperature):
    """The input itself, or projected where its shape changes; called inside the block's compact method."""
    if x.shape[-1] == features and block.strides == 1:
        return x
    projected = block.conv(features, (1, 1), strides=block.strides, name='shortcut_conv')(x, temperature)
    return block.norm(name='shortcut_norm')(projected)


class ResNet(nn.Module):
    """A residual network; stem and classifier are static, every other convolution is `conv`.

    Attributes:
      stage_sizes: blocks of each stage; each stage but the first halves the resolution and doubles the width.
      block: BasicBlock or BottleneckBlock.
      num_classes: outputs of the classifier.
      conv: makes a convolution from (features, kernel_size, **arguments of flax.linen.Conv); the module is
        called with (x, temperature). `layers.ConvSpec` is one that hashes by value.
      stem: a key of `stems.STEMS`.
      width_multiplier: > 0, of the channels of every layer; those of the first stage are 64 times it, rounded.
      dtype: to compute in; parameters, statistics and the classifier are float32.
      axis_name: mapped axis over which batch statistics are averaged, None outside of one.
      norms_folded: norms only shift, their scales are in the convolutions before them (see `deploy.folding`).
    """

    stage_sizes: Sequence[int]
    block: Any
    num_classes: int
    conv: MakeConv
    stem: str = 'imagenet'
    width_multiplier: float = 1.0
    dtype: Dtype = 'float32'
    axis_name: str | None = None
    norms_folded: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, temperature: jax.Array | float = 1.0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits of a batch.

        Args:
          images: float[B, H, W, channels].
          temperature: > 0, for the attention of every dynamic layer; may be traced.
          train: take the statistics of this batch, and update 'batch_stats' where it is mutable.

        Returns:
          (logits float32[B, num_classes], {}): the second holds what a model adds to its loss, here nothing.

        Raises:
          ValueError: if the images are smaller than the stem needs.
        """
        check_image_size(self.stem, min(images.shape[1:3]))
        dtype = jnp.dtype(self.dtype)
        norm = make_norm(train, dtype, self.axis_name, self.norms_folded)
        conv = partial(self.conv, use_bias=False, dtype=dtype)
        static_conv = partial(StaticConv, use_bias=False, dtype=dtype)
        width = max(1, round(FIRST_FEATURES * self.width_multiplier))
        x = STEMS[self.stem].function(images.astype(dtype), width, static_conv, norm)
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                block = self.block(
                    features=width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f'stage{stage + 1}_block{index + 1}',
                )
                x = block(x, temperature)
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        logits = nn.Dense(self.num_classes, dtype=jnp.float32, name='classifier')(pooled)
        return logits, {}
