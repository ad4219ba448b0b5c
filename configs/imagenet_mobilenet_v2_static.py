"""Static counterpart of configs/imagenet_mobilenet_v2_pad.py.

    python train.py --config=configs/imagenet_mobilenet_v2_static.py --workdir=runs/mobilenet_static \
        --config.data.path=FOLDER

Written for one accelerator with 80 GB, or several whose number divides the batch of 256. Its accuracy has not been
measured here.
"""

from ml_collections import ConfigDict

from configs import imagenet_mobilenet_v2_pad as base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.conv = 'static'
    return config
