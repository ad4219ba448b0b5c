"""Small photos in class folders and as a data set of TFDS, and ways to spoil one."""

import contextlib
import io
import struct
import zlib

import numpy as np
from PIL import Image

CLASSES = ('n01440764', 'n01443537', 'n01484850')
SIZES = ((48, 40), (40, 56), (33, 33), (64, 20))


def make_photo(seed, size=(48, 40), format='JPEG'):
    """Return the bytes of a photo: smooth colours under noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(np.int64) + rng.integers(-20, 21, (size[1], size[0], 3))
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), format)


def encode(image, format='JPEG', **options):
    stream = io.BytesIO()
    image.save(stream, format, **({'quality': 95} if format == 'JPEG' else {}), **options)
    return stream.getvalue()


def write_folders(root, num_train=4, num_eval=2):
    """Write ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG; return the paths by split."""
    seed, paths = 0, {}
    for split, count in (('train', num_train), ('val', num_eval)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                path = root / split / name / f'{name}_{number}.JPEG'
                path.write_bytes(make_photo(seed, SIZES[seed % len(SIZES)]))
                paths.setdefault(split, []).append(path)
                seed += 1
    return paths


def write_prepared(data_dir, paths, num_shards=2, features=('image', 'label', 'file_name'), file_format='array_record'):
    """Write DATA_DIR/imagenet2012/5.1.0 by a builder of TFDS; return that folder."""
    import tensorflow_datasets as tfds

    known = {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names=list(CLASSES)),
        'file_name': tfds.features.Text(),
    }

    def generate(split):
        for number, path in enumerate(paths[split]):
            row = {'image': str(path), 'label': path.parent.name, 'file_name': path.name}
            yield number, {name: row[name] for name in features}

    with tfds.core.registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version('5.1.0')

            def _info(self):
                described = tfds.features.FeaturesDict({name: known[name] for name in features})
                return tfds.core.DatasetInfo(builder=self, features=described)

            def _split_generators(self, dl_manager):
                return {'train': generate('train'), 'validation': generate('val')}

            def _generate_examples(self):
                raise NotImplementedError

    options = tfds.download.DownloadConfig(num_shards=num_shards)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        builder = Imagenet2012(data_dir=str(data_dir), file_format=file_format)
        builder.download_and_prepare(download_config=options)
    return builder.data_path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def claim_size(width, height):
    """Return a PNG of one pixel whose header claims another size."""
    data = bytearray(encode(Image.new('RGB', (1, 1)), 'PNG'))
    data[16:24] = struct.pack('>II', width, height)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    return bytes(data)
