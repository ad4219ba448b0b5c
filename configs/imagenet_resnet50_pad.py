"""Partially dynamic ResNet-50 on ImageNet at 224², κ = 0.3. Reads TFDS or folders of classes.

    python train.py --config=configs/imagenet_resnet50_pad.py --workdir=runs/resnet50 --config.data.path=FOLDER

Written for one accelerator with 80 GB, or several whose number divides the batch of 256. Configs for other hardware end
in _gpu, _8gpu and _tpu_v4_32. The learning rate is proportional to the batch: 0.1 · batch / 256. Add
--config.optim.ema_decay=0.9999 for a moving average of the parameters. Neither the memory that this needs nor its
accuracy has been measured here.
"""

from ml_collections import ConfigDict

from configs import digits_resnet10_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.name = 'resnet50'
    config.model.num_classes = 1000
    config.model.width_multiplier = 1.0
    config.model.stem = 'imagenet'
    config.model.dtype = 'bfloat16'
    config.partition.batch_size = 256
    config.data.name = 'imagenet'
    config.data.batch_size = 256
    config.data.image_size = 224
    config.data.augment = 'resized_crop'
    config.data.crop_padding = 0
    config.data.flip = True
    config.optim.learning_rate = 0.1
    config.optim.warmup_steps = 25000  # five epochs
    config.optim.weight_decay = 1e-4
    config.train.epochs = 100.0
    config.train.temperature_share = 0.15
    config.train.label_smoothing = 0.1
    config.train.eval_every_steps = 5000
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 5000
    return config
