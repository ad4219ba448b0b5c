"""ODConv: attention over input channels, output filters, places of the kernel, and kernels.

Li et al., "Omni-Dimensional Dynamic Convolution", ICLR 2022, arXiv:2209.07947, section 3.2.

Legend: B batch, S spatial axes, C input channels, F output channels, K kernels, D hidden width.
"""

from functools import partial

import jax
import jax.numpy as jnp

from pad_jax.layers.conv_layer import MixingConv
from pad_jax.layers.conv_plans import PLAN_NAMES_BY_PLACE
from pad_jax.layers.dynamic_convolution import add_bias, spread_places
from pad_jax.layers.generated_tensor import GeneratedTensor
from pad_jax.layers.routing import EXPAND_LAW, Head, normalize_units, squeeze_space

LEAST_WIDTH = 16
"""Of the hidden layer, the authors' code: narrow layers have four heads to serve too."""


class ODConv(MixingConv):
    """y = α_f ⊙ convolution of (α_c ⊙ x) with Σ_k α_k·α_s ⊙ kernel_k; called as `flax.linen.Conv`.

    All four attentions are heads of one hidden layer of max(16, C // reduction) units over pooled features: that
    over kernels is a softmax(logits / temperature), the others are vectors of sigmoid(logits / temperature). The
    hidden units are normalised by `normalize_units`, in the place of the batch norm that the authors' code has and the
    paper's equations don't. As in that code there is no attention over places where the kernel has one, and none over
    filters in a depthwise convolution, where it would be the one over channels again.

    Where it is partially dynamic a mask splits the kernels as in `DynamicConv`, and one more each vector, whose static
    entries are shared by all samples (see `GeneratedTensor`).

    Sown into 'intermediates': 'routing' [B, K], and 'values' by each of `channel`, `filter` and `spatial`. A bias is
    one for each kernel, mixed by α_k, added last, and never masked.

    Attributes:
      reduction: see above.
      plan: as in `MixingConv`, of those that can weigh the places of a kernel: `conv_plans.PLAN_NAMES_BY_PLACE`.
      ...: see `MixingConv` and `ConvLayer`.

    >>> layer = ODConv(features=8, kernel_size=(3, 3), granularity='element')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 3)), temperature=30.)
    >>> y.shape, sorted(variables['partition'])
    ((2, 6, 6, 8), ['channel', 'filter', 'kernel', 'spatial'])
    """

    reduction: int = 16
    plan_names = PLAN_NAMES_BY_PLACE

    def _convolve(self, x: jax.Array, temperature: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        *kernel_size, _, features = shape
        channels, ones = x.shape[-1], (1,) * len(kernel_size)
        kernels, bias = self._declare_kernels(shape)
        x = self._promote(x, kernels.dynamic, bias)
        width = max(LEAST_WIDTH, channels // self.reduction)
        squeeze = self.param('squeeze', EXPAND_LAW, (channels, width), self.param_dtype)
        hidden = normalize_units(squeeze_space(x, squeeze))
        logits = Head(self.num_kernels, param_dtype=self.param_dtype, name='attention')(hidden)
        attention = jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), axis=-1)
        self.sow('intermediates', 'routing', attention)
        # Each vector has the shape in which it broadcasts against the kernel, so that its mask has a granularity.
        generate = partial(
            GeneratedTensor,
            start=0.5,
            granularity=self.granularity,
            scales=self.scales,
            rest=self.rest,
            param_dtype=self.param_dtype,
        )
        by_channel = generate((*ones, channels, 1), name='channel')(hidden, temperature)
        x = x * spread_places(by_channel.reshape(x.shape[0], channels), x.ndim).astype(x.dtype)
        weights, by_place = attention, None
        if any(size > 1 for size in kernel_size):
            by_place = generate((*kernel_size, 1, 1), name='spatial')(hidden, temperature)
            by_place = by_place.reshape(x.shape[0], *kernel_size)
            weights = attention.reshape(*attention.shape, *ones) * by_place[:, None]
        y = self._mix(x, kernels, weights, static_attention=by_place)
        if not channels == features == self.feature_group_count:
            by_filter = generate((*ones, 1, features), name='filter')(hidden, temperature)
            y = y * spread_places(by_filter, y.ndim).astype(y.dtype)
        return y if bias is None else add_bias(y, attention, bias)
