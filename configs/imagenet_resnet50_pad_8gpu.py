"""configs/imagenet_resnet50_pad.py for 8 GPUs: four times the batch, and four times the learning rate with it.

    python train.py --config=configs/imagenet_resnet50_pad_8gpu.py --workdir=runs/resnet50 --config.data.path=FOLDER

Written for one host with 8 GPUs of 40 GB or more, 128 images on each.
Its accuracy has not been measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.batch_size = 1024
    config.optim.learning_rate = 0.4
    config.optim.warmup_steps = 6250
    config.train.eval_every_steps = 1250
    config.train.checkpoint_every_steps = 1250
    return config
