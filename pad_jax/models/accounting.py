"""Parameters and multiply-adds of a network, layer by layer, dense, masked and compact; nothing is computed.

Multiply-adds are those of one example's way forward, as the papers count them (He et al., CVPR 2016, arXiv:1512.03385,
section 3.3; with attention and the mixing of kernels: Chen et al., CVPR 2020, arXiv:1912.03458, section 3.1): a
convolution takes outputs × places of its kernel × input channels / groups, a linear layer in × out for each token. The
attention and the routers count, each of the k experts of a token counts, and so does what mixes the kernels of a
sample, K for each dynamic position. Self-attention counts the products of its weights too. Norms, activations, pooling,
scales of channels, sums of biases, dropout and a router's noise do not.

Legend: N tokens, C input features or channels, F output features, K kernels, E experts, k selected, n positions,
D hidden width.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from pad_jax.layers.conv_layer import MixingConv
from pad_jax.layers.dcd_conv import LEAST_WIDTH as DCD_LEAST_WIDTH
from pad_jax.layers.dcd_conv import DCDConv, latent_width
from pad_jax.layers.generated_tensor import GeneratedTensor
from pad_jax.layers.mixture import Mixture, MixtureFFN
from pad_jax.layers.od_conv import LEAST_WIDTH as OD_LEAST_WIDTH
from pad_jax.layers.od_conv import ODConv
from pad_jax.layers.router import Router
from pad_jax.layers.routing import Attention, Head
from pad_jax.models.bert import SelfAttention
from pad_jax.partition import LayerCount, report_counts

Shape = tuple[int, ...]


class MultiplyAdds(NamedTuple):
    """Of one example through one layer, or through a network.

    Attributes:
      dense: what the static counterpart takes.
      masked: every position is treated as a dynamic one, with zeros where it is not.
      compact: only dynamic positions are mixed, or reach k experts.
    """

    dense: int = 0
    masked: int = 0
    compact: int = 0


@dataclasses.dataclass(frozen=True)
class LayerAccount:
    """What one layer holds and computes.

    Attributes:
      count: its parameters by kind; a layer without any, as self-attention is beside its projections, has zeros.
      multiply_adds: of one example.
      masked_parameters: what is stored with masks: all dynamic factors, and a static copy where there is one.
      compact_parameters: what is stored without dead entries.
    """

    count: LayerCount
    multiply_adds: MultiplyAdds
    masked_parameters: int
    compact_parameters: int


def account_layers(model: nn.Module, inputs: Iterable[Any], layers: Iterable[LayerCount]) -> list[LayerAccount]:
    """One account for every layer that holds parameters or multiplies, in the order of `layers`.

    Args:
      model: called with `inputs` after its variables.
      inputs: arrays or shapes of one example, as [1, H, W, channels] or [1, T].
      layers: of `partition.count_layers`: how many positions of each are dynamic.
    """
    rows = {layer.name: layer for layer in layers}
    products = {name: [MultiplyAdds()] for name in rows}
    partial, dead = set(), dict.fromkeys(rows, 0)
    for name, (module, x, y) in _trace_calls(model, inputs).items():
        owner = _find_owner(name, rows)
        count = rows.get(name, LayerCount(name))
        products.setdefault(owner, []).append(_find_rule(module)(module, x, y, count))
        rows.setdefault(owner, LayerCount(owner))
        if count.num_factors and module.granularity is not None:
            if not getattr(module, 'prune', False) and getattr(module, 'rest', 'static') == 'static':
                partial.add(name)
            # Of a generated tensor the bias of a static entry is dead too, which no count of parameters has.
            dead[name] = (count.positions - count.dynamic_positions) * isinstance(module, GeneratedTensor)
    return [_make_account(count, products[name], name in partial, dead.get(name, 0)) for name, count in rows.items()]


def sum_multiply_adds(found: Iterable[MultiplyAdds]) -> MultiplyAdds:
    """Form by form.

    >>> sum_multiply_adds([MultiplyAdds(1, 2, 3), MultiplyAdds(10, 20, 30)])
    MultiplyAdds(dense=11, masked=22, compact=33)
    """
    return MultiplyAdds(*map(sum, zip(MultiplyAdds(), *found)))


def _make_account(count: LayerCount, products, partial: bool, dead: int) -> LayerAccount:
    stored = count.num_factors * count.positions + count.positions * partial + count.other_parameters
    return LayerAccount(count, sum_multiply_adds(products), stored + dead, report_counts([count])['parameters'])


def _trace_calls(model, inputs) -> dict[str, tuple[nn.Module, Shape, Shape]]:
    """(module, shape of its first input, shape of its first output) of all that multiply, by path."""
    found = {}

    def note(call, arguments, options, context):
        result = call(*arguments, **options)
        if context.method_name == '__call__' and _find_rule(context.module) is not None:
            # A method that calls its base class' comes last, and so has the last word.
            y = jax.tree.leaves(result)[0]
            found['/'.join(context.module.path)] = context.module, arguments[0].shape, y.shape
        return result

    def trace(*inputs):
        with nn.intercept_methods(note):
            return model.init(jax.random.key(0), *inputs)

    jax.eval_shape(trace, *inputs)
    return found


def _find_owner(name: str, rows) -> str:
    """The layer that a module's products belong to: itself, or the nearest around it that holds parameters."""
    path = name.split('/')
    around = ('/'.join(path[:length]) for length in range(len(path), -1, -1))
    return next((candidate for candidate in around if candidate in rows), name)


