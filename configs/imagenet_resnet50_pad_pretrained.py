"""configs/imagenet_resnet50_pad.py from torchvision's weights: a third of the epochs, a tenth of the learning rate.

    python train.py --config=configs/imagenet_resnet50_pad_pretrained.py --workdir=runs/resnet50_pretrained \
        --config.model.pretrained=FILE --config.data.path=FOLDER

FILE is in the safetensors format. All kernels of a layer begin as copies of its weights. The partition therefore comes
after one epoch, when the kernels differ, and static parameters start from their mean. Written for one accelerator with
80 GB, or several whose number divides the batch of 256. Its accuracy has not been measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.partition.start_step = 5000  # one epoch
    config.partition.handoff = 'mean'
    config.optim.learning_rate = 0.01
    config.optim.warmup_steps = 2500
    config.train.epochs = 30.0
    config.train.temperature_share = 1 / 6
    return config
