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

from pad_jax.layers.attention import GeneratedTensor
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
            if not module.prune:
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
    if hasattr(module, 'multiply_adds'):
        return lambda module, x, y, count: MultiplyAdds(*module.multiply_adds(x, y, count))
    return next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)


def _in_all_forms(products: int) -> MultiplyAdds:
    return MultiplyAdds(products, products, products)


def _convolve(module, x: Shape, y: Shape, count: LayerCount) -> MultiplyAdds:
    sizes = module.kernel_size
    taps = sizes if isinstance(sizes, int) else math.prod(sizes)
    return _in_all_forms(math.prod(y) * taps * (x[-1] // module.feature_group_count))


def _multiply_dense(module, x, y, count) -> MultiplyAdds:
    return _in_all_forms(math.prod(x) * y[-1])


RULES: dict[type[nn.Module], Callable[..., MultiplyAdds]] = {
    nn.Conv: _convolve,
    nn.Dense: _multiply_dense,
}
"""(module, shape of x, shape of y, count) -> multiply-adds of the module itself, without the modules inside of it."""
