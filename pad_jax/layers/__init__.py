"""Dynamic layers: arrays, plans and thin modules. A mask reaches them only through `partition.masks`."""

from pad_jax.layers.conv_geometry import Geometry, resolve_geometry
from pad_jax.layers.conv_plans import PLAN_NAMES, PLANS, choose_plan
from pad_jax.layers.conv_spec import CONVS, ConvSpec, make_conv_spec
from pad_jax.layers.dynamic_conv import DynamicConv, dynamic_convolution
from pad_jax.layers.routing import Attention, attend
from pad_jax.layers.static_conv import StaticConv

__all__ = [
    'CONVS',
    'PLANS',
    'PLAN_NAMES',
    'Attention',
    'ConvSpec',
    'DynamicConv',
    'Geometry',
    'StaticConv',
    'attend',
    'choose_plan',
    'dynamic_convolution',
    'make_conv_spec',
    'resolve_geometry',
]
