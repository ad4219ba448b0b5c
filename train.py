"""Trains a network: python train.py --config=FILE --workdir=DIR [--config.section.key=value ...]"""

import sys

from pad_jax.training.command_line import Parser, exit_status, parse_with_overrides
from pad_jax.training.configuration import load_config
from pad_jax.training.trainer import train


def main() -> None:
    parser = Parser(prog='train.py', description=__doc__)
    parser.add_argument('--config', required=True, help='a file of configs/')
    parser.add_argument(
        '--workdir', required=True, help='folder of the run; one that holds checkpoints is gone on with'
    )
    flags, overrides = parse_with_overrides(parser, sys.argv[1:])
    train(load_config(flags.config, overrides), flags.workdir)


if __name__ == '__main__':
    sys.exit(exit_status(main))
