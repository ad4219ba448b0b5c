"""configs/imagenet_resnet50_pad.py for one GPU with 40 GB: half the batch and the learning rate.

    python train.py --config=configs/imagenet_resnet50_pad_gpu.py --workdir=runs/resnet50 --config.data.path=FOLDER

Written for one GPU with 40 GB. It trains on 128 images and scores 128 images in rounds of the partition. Neither the
memory that this needs nor its accuracy has been measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.batches = 20
    config.partition.batch_size = 128
    config.data.batch_size = 128
    config.optim.learning_rate = 0.05
    config.optim.warmup_steps = 50000
    config.train.eval_every_steps = 10000
    config.train.checkpoint_every_steps = 10000
    return config
