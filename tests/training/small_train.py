"""train.py with one block instead of ResNet-10 and one layer instead of the tiny BERT, as a whole process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from pad_jax.models import ENCODERS, MODELS
from pad_jax.training.cli import exit_status
from tests.training.tiny import ONE_BLOCK
from tests.training.tiny_texts import ONE_LAYER

if __name__ == '__main__':
    MODELS['resnet10'] = ONE_BLOCK
    ENCODERS['bert_tiny'] = ONE_LAYER
    sys.exit(exit_status(train.main))
