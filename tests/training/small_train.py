"""train.py with a network of one block in the place of ResNet-10, and an encoder of one layer in that of the tiny BERT.

For tests that need a whole process.
"""

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
