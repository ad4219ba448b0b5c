"""configs/imagenet_resnet50_pad.py for a TPU v4-32: sixteen times the batch and, with it, the learning rate.

    python train.py --config=configs/imagenet_resnet50_pad_tpu_v4_32.py --workdir=runs/resnet50 \
        --config.data.path=FOLDER

Run it on each of the 4 hosts of the slice. Written for its 16 chips, 256 images on each.
Its accuracy has not been measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.batch_size = 4096
    config.optim.learning_rate = 1.6
    config.optim.warmup_steps = 1560
    config.train.eval_every_steps = 310
    config.train.checkpoint_every_steps = 310
    return config
