"""Train a network: python train.py --config=FILE --workdir=DIR [--config.section.key=value ...]"""

import sys

from pad_jax.__main__ import train
from pad_jax.training.cli import exit_status


def main() -> None:
    train(sys.argv[1:], prog='train.py')


if __name__ == '__main__':
    sys.exit(exit_status(main))
