"""ImageNet, or photos laid out like it: as TFDS prepares it, or in the usual folders.

Photos are read and decoded when a batch needs them. What can be known without decoding is checked when the data is
opened: which classes, files and shards there are, and that they are whole.
"""

import pathlib
import shlex

from pad_jax.data.class_folders import list_class_folders, warn_of_unseen
from pad_jax.data.distortions import Distortion
from pad_jax.data.imagenet_tfds import NAME, find_prepared, open_splits
from pad_jax.data.records import FileRecords
from pad_jax.data.source import ImageSpec
from pad_jax.data.streaming import StreamedSource
from pad_jax.data.views import Augmentation
from pad_jax.errors import BadInput, quote

EXPECTED = f'a data_dir of TFDS that holds {NAME}/VERSION, or a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG'


def open_imagenet(
    *,
    path: str | None,
    batch_size: int,
    image_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
    augment: str = 'resized_crop',
    crop_padding: int | None = None,
    flip: bool | None = None,
    distortion: Distortion | None = None,
) -> StreamedSource:
    """The photos as float32[B, S, S, 3], normalised with ImageNet's mean and deviation.

    Arguments as for `pad_jax.data.make_source`. Evaluation sees the middle `image_size` pixels of the photo resized to
    256 / 224 of that, training what `pad_jax.data.views.Augmentation` says; without a choice photos are mirrored, and
    middles moved by an eighth of the side.

    Raises:
        BadInput: there is no data, with how to prepare it; or something is wrong with it that can be known without
            decoding it.
    """
    if not path:
        raise BadInput(f'data.path must name {EXPECTED}: {_explain_preparing("DIR")}')
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        problem = 'is not a folder' if root.exists() else 'does not exist'
        raise BadInput(f'{quote(root)} {problem}, data.path must name {EXPECTED}: {_explain_preparing(path)}')
    prepared = find_prepared(root)
    if prepared:
        class_names, train, evaluation = open_splits(prepared)
    elif (root / 'train').is_dir() or (root / 'val').is_dir():
        folders = list_class_folders(path)
        class_names, train, evaluation = folders.class_names, FileRecords(folders.train), FileRecords(folders.val)
        warn_of_unseen(folders, folders.val.labels)
    else:
        raise BadInput(f'{quote(root)} holds no photos, data.path must name {EXPECTED}: {_explain_preparing(path)}')
    return StreamedSource(
        spec=ImageSpec(
            num_classes=len(class_names),
            class_names=class_names,
            image_shape=(image_size, image_size, 3),
            num_train=len(train),
            num_eval=len(evaluation),
        ),
        train=train,
        eval=evaluation,
        batch_size=batch_size,
        seed=seed,
        augmentation=Augmentation(
            augment=augment,
            crop_padding=image_size // 8 if crop_padding is None else crop_padding,
            flip=True if flip is None else flip,
            distortion=distortion,
        ),
        on_bad=on_bad,
    )


def _explain_preparing(data_dir: str) -> str:
    return (
        f'python -m pad_jax prepare {NAME} --manual-dir=DIR_OF_THE_TARS --data-dir={shlex.quote(data_dir)} prepares it'
    )
