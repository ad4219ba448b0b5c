"""torchvision's ResNets and MobileNetV2 as they read their tensors by name, in NumPy and float64; slow and obvious.

The tensors are made by walking the architecture, and the networks by walking the tensors: nothing of pad_jax is used.

Axis letters: N batch, C channels in, F channels out, H/W space.
"""

import numpy as np


class Maker:
    """Draws tensors by name."""

    def __init__(self, seed=0):
        self.generator = np.random.default_rng(seed)
        self.tensors = {}

    def conv(self, name, channels, features, side, groups=1):
        fan_in = channels // groups * side * side
        shape = (features, channels // groups, side, side)
        self.tensors[f'{name}.weight'] = self.generator.normal(0, fan_in**-0.5, shape)

    def norm(self, name, features):
        uniform = lambda low, high: self.generator.uniform(low, high, features)  # noqa: E731
        self.tensors[f'{name}.weight'], self.tensors[f'{name}.bias'] = uniform(0.5, 1.5), uniform(-0.5, 0.5)
        self.tensors[f'{name}.running_mean'] = uniform(-0.5, 0.5)
        self.tensors[f'{name}.running_var'] = uniform(0.5, 1.5)
        self.tensors[f'{name}.num_batches_tracked'] = np.array(7)

    def linear(self, name, inputs, outputs):
        self.tensors[f'{name}.weight'] = self.generator.normal(0, inputs**-0.5, (outputs, inputs))
        self.tensors[f'{name}.bias'] = self.generator.normal(size=outputs)

    def finish(self):
        """float32, except for the counters."""
        return {
            name: np.ascontiguousarray(tensor, np.int64 if tensor.dtype == int else np.float32)
            for name, tensor in self.tensors.items()
        }


def make_resnet(blocks, width, classes, bottleneck, image_channels=3, stem_side=7):
    """The tensors of a ResNet with that many blocks in each stage."""
    make, channels = Maker(), width
    make.conv('conv1', image_channels, width, stem_side)
    make.norm('bn1', width)
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        outer = 4 * inner if bottleneck else inner
        sides = [(1, inner), (3, inner), (1, outer)] if bottleneck else [(3, inner), (3, outer)]
        for index in range(count):
            block, came = f'layer{stage + 1}.{index}', channels
            for number, (side, features) in enumerate(sides, start=1):
                make.conv(f'{block}.conv{number}', came, features, side)
                make.norm(f'{block}.bn{number}', features)
                came = features
            if index == 0 and (stage > 0 or channels != outer):
                make.conv(f'{block}.downsample.0', channels, outer, 1)
                make.norm(f'{block}.downsample.1', outer)
            channels = outer
    make.linear('fc', channels, classes)
    return make.finish()


def make_mobilenet(stages, stem, last, classes):
    """The tensors of a MobileNetV2; stages are (expansion, features, blocks, strides)."""
    make, channels, number = Maker(), stem, 0
    make.conv('features.0.0', 3, stem, 3)
    make.norm('features.0.1', stem)
    for expansion, features, count, _ in stages:
        for _ in range(count):
            number += 1
            inner, name = channels * expansion, f'features.{number}.conv'
            place = 0
            if expansion != 1:
                make.conv(f'{name}.0.0', channels, inner, 1)
                make.norm(f'{name}.0.1', inner)
                place = 1
            make.conv(f'{name}.{place}.0', inner, inner, 3, groups=inner)
            make.norm(f'{name}.{place}.1', inner)
            make.conv(f'{name}.{place + 1}', inner, features, 1)
            make.norm(f'{name}.{place + 2}', features)
            channels = features
    make.conv(f'features.{number + 1}.0', channels, last, 1)
    make.norm(f'features.{number + 1}.1', last)
    make.linear('classifier.1', last, classes)
    return make.finish()


def convolve(x, weight, stride=1, groups=1):
    """[N, C, H, W] with [F, C / groups, h, w], zeros around; one place of the kernel after the other."""
    features, per_group, height, width = weight.shape
    pad = height // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((size + 2 * pad - height) // stride + 1 for size in x.shape[2:])
    y = np.zeros((len(x), features, rows, columns))
    for i in range(height):
        for j in range(width):
            window = padded[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
            for feature in range(features):
                first = feature // (features // groups) * per_group
                y[:, feature] += np.tensordot(window[:, first : first + per_group], weight[feature, :, i, j], (1, 0))
    return y


def normalize(x, tensors, name):
    """Batch norm by its running statistics, epsilon 1e-5."""
    mean, var, weight, bias = (
        tensors[f'{name}.{part}'].astype(np.float64)[:, None, None]
        for part in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def pool(x):
    """3×3 maximum with stride 2."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    rows, columns = ((size - 1) // 2 + 1 for size in x.shape[2:])
    windows = [padded[:, :, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i in range(3) for j in range(3)]
    return np.max(windows, axis=0)


def run_resnet(tensors, images):
    """Logits float64[N, classes] of images [N, 3, H, W]."""
    conv = lambda x, name, stride=1: convolve(x, tensors[f'{name}.weight'], stride)  # noqa: E731
    norm = lambda x, name: normalize(x, tensors, name)  # noqa: E731
    x = pool(np.maximum(norm(conv(images, 'conv1', 2), 'bn1'), 0))
    blocks = sorted({'.'.join(name.split('.')[:2]) for name in tensors if name.startswith('layer')})
    for block in blocks:
        count = 3 if f'{block}.conv3.weight' in tensors else 2
        first = 2 if block.endswith('.0') and not block.startswith('layer1') else 1
        y = x
        for number in range(1, count + 1):
            # A bottleneck takes its stride in the 3×3 convolution, the second.
            stride = first if number == count - 1 else 1
            y = norm(conv(y, f'{block}.conv{number}', stride), f'{block}.bn{number}')
            y = np.maximum(y, 0) if number < count else y
        if f'{block}.downsample.0.weight' in tensors:
            x = norm(conv(x, f'{block}.downsample.0', first), f'{block}.downsample.1')
        x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ tensors['fc.weight'].T + tensors['fc.bias']


def run_mobilenet(tensors, images, stages):
    """Logits float64[N, classes] of images [N, 3, H, W]."""

    def step(x, conv, norm, stride=1, groups=1, bounded=True):
        x = normalize(convolve(x, tensors[f'{conv}.weight'], stride, groups), tensors, norm)
        return np.clip(x, 0, 6) if bounded else x

    x, number = step(images, 'features.0.0', 'features.0.1', stride=2), 0
    for expansion, _, count, strides in stages:
        for index in range(count):
            number += 1
            name, y, place = f'features.{number}.conv', x, 0
            if expansion != 1:
                y, place = step(y, f'{name}.0.0', f'{name}.0.1'), 1
            stride = strides if index == 0 else 1
            y = step(y, f'{name}.{place}.0', f'{name}.{place}.1', stride, groups=y.shape[1])
            y = step(y, f'{name}.{place + 1}', f'{name}.{place + 2}', bounded=False)
            x = x + y if x.shape == y.shape else y
    x = step(x, f'features.{number + 1}.0', f'features.{number + 1}.1')
    return x.mean((2, 3)) @ tensors['classifier.1.weight'].T + tensors['classifier.1.bias']
