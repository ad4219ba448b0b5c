"""configs/imagenet_resnet50_pad.py for a TPU v4-32: eight times the batch and the learning rate.

Start this command on each of the 4 hosts of the slice at once, as docs/pods.md shows:

    python train.py --config=configs/imagenet_resnet50_pad_tpu_v4_32.py --workdir=/shared/runs/resnet50 \
        --config.data.path=FOLDER --config.parallel=shard_map --coordinator=auto

Written for its 16 chips of 32 GB. Each trains on 128 images; one of every host scores 128 images in rounds of the
partition. Neither the memory that this needs nor its accuracy has been measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.batches = 20
    config.partition.batch_size = 128
    config.data.batch_size = 2048
    config.optim.learning_rate = 0.8
    config.optim.warmup_steps = 3125
    config.train.eval_every_steps = 625
    config.train.checkpoint_every_steps = 625
    return config
