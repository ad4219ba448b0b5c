"""configs/imagenet_resnet50_pad.py for 8 GPUs: four times the batch and the learning rate.

    python train.py --config=configs/imagenet_resnet50_pad_8gpu.py --workdir=runs/resnet50 --config.data.path=FOLDER

Written for one host with 8 GPUs of at least 40 GB. Each trains on 128 images; one of them scores 128 images in rounds
of the partition. Neither the memory that this needs nor its accuracy has been measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.batches = 20
    config.partition.batch_size = 128
    config.data.batch_size = 1024
    config.optim.learning_rate = 0.4
    config.optim.warmup_steps = 6250
    config.train.eval_every_steps = 1250
    config.train.checkpoint_every_steps = 1250
    return config
