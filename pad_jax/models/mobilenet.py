"""MobileNetV2 with the convolution as a field.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv:1801.04381, table 2, without
the dropout that some implementations have before the classifier.
"""

import jax
from flax import linen as nn

from pad_jax.models.resnet import PAD, ImageNetwork, MakeConv, MakeNorm

# By stage (t, c, n, s): inner channels / input channels, output channels, blocks, strides of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM_FEATURES, LAST_FEATURES = 32, 1280
# By stem (a key of `resnet.STEMS`): strides of the stem's convolution and of the second stage.
FIRST_STRIDES = {'imagenet': (2, 2), 'cifar': (1, 1)}


def scale_features(features: int, width_multiplier: float) -> int:
    """Scale the channels of a layer to the nearest multiple of 8, at least 8, at most a tenth below the product.

    >>> [scale_features(24, multiplier) for multiplier in (1.0, 0.75, 0.5, 0.35)]
    [24, 24, 16, 8]
    """
    wanted = features * width_multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class InvertedResidual(nn.Module):
    """1×1 to more channels, 3×3 within each channel, 1×1 to few: [B, H, W, C] -> [B, H/s, W/s, features].

    A block with expansion 1 lacks the first. The input is added if the block keeps its shape.
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
            hidden, (3, 3), strides=self.strides, padding=PAD, feature_group_count=hidden, name='depthwise_conv'
        )
        y = nn.relu6(self.norm(name='depthwise_norm')(depthwise(y, temperature)))
        y = self.conv(self.features, (1, 1), name='project_conv')(y, temperature)
        y = self.norm(name='project_norm')(y)
        return x + y if x.shape == y.shape else y


class MobileNetV2(ImageNetwork):
    """MobileNetV2; every convolution after the stem is `conv`, the depthwise ones and the last included.

    Attributes:
      stages: t, c, n and s of each stage, a row of the paper's table each; see `STAGES`.
      ...: see `resnet.ImageNetwork`. Channels are scaled by `scale_features`, those of the last convolution only by a
        width_multiplier above 1. The stem of cifar is for small images: neither the stem nor the second stage has
        strides.
    """

    stages: tuple[tuple[int, int, int, int], ...] = STAGES

    def extract(self, x, temperature, conv, norm, stem_conv):
        """Apply stem, blocks and the last convolution."""
        stem_strides, second_strides = FIRST_STRIDES[self.stem]
        features = scale_features(STEM_FEATURES, self.width_multiplier)
        x = stem_conv(features, (3, 3), strides=stem_strides, padding=PAD, name='stem_conv')(x)
        x = nn.relu6(norm(name='stem_norm')(x))
        for number, (expansion, features, num_blocks, strides) in enumerate(self.stages, start=1):
            strides = second_strides if number == 2 else strides
            for index in range(num_blocks):
                block = InvertedResidual(
                    features=scale_features(features, self.width_multiplier),
                    expansion=expansion,
                    strides=strides if index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f'stage{number}_block{index + 1}',
                )
                x = block(x, temperature)
        # A narrow network keeps the last width: the classifier would see too little.
        last_features = scale_features(LAST_FEATURES, max(1.0, self.width_multiplier))
        x = conv(last_features, (1, 1), name='last_conv')(x, temperature)
        return nn.relu6(norm(name='last_norm')(x))