def _find_rule(module) -> Callable[..., MultiplyAdds] | None:
    return next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)


def _in_all_forms(products: int) -> MultiplyAdds:
    return MultiplyAdds(products, products, products)


def _if_dynamic(products: int) -> MultiplyAdds:
    """Of what only a dynamic layer has."""
    return MultiplyAdds(0, products, products)


def _mix(count: LayerCount) -> MultiplyAdds:
    """A weighted sum of the factors for each sample."""
    return MultiplyAdds(0, count.num_factors * count.positions, count.num_factors * count.dynamic_positions)


def _convolve(module, x: Shape, y: Shape, count: LayerCount) -> MultiplyAdds:
    sizes = module.kernel_size
    taps = sizes if isinstance(sizes, int) else math.prod(sizes)
    return _in_all_forms(math.prod(y) * taps * (x[-1] // module.feature_group_count))


def _mix_and_convolve(module, x, y, count) -> MultiplyAdds:
    return sum_multiply_adds([_convolve(module, x, y, count), _mix(count)])


def _squeeze(module, x, least_width: int) -> MultiplyAdds:
    return _if_dynamic(x[-1] * max(least_width, x[-1] // module.reduction))


def _convolve_od(module, x, y, count) -> MultiplyAdds:
    return sum_multiply_adds([_mix_and_convolve(module, x, y, count), _squeeze(module, x, OD_LEAST_WIDTH)])


def _convolve_dcd(module, x, y, count) -> MultiplyAdds:
    groups = module.feature_group_count
    channels, features = x[-1] // groups, y[-1] // groups
    latent = latent_width(channels)
    residual = math.prod(y[:-1]) * groups * latent * (channels + latent + features)
    parts = _convolve(module, x, y, count), _squeeze(module, x, DCD_LEAST_WIDTH), _if_dynamic(residual)
    return sum_multiply_adds(parts)


def _attend(module, x, y, count) -> MultiplyAdds:
    width = max(1, x[-1] // module.reduction)
    return _if_dynamic(width * (x[-1] + module.num_kernels))


def _multiply_dense(module, x, y, count) -> MultiplyAdds:
    return _in_all_forms(math.prod(x) * y[-1])


def _attend_to_tokens(module, x, y, count) -> MultiplyAdds:
    # Every token with every token, once for the weights and once for what they weigh.
    return _in_all_forms(2 * math.prod(x) * x[-2])


def _route(module, x, y, count) -> MultiplyAdds:
    units = math.prod(x[:-1]) if module.routing == 'token' else math.prod(x[:-2])
    return _if_dynamic(units * x[-1] * module.num_experts)


def _multiply_experts(module, x, y, count) -> MultiplyAdds:
    selected, positions, dynamic = module.num_selected, count.positions, count.dynamic_positions
    if isinstance(module, MixtureFFN):
        # Of the 2C + 1 positions of a neuron one is a bias.
        positions, dynamic = (size * 2 * x[-1] // (2 * x[-1] + 1) for size in (positions, dynamic))
    tokens = math.prod(x[:-1])
    # By element, what is static can't be computed apart: each expert multiplies by a whole matrix.
    once = 0 if module.granularity in (None, 'element') else positions - dynamic
    compact = selected * (positions - once) + once
    return MultiplyAdds(tokens * positions, tokens * selected * positions, tokens * compact)


RULES: dict[type[nn.Module], Callable[..., MultiplyAdds]] = {
    nn.Conv: _convolve,
    nn.Dense: _multiply_dense,
    MixingConv: _mix_and_convolve,
    ODConv: _convolve_od,
    DCDConv: _convolve_dcd,
    Attention: _attend,
    Head: lambda module, x, y, count: _if_dynamic(math.prod(x) * module.num_kernels),
    GeneratedTensor: lambda module, x, y, count: _mix(count),
    Router: _route,
    Mixture: _multiply_experts,
    SelfAttention: _attend_to_tokens,
}
"""(module, shape of x, shape of y, count) -> multiply-adds of the module itself, without the modules inside of it."""
