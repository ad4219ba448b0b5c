"""Trains a network: python train.py --config=FILE --workdir=DIR [--config.section.key=value ...]"""

import sys

from pad_jax.training.command_line import Parser, exit_status, parse_with_overrides
from pad_jax.training.configuration import load_config
from pad_jax.training.processes import add_flags, all_or_none, join
from pad_jax.training.trainer import train


def main() -> None:
    parser = Parser(prog='train.py', description=__doc__)
    parser.add_argument('--config', required=True, help='a file of configs/')
    parser.add_argument(
        '--workdir', required=True, help='folder of the run; one that holds checkpoints is gone on with'
    )
    add_flags(parser)
    flags, overrides = parse_with_overrides(parser, sys.argv[1:])
    join(flags.coordinator, flags.num_processes, flags.process_id, flags.join_seconds)
    with all_or_none():
        config = load_config(flags.config, overrides)
    train(config, flags.workdir)


if __name__ == '__main__':
    sys.exit(exit_status(main))
