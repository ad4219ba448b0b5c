"""pad_jax beside PyTorch and timm: convolutions and a training step of ResNet-18, in one run.

    make bench-peers                               # in .venv-torch, some five minutes on 2 cores
    .venv-torch/bin/python benchmarks/peers.py --parts=step --repeats=20

A ratio is pad_jax's time / the peer's time of the same round: the median over rounds, with its quartiles.
Before the clock starts, each peer takes over the same weights, and its outputs, gradients and losses are compared.
The layers of fightingcv-attention are measured too if that package is installed.

Both frameworks share one process and use as many threads as there are usable processors. PyTorch's threads spin for
11 ms after a call, which would slow down the next call of XLA. So each timed call follows a pause of 20 ms.
The shared process was compared with a process for each framework, on one core. Times differed by less than 3 %, except
for PyTorch's convolutions of 56² and 7²: these are 3 to 8 % faster in the shared process.
Run it on an idle machine. PyTorch's threads spin while they wait for one another, so another program slows PyTorch down
far more than XLA. `taskset -c 0` measures one thread of each, which a busy machine disturbs less.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console
from rich.table import Table

try:
    import timm
    import torch
except ImportError as error:
    raise SystemExit(f'{error}: run `make bench-peers`, which installs PyTorch and timm into .venv-torch') from error

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conv
import models
from _timing import compile_call, sample_interleaved
from safetensors.torch import save_file

from pad_jax.layers import CondConv, DynamicConv, StaticConv

PAUSE = 0.02  # seconds
PARTS = ('conv', 'step')
STEP_ROWS = {
    'static': models.STATIC,
    'fully dynamic': models.FORMS['full'],
    'κ = 0.3 by output, compact': models.FORMS['pad output compact'],
}
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.1, 0.9, 1e-4, 0.1  # of configs/imagenet_resnet50_pad.py


class Pair(NamedTuple):
    """A layer of pad_jax, a peer with the same function, and {our parameter: (the peer's, shape, order of axes)}."""

    ours: nn.Module
    peer: torch.nn.Module
    names: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...]]]

    def rename(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Rename and transpose the peer's parameters, or their gradients."""
        convert = lambda name, shape, axes: tensors[name].detach().reshape(shape).permute(axes).numpy()  # noqa: E731
        return {ours: convert(*where) for ours, where in self.names.items()}


class RoutedCondConv2d(torch.nn.Module):
    """timm's CondConv2d behind its usual router: a sigmoid of a linear layer of pooled features."""

    def __init__(self, channels: int, features: int, side: int, num_kernels: int):
        super().__init__()
        self.route = torch.nn.Linear(channels, num_kernels)
        self.conv = timm.layers.CondConv2d(channels, features, side, padding=side // 2, num_experts=num_kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, F, H, W]."""
        return self.conv(x, torch.sigmoid(self.route(x.mean((2, 3)))))


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table of each part."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(
        f'jax {jax.__version__}, torch {torch.__version__}, timm {timm.__version__}; threads: {options.threads}'
    )
    if 'conv' in options.parts:
        console.print(tabulate_convolutions(options))
    if 'step' in options.parts:
        console.print(tabulate_steps(options))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--parts', default=','.join(PARTS), help=f'some of {",".join(PARTS)}')
    parser.add_argument('--batch-size', type=int, default=8, help='of convolutions')
    parser.add_argument('--num-kernels', type=int, default=4)
    parser.add_argument('--images', type=int, default=16, help='of a training step')
    parser.add_argument('--image-size', type=int, default=112, help='pixels, of a training step')
    parser.add_argument('--repeats', type=int, default=15, help='timed calls of each row')
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(',')
    if not set(options.parts) <= set(PARTS):
        parser.error(f'--parts must be some of {",".join(PARTS)}, got {",".join(options.parts)}')
    options.threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return options


def make_pairs(shape: conv.Shape, num_kernels: int) -> dict[str, Pair]:
    """Make all pairs of one shape, none of them with a bias."""
    side, channels, features = shape.kernel, shape.channels, shape.features
    fields = {'features': features, 'kernel_size': (side, side), 'use_bias': False}
    matrix = features, channels, side, side
    kernels = (num_kernels, *matrix), (0, 3, 4, 2, 1)
    static = torch.nn.Conv2d(channels, features, side, padding=side // 2, bias=False)
    expand = (num_kernels, channels), (1, 0)
    timm_names = {
        'kernel': ('conv.weight', *kernels),
        'attention/expand': ('route.weight', *expand),
        'attention/bias': ('route.bias', (num_kernels,), (0,)),
    }
    mixing = {**fields, 'num_kernels': num_kernels}
    routed = RoutedCondConv2d(channels, features, side, num_kernels)
    pairs = {
        'static / PyTorch': Pair(StaticConv(**fields), static, {'kernel': ('weight', matrix, (2, 3, 1, 0))}),
        'CondConv / timm': Pair(CondConv(**mixing), routed, timm_names),
    }
    if importlib.util.find_spec('fightingcv_attention'):
        from fightingcv_attention.conv import CondConv as cond
        from fightingcv_attention.conv import DynamicConv as dynamic

        arguments = {'stride': 1, 'padding': side // 2, 'bias': False, 'K': num_kernels}
        names = {'kernel': ('weight', *kernels), 'attention/expand': ('attention.net.weight', *expand)}
        layer = cond.CondConv(channels, features, side, **arguments)
        pairs['CondConv / fightingcv'] = Pair(CondConv(**mixing), layer, names)
        reduction = 16
        width = channels // reduction
        names = {
            'kernel': ('weight', *kernels),
            'attention/squeeze': ('attention.net.0.weight', (width, channels), (1, 0)),
            'attention/expand': ('attention.net.2.weight', (num_kernels, width), (1, 0)),
        }
        layer = dynamic.DynamicConv(channels, features, side, **arguments, temprature=1, ratio=reduction)
        pairs['DynamicConv / fightingcv'] = Pair(DynamicConv(**mixing, reduction=reduction), layer, names)
    return pairs


def tabulate_convolutions(options: argparse.Namespace) -> Table:
    """Measure the shapes of benchmarks/conv.py, and make a table of ratios with geometric means."""
    table = Table(title=f'time / peer, {options.batch_size} images, K = {options.num_kernels}')
    rounds = {}
    for shape in conv.SHAPES['resnet']:
        pairs = make_pairs(shape, options.num_kernels)
        x = jax.random.normal(jax.random.key(0), (options.batch_size, shape.side, shape.side, shape.channels))
        for mode in conv.MODES:
            calls = {}
            for name, pair in pairs.items():
                calls[name], calls[name, 'peer'] = compile_pair(pair, mode, x)
            seconds = sample_interleaved(calls, options.repeats, PAUSE)
            ratios = {name: np.divide(seconds[name], seconds[name, 'peer']) for name in pairs}
            rounds[shape, mode] = np.median(seconds['static / PyTorch', 'peer']), ratios
    for column in ('shape', 'mode', 'PyTorch, ms', *pairs):
        table.add_column(column)
    for (shape, mode), (seconds, ratios) in rounds.items():
        table.add_row(str(shape), mode, f'{seconds * 1e3:.1f}', *map(describe, ratios.values()))
    table.add_section()
    for mode in conv.MODES:
        medians = [[np.median(ratio) for ratio in rounds[shape, mode][1].values()] for shape in conv.SHAPES['resnet']]
        means = np.exp(np.log(medians).mean(axis=0))
        table.add_row('geometric mean', mode, '', *(f'{mean:.2f}' for mean in means))
    return table


def compile_pair(pair: Pair, mode: str, x: jax.Array) -> tuple[Callable, Callable]:
    """Make a call of each layer of a pair on x [B, H, W, C], after a comparison of both."""
    params = flatten_dict(pair.ours.init(jax.random.key(0), x)['params'], sep='/')  # biases are zero
    params = unflatten_dict(params | pair.rename(dict(pair.peer.named_parameters())), sep='/')
    apply = lambda x, params: pair.ours.apply({'params': params}, x)  # noqa: E731
    ours = compile_call(apply, 'forward+backward', x, params)
    image, cotangent = (to_torch(array).requires_grad_() for array in (x, ours.args[0]))

    def forward():
        with torch.no_grad():
            return pair.peer(image)

    def both():
        y = pair.peer(image)
        return y, torch.autograd.grad(y, [image, *pair.peer.parameters()], cotangent)

    y, (dx, gradients) = ours()
    their_y, (their_dx, *theirs) = both()
    names = [name for name, _ in pair.peer.named_parameters()]
    check_close('outputs', y, to_numpy(their_y))
    check_close('gradient of the input', dx, to_numpy(their_dx))
    gradients = flatten_dict(gradients, sep='/')
    for name, gradient in pair.rename(dict(zip(names, theirs))).items():
        check_close(f'gradient of {name}', gradients[name], gradient)
    return (ours, both) if mode == 'forward+backward' else (compile_call(apply, mode, x, params), forward)


def tabulate_steps(options: argparse.Namespace) -> Table:
    """Measure a training step of ResNet-18, and make a table of seconds and ratios."""
    network = timm.create_model('resnet18', num_classes=1000)
    sizes = models.parse_options([f'--batch-size={options.images}', f'--image-size={options.image_size}'])
    with tempfile.TemporaryDirectory() as folder:
        save_file(network.state_dict(), f'{folder}/model.safetensors')
        changes = [f'model.pretrained={folder}/model.safetensors', 'optim.warmup_steps=0', 'partition.start_step=1']
        configs = {row: models.load('resnet18', [*form, *changes], sizes) for row, form in STEP_ROWS.items()}
        steps = {row: models.prepare_step(config, options.images).call for row, config in configs.items()}
    batch = models.make_batch(configs['static'], options.images)
    peers = {'PyTorch': torch.contiguous_format, 'PyTorch, channels last': torch.channels_last}
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for row, memory_format in peers.items():
        network = timm.create_model('resnet18', num_classes=1000)
        network.load_state_dict(weights)
        steps[row] = make_peer_step(network.to(memory_format=memory_format), batch, memory_format)
    # The loss of the second step depends on the gradients of the first.
    losses = {row: [float(step()[1]['loss']) for _ in range(2)] for row, step in steps.items()}
    for row in ('static', *peers):
        check_close(f'losses of {row}', losses[row], losses['PyTorch'])
    seconds = sample_interleaved(steps, options.repeats, PAUSE)
    table = Table(title=f'training step of ResNet-18, {options.images} × {options.image_size}²')
    for column in ('', 'seconds', *(f'/ {row}' for row in peers)):
        table.add_column(column)
    for row, found in seconds.items():
        ratios = (describe(np.divide(found, seconds[peer])) for peer in peers)
        table.add_row(row, f'{np.median(found):.3f}', *ratios)
    return table


def make_peer_step(network: torch.nn.Module, batch: Mapping[str, jax.Array], memory_format) -> Callable:
    """Make a call that takes one step of SGD with momentum, like those of benchmarks/models.py."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [{'params': decayed, 'weight_decay': WEIGHT_DECAY}, {'params': others}]
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM)
    image = to_torch(batch['image']).to(memory_format=memory_format)
    label = torch.from_numpy(np.array(batch['label'])).long()
    network.train()

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(image), label, label_smoothing=LABEL_SMOOTHING)
        loss.backward()
        optimizer.step()
        return None, {'loss': loss.detach()}

    return step


def to_torch(images: jax.Array) -> torch.Tensor:
    """Copy [B, H, W, C] as [B, C, H, W]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()


def to_numpy(images: torch.Tensor) -> np.ndarray:
    """Copy [B, C, H, W] as [B, H, W, C]."""
    return images.detach().permute(0, 2, 3, 1).numpy()


def check_close(name: str, ours, theirs) -> None:
    """Stop if arrays differ by more than a thousandth of the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference < 1e-3, f'{name}: pad_jax and its peer differ by {difference:.1e} of the largest entry'


def describe(ratios: np.ndarray) -> str:
    """Write a median with its quartiles."""
    first, median, third = np.percentile(ratios, (25, 50, 75))
    return f'{median:.2f} ({first:.2f}–{third:.2f})'


if __name__ == '__main__':
    main()
