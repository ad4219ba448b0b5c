"""Dynamic convolution, fully or partially dynamic.

DY-Conv (Chen et al., CVPR 2020, arXiv:1912.03458, section 3); its partially dynamic form: PAD-Net (He et
al., ACL 2023, arXiv:2211.05528).

Legend: B batch, S spatial axes, C input channels, F output channels, K kernels.
"""

import jax

from pad_jax.layers.conv_layer import MixingConv
from pad_jax.layers.routing import Attention


class DynamicConv(MixingConv):
    """A convolution whose kernel is mixed from K kernels for each sample; called as `flax.linen.Conv`.

    With `granularity=None` all of it is dynamic. Otherwise a boolean mask (collection 'partition', all True
    at the start, of the granularity's shape) says which positions of the kernel are; the rest comes from
    one static kernel that all samples share:

        kernel(x) = λd·mask·Σ_k attention_k(x)·kernel_k + λs·(1 − mask)·static_kernel

    The routing weights of every call are sown as 'routing' ([B, K], float32) into 'intermediates'. A bias is one for
    each kernel, mixed in the same way, and never masked.

    Attributes:
      reduction: the attention's hidden width is max(1, C // reduction).
      ...: see `MixingConv` and `ConvLayer`.

    >>> import jax.numpy as jnp
    >>> layer = DynamicConv(features=8, kernel_size=(3, 3), granularity='output')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 3)), temperature=30.)
    >>> y.shape, variables['params']['kernel'].shape, variables['partition']['kernel'].shape
    ((2, 6, 6, 8), (4, 3, 3, 3, 8), (1, 1, 1, 8))
    """

    reduction: int = 16

    def _convolve(self, x: jax.Array, temperature: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        kernels, bias = self._declare_kernels(shape)
        x = self._promote(x, kernels.dynamic, bias)
        attend = Attention(self.num_kernels, reduction=self.reduction, param_dtype=self.param_dtype, name='attention')
        attention = attend(x, temperature)
        self.sow('intermediates', 'routing', attention)
        return self._mix(x, kernels, attention, bias)
