"""Tars laid out as ImageNet's, with a few small images in them."""

import io
import tarfile

import numpy as np
from PIL import Image

SIDE = 64
# The first, second and last of TFDS's labels.
CLASSES = {'n01440764': 0, 'n01443537': 1, 'n15075141': 999}
# The first, second and last of TFDS's validation labels: what ILSVRC2012_val_00000001.JPEG has, and so on.
VALIDATION = {1: 65, 2: 970, 50000: 355}


def make_image(seed, mode='RGB', format='JPEG'):
    """A picture of one colour with some noise, as a file."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 230, 3) + rng.integers(0, 25, (SIDE, SIDE, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, format)
    return buffer.getvalue()


def make_tar(files):
    """A tar of (name, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def list_train():
    """{file name: (content, label)} of two images in each class; the names do not begin in the order of the classes."""
    return {
        f'{name}_{10 * number + label % 7}.JPEG': (make_image(10 * label + number), label)
        for name, label in CLASSES.items()
        for number in range(2)
    }


def list_validation():
    return {f'ILSVRC2012_val_{n:08}.JPEG': (make_image(n), label) for n, label in VALIDATION.items()}


def write_train(folder, images):
    """The tar of tars. Images are put where their names say."""
    classes = sorted({name.split('_')[0] for name in images})
    tars = [
        (f'{wnid}.tar', make_tar([(name, found[0]) for name, found in images.items() if name.startswith(wnid)]))
        for wnid in classes
    ]
    path = folder / 'ILSVRC2012_img_train.tar'
    path.write_bytes(make_tar(tars))
    return path


def write_validation(folder, images):
    path = folder / 'ILSVRC2012_img_val.tar'
    path.write_bytes(make_tar([(name, found[0]) for name, found in images.items()]))
    return path


def write_tars(folder):
    """Both tars in `folder`, which is made."""
    folder.mkdir()
    write_train(folder, list_train())
    write_validation(folder, list_validation())
    return folder
