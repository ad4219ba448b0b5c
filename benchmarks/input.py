"""Speed of making batches of photos, relative to bare decoding in the same run.

    python benchmarks/input.py                           # writes 256 photos of 500 × 375 into a temporary folder
    python benchmarks/input.py --data=FOLDER             # train/CLASS/*.JPEG, or a data_dir of TFDS

The bare decoder opens a file with Pillow and makes an array of its pixels. The pipeline does the same; it also reads,
chooses a part, resizes with antialiasing, mirrors, normalises and collects batches. The unit is photos per second of
processor time, so that neither other processes nor a slow disk matter. Rounds of all rows are interleaved; a first
round fills the disk's cache. The median of the ratios counts. The goal is 0.8 for resized_crop.

The pipeline decodes a JPEG at half its size or less if twice the wanted size remains. The bare decoder never does, so
the pipeline may be faster. The row "without draft" switches this off. At 224 pixels the two do not differ for photos
written here, as they are small. They have as many bytes as ImageNet's (110 kB on average), which decoding depends on.
"""

import argparse
import collections
import contextlib
import functools
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, JpegImagePlugin
from rich.console import Console
from rich.table import Table

# A script's own folder is on the path, the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pad_jax.data import ImageSource, make_source

DECODER = 'bare decoder'
VARIANTS = {
    'resized_crop': {},
    'without draft': {},
    'with colour jitter': {'color_jitter': 0.4},
    'with RandAugment': {'randaugment_layers': 2, 'randaugment_magnitude': 9},
    'evaluation': {},  # training photos, as evaluation sees them
}


def main(arguments: list[str] | None = None) -> None:
    """Measure all rows and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, help='photos to read; without it some are written')
    parser.add_argument('--batches', type=int, default=4, help='in a round')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--image-size', type=int, default=224)
    parser.add_argument('--repeats', type=int, default=5, help='rounds')
    options = parser.parse_args(arguments)
    num_photos = options.batches * options.batch_size
    console = Console(width=None if sys.stdout.isatty() else 100)
    with tempfile.TemporaryDirectory() as folder, console.status('writing photos ...') as status:
        if options.data is None:
            options.data = Path(folder)
            write_photos(options.data, num_photos)
        status.update('measuring ...')
        rounds = measure(options)
    bare = rounds[DECODER]
    table = Table(title=f'photos a second of processor time, {options.repeats} rounds of {num_photos}')
    for column in ('', 'photos / s', '/ decoder'):
        table.add_column(column, justify='right' if column else 'left')
    for name, seconds in rounds.items():
        ratio = statistics.median(one / other for one, other in zip(bare, seconds, strict=True))
        table.add_row(name, f'{num_photos / statistics.median(seconds):.0f}', f'{ratio:.2f}')
    console.print(table)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of processor time of every round by row; all rows make equally many photos."""
    sources = {
        name: make_source(
            'imagenet',
            path=str(options.data),
            batch_size=options.batch_size,
            image_size=options.image_size,
            augment='resized_crop',
            **changes,
        )
        for name, changes in VARIANTS.items()
    }
    train = sources['resized_crop'].train.records

    def decode() -> None:
        for index in range(options.batches * options.batch_size):
            np.asarray(Image.open(io.BytesIO(train.read(index % len(train)).data)))

    def make_batches(source: ImageSource) -> None:
        with source.train_batches(0, options.batches) as batches:
            collections.deque(batches, maxlen=0)

    def make_undrafted() -> None:
        with whole_photos():
            make_batches(sources['without draft'])

    def evaluate() -> None:
        for index in range(options.batches):
            sources['evaluation'].scoring_batch(index, options.batch_size)

    calls: dict[str, Callable[[], None]] = {DECODER: decode}
    calls |= {name: functools.partial(make_batches, source) for name, source in sources.items()}
    calls |= {'without draft': make_undrafted, 'evaluation': evaluate}
    seconds = {name: [] for name in calls}
    for number in range(options.repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def whole_photos() -> contextlib.AbstractContextManager:
    """Decode photos at their own size inside a `with` block."""
    return mock.patch.object(JpegImagePlugin.JpegImageFile, 'draft', lambda image, mode, size: None)


def write_photos(folder: Path, count: int) -> None:
    """Write photos of two classes: smooth shapes under the noise of a camera, at 4:2:0 and quality 95."""
    rng = np.random.default_rng(0)
    for number in range(count + 2):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + rng.normal(0, 9, (375, 500, 3))
        path = folder / ('train' if number < count else 'val') / f'class{number % 2}' / f'{number}.JPEG'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)


if __name__ == '__main__':
    main()
