"""Convolution layers by name."""

import functools

from pad_jax.layers.cond_conv import CondConv
from pad_jax.layers.dcd_conv import DCDConv
from pad_jax.layers.dynamic_conv import DynamicConv
from pad_jax.layers.od_conv import ODConv
from pad_jax.layers.spec import make_spec
from pad_jax.layers.static_conv import StaticConv

CONVS = {'static': StaticConv, 'dynamic': DynamicConv, 'condconv': CondConv, 'odconv': ODConv, 'dcd': DCDConv}
make_conv_spec = functools.partial(make_spec, 'conv', CONVS)
