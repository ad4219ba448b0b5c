"""A run of a sweep with a network of one block instead of ResNet-10."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pad_jax.models import MODELS
from pad_jax.reports.sweep import train_one
from pad_jax.training.cli import exit_status
from tests.training.tiny import ONE_BLOCK

if __name__ == '__main__':
    MODELS['resnet10'] = ONE_BLOCK
    sys.exit(exit_status(train_one))
