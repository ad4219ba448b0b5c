"""MobileNetV2, whose convolution is a field.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv:1801.04381, table 2; without
the dropout that some implementations have before the classifier.

Legend: B batch, H/W space, C channels.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.layers.static_conv import StaticConv
from pad_jax.models.norm import make_norm
from pad_jax.models.stems import check_image_size

MakeConv = Callable[..., nn.Module]
MakeNorm = Callable[..., nn.Module]

# Explicit pairs: with strides 'SAME' would shift the windows against torchvision's by one pixel.
_PAD = ((1, 1), (1, 1))


class Stage(NamedTuple):
    """One row of the paper's table: t, c, n and s.

    Attributes:
      expansion: channels inside of a block / channels that come in.
      features: channels that leave a block, before the width multiplier.
      num_blocks: of the stage.
      strides: of its first block; all others have 1.
    """

    expansion: int
    features: int
    num_blocks: int
    strides: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
STEM_FEATURES, LAST_FEATURES = 32, 1280
# A key of `stems.STEMS`: strides of the stem's convolution and of the second stage.
FIRST_STRIDES = {'imagenet': (2, 2), 'cifar': (1, 1)}


def scale_features(features: int, width_multiplier: float) -> int:
    """Channels of a layer: the nearest multiple of 8, at least 8, and never more than a tenth below the product.

    >>> [scale_features(24, multiplier) for multiplier in (1.0, 0.75, 0.5, 0.35)]
    [24, 24, 16, 8]
    """
    wanted = features * width_multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class InvertedResidual(nn.Module):
    """1×1 to more channels, 3×3 within each channel, 1×1 to few: [B, H, W, C] -> [B, H/s, W/s, features].

    The first is left out where the expansion is 1; the input is added where nothing has changed its shape.
    """

    features: int
    expansion: int
    strides: int
    conv: MakeConv
    norm: MakeNorm

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        hidden, y = x.shape[-1] * self.expansion, x
        if self.expansion != 1:
            y = self.conv(hidden, (1, 1), name='expand_conv')(y, temperature)
            y = nn.relu6(self.norm(name='expand_norm')(y))
        depthwise = self.conv(
            hidden, (3, 3), strides=self.strides, padding=_PAD, feature_group_count=hidden, name='depthwise_conv'
        )
        y = nn.relu6(self.norm(name='depthwise_norm')(depthwise(y, temperature)))
        y = self.conv(self.features, (1, 1), name='project_conv')(y, temperature)
        y = self.norm(name='project_norm')(y)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """Stem and classifier are static, every other convolution is `conv`, those within each channel and the last too.

    Attributes:
      num_classes: outputs of the classifier.
      conv: makes a convolution, as for `resnet.ResNet`.
      stem: a key of `stems.STEMS`; cifar's is for small images: neither the stem nor the second stage has strides.
      width_multiplier: > 0, of the channels of every layer, see `scale_features`; of the last convolution only
        where it is above 1.
      dtype: to compute in; parameters, statistics and the classifier are float32.
      axis_name: mapped axis over which batch statistics are averaged, None outside of one.
      norms_folded: norms only shift, their scales are in the convolutions before them (see `deploy.folding`).
      stages: the blocks.
    """

    num_classes: int
    conv: MakeConv
    stem: str = 'imagenet'
    width_multiplier: float = 1.0
    dtype: Dtype = 'float32'
    axis_name: str | None = None
    norms_folded: bool = False
    stages: tuple[Stage, ...] = STAGES

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
        stem_strides, second_strides = FIRST_STRIDES[self.stem]
        features = scale_features(STEM_FEATURES, self.width_multiplier)
        stem = StaticConv(
            features, (3, 3), strides=stem_strides, padding=_PAD, use_bias=False, dtype=dtype, name='stem_conv'
        )
        x = nn.relu6(norm(name='stem_norm')(stem(images.astype(dtype))))
        for number, stage in enumerate(self.stages, start=1):
            strides = second_strides if number == 2 else stage.strides
            for index in range(stage.num_blocks):
                block = InvertedResidual(
                    features=scale_features(stage.features, self.width_multiplier),
                    expansion=stage.expansion,
                    strides=strides if index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f'stage{number}_block{index + 1}',
                )
                x = block(x, temperature)
        # Not fewer in a narrow network: the classifier would see too little.
        last_features = scale_features(LAST_FEATURES, max(1.0, self.width_multiplier))
        x = conv(last_features, (1, 1), name='last_conv')(x, temperature)
        x = nn.relu6(norm(name='last_norm')(x))
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        logits = nn.Dense(self.num_classes, dtype=jnp.float32, name='classifier')(pooled)
        return logits, {}
