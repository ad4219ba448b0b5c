"""Dynamic layers: arrays, plans and thin modules. A mask reaches them only through `factors`."""

from pad_jax.kernels.convolution import PLAN_NAMES, PLANS
from pad_jax.kernels.dispatch import MIXTURE_PLANS, Routing, choose_mixture_plan
from pad_jax.layers.attention import Attention
from pad_jax.layers.compact import compact, compact_params, expand, expand_params, index_masks
from pad_jax.layers.conv import CONVS, CondConv, DynamicConv, ODConv, StaticConv
from pad_jax.layers.dcd import DCDConv
from pad_jax.layers.factors import find_records, partition_flax
from pad_jax.layers.mixture import (
    ACTIVATIONS,
    MIXTURE_GRANULARITIES,
    MixtureFFN,
    MixtureLinear,
    join_neurons,
    split_neurons,
)
from pad_jax.layers.router import GATINGS, ROUTINGS, Gating, Router, route_top_k
