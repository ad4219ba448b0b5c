"""Residual networks with the convolution as a field, and the base of all networks of images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; the bottleneck takes its stride
in the 3×3 convolution, as torchvision does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.errors import check_choice
from pad_jax.layers import StaticConv

MakeConv = Callable[..., nn.Module]
MakeNorm = Callable[..., nn.Module]

EPSILON = 1e-5
"""Added to a variance before division, in every norm of a network of images."""
FIRST_FEATURES = 64

# Explicit padding of a 3×3 convolution: with strides 'SAME' would shift the windows by one pixel against torchvision's.
PAD = ((1, 1), (1, 1))


class Shift(nn.Module):
    """Remainder of a norm whose scale is in the convolution before it: x + bias, [*batch, C] of x's dtype."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.param('bias', nn.initializers.zeros_init(), (x.shape[-1],))
        return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + bias.shape)


STEMS = {'imagenet': 64, 'cifar': 8}
"""Stems, with the least side of their images. Until the first block, 'imagenet' reduces the resolution four times."""


def check_image_size(stem: str, image_size: int) -> None:
    """Raise ValueError if the stem is unknown, or the image's side (pixels) is too small for it.

    >>> check_image_size('imagenet', 224)
    """
    check_choice('stem', stem, STEMS)
    if image_size < STEMS[stem]:
        others = [name for name, least in STEMS.items() if least <= image_size]
        advice = f'; stem {others[0]!r} takes it' if others else ''
        raise ValueError(f'image_size must be at least {STEMS[stem]} for stem {stem!r}, got {image_size}{advice}')


class ImageNetwork(nn.Module, kw_only=True):
    """Base of the networks of images: a subclass writes `extract`. Stem and classifier are static.

    Attributes:
      num_classes: outputs of the classifier.
      conv: makes a convolution from (features, kernel_size, **arguments of flax.linen.Conv); the module is called with
        (x, temperature). A `models.LayerSpec` hashes by value.
      stem: a key of STEMS.
      width_multiplier: > 0, factor of the channels of every layer.
      dtype: dtype of the computation; parameters, statistics and the classifier are float32.
      axis_name: mapped axis over which batch statistics are averaged, None outside of one.
      norms_folded: norms are a `Shift`; their scales are in the convolutions before them (see `deploy.folding`).
    """

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
        """Compute the logits of a batch.

        Args:
          images: float[B, H, W, C].
          temperature: > 0, for the attention of every dynamic layer; may be traced.
          train: take the statistics of this batch, and update 'batch_stats' if it is mutable.

        Returns:
          (logits float32[B, num_classes], {}): the second holds terms of the loss, of which images have none.

        Raises:
          ValueError: if the images are smaller than the stem needs.
        """
        check_image_size(self.stem, min(images.shape[1:3]))
        dtype = jnp.dtype(self.dtype)
        conv, stem_conv = (partial(make, use_bias=False, dtype=dtype) for make in (self.conv, StaticConv))
        # The last scale of a residual block starts at one like all others, although zero is common. At zero the
        # gradient of every gate inside the branch would be zero when the partition is scored at step 0.
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=EPSILON, dtype=dtype)
        norm = Shift if self.norms_folded else partial(norm, axis_name=self.axis_name)
        x = self.extract(images.astype(dtype), temperature, conv, norm, stem_conv)
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name='classifier')(pooled), {}

    def extract(
        self, x: jax.Array, temperature: jax.Array | float, conv: MakeConv, norm: MakeNorm, stem_conv: MakeConv
    ) -> jax.Array:
        """Compute features [B, H', W', F] of images x [B, H, W, C] in the dtype of the computation."""
        raise NotImplementedError


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [B, H, W, C] -> [B, H/s, W/s, features]."""

    features: int
    strides: int
    conv: MakeConv
    norm: MakeNorm

    def list_convolutions(self) -> list[tuple[int, int, int]]:
        """Return (features, kernel size, strides) of each convolution inside the block."""
        return [(self.features, 3, self.strides), (self.features, 3, 1)]

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        y = x
        for number, (features, size, strides) in enumerate(self.list_convolutions(), start=1):
            padding = PAD if size == 3 else 'VALID'
            conv = self.conv(features, (size, size), strides=strides, padding=padding, name=f'conv{number}')
            y = self.norm(name=f'norm{number}')(conv(y if number == 1 else nn.relu(y), temperature))
        if x.shape[-1] != features or self.strides != 1:
            x = self.conv(features, (1, 1), strides=self.strides, name='shortcut_conv')(x, temperature)
            x = self.norm(name='shortcut_norm')(x)
        return nn.relu(y + x)


class BottleneckBlock(BasicBlock):
    """1×1, 3×3, 1×1 with a quarter of the width inside: [B, H, W, C] -> [B, H/s, W/s, 4·features]."""

    def list_convolutions(self) -> list[tuple[int, int, int]]:
        """Return (features, kernel size, strides) of each convolution inside the block."""
        return [(self.features, 1, 1), (self.features, 3, self.strides), (4 * self.features, 1, 1)]


class ResNet(ImageNetwork):
    """A residual network; every convolution after the stem is `conv`.

    Attributes:
      stage_sizes: blocks of each stage; each stage except the first halves the resolution and doubles the width.
      block: BasicBlock or BottleneckBlock.
      ...: see `ImageNetwork`. The first stage has 64·width_multiplier channels, rounded.
    """

    stage_sizes: Sequence[int]
    block: Any

    def extract(self, x, temperature, conv, norm, stem_conv):
        """Apply stem and blocks."""
        width = max(1, round(FIRST_FEATURES * self.width_multiplier))
        reduced = {'strides': 2, 'padding': ((3, 3), (3, 3))}
        size, arguments = ((7, 7), reduced) if self.stem == 'imagenet' else ((3, 3), {'padding': PAD})
        x = nn.relu(norm(name='stem_norm')(stem_conv(width, size, **arguments, name='stem_conv')(x)))
        if self.stem == 'imagenet':
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=PAD)
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
        return x
