"""What the commands share: flags, config overrides, and exit statuses."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import jax

from pad_jax.errors import BadInput, Stopped
from pad_jax.partition import PartitionError
from pad_jax.training.processes import AgreedProblem, AgreedStop, is_lost_connection, leave_at_once

BAD_INPUT = 2
MOST_CHARACTERS = 20_000
"""Of an error: all tensors that a large network lacks can be listed, and not what else a file may hold."""
LEFT_ALONE = (
    'ends because another process ended: see what that one said; start all again, the run goes on from its newest '
    'checkpoint if it has one'
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all others."""

    def __init__(self, **arguments):
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str):
        raise BadInput(f'{message}; see {self.prog} --help')


def parse_with_overrides(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags of the parser, and the overrides 'section.key=value' given as --config.section.key=value.

    >>> parse_with_overrides(Parser(), ['--config.train.steps=3', '--config.debug', 'True'])[1]
    ['train.steps=3', 'debug=True']
    """
    flags, rest = parser.parse_known_args(list(arguments))
    overrides = []
    while rest:
        flag = rest.pop(0)
        if not flag.startswith('--config.'):
            parser.error(f'unknown argument {flag}')
        if '=' not in flag:
            if not rest:
                parser.error(f'{flag} has no value')
            flag = f'{flag}={rest.pop(0)}'
        overrides.append(flag.removeprefix('--config.'))
    return flags, overrides


def make_line(text: str) -> str:
    r"""One line of it that a terminal only shows: what came from a file could move its cursor, or fill its screen.

    >>> print(make_line('a\n b \x1b[2J'))
    a b \x1b[2J
    """
    text = ''.join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in ' '.join(text.split()))
    left = len(text) - MOST_CHARACTERS
    return text if left <= 0 else f'{text[:MOST_CHARACTERS]}… and {left} characters more'


def exit_status(command: Callable[[], None]) -> int:
    """Runs a command; bad input becomes one line on stderr and status 2, a run that can't go on status 1."""
    logging.getLogger('absl').setLevel(logging.ERROR)  # what orbax has to say is said better by our own errors
    try:
        command()
        sys.stdout.flush()
    except (BadInput, PartitionError) as error:
        print(f'error: {make_line(str(error))}', file=sys.stderr)
        if not isinstance(error, AgreedProblem):
            leave_at_once(BAD_INPUT)
        return BAD_INPUT
    except Stopped as error:
        print(f'error: {make_line(str(error))}', file=sys.stderr)
        if not isinstance(error, AgreedStop):
            leave_at_once(1)
        return 1
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        leave_at_once(130)
        return 130
    except BrokenPipeError:  # who read stdout has seen enough; at its end Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if jax.distributed.is_initialized():
            if is_lost_connection(error):
                leave_at_once(1, LEFT_ALONE)
            traceback.print_exc()
        leave_at_once(1)
        raise
    return 0
