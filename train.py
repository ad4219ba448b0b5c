"""Train a network: python train.py --config=FILE --workdir=DIR [--config.section.key=value ...]"""

import argparse
import sys

from pad_jax.training.cli import Parser, exit_status, parse_with_overrides
from pad_jax.training.config import KEYS, load_config
from pad_jax.training.processes import add_flags, all_or_none, join


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    keys = '\n'.join(f'--config.{key.name} ({key.models}): {key.help}; {key.rule.words}' for key in KEYS)
    parser = Parser(prog='train.py', description=__doc__, epilog=keys, formatter_class=raw)
    parser.add_argument('--config', required=True, help='a file of configs/; --config.section.key=value changes a key')
    parser.add_argument(
        '--workdir', required=True, help='run directory; if it contains checkpoints, training resumes from the latest'
    )
    add_flags(parser)
    flags, overrides = parse_with_overrides(parser, sys.argv[1:])
    join(flags.coordinator, flags.num_processes, flags.process_id, flags.join_seconds)
    with all_or_none():
        config = load_config(flags.config, overrides)
    from pad_jax.training.trainer import train  # after the config is checked: errors come at once

    train(config, flags.workdir)


if __name__ == '__main__':
    sys.exit(exit_status(main))
