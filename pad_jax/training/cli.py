"""Shared by the commands: flags, config overrides, signals and exit statuses."""

import argparse
import contextlib
import errno
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from pad_jax.config_files import import_modules
from pad_jax.errors import BadInput, Stopped, quote
from pad_jax.files import reach
from pad_jax.partition import PartitionError
from pad_jax.streams import lasting_streams
from pad_jax.training.config import describe_keys
from pad_jax.training.processes import AgreedProblem, AgreedStop, is_lost_connection, leave_at_once

MAX_CHARACTERS = 20_000
"""Longest error line: enough to list all tensors that a large network lacks."""
OTHERS_ENDED = (
    'exits because another process exited: see its log. Restart all processes to resume from the latest checkpoint'
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all others."""

    def __init__(self, **arguments):
        super().__init__(allow_abbrev=False, **arguments)
        added = 'module of your own that registers criteria, layers, models or data sets; may be repeated'
        self.add_argument('--import', dest='modules', action='append', default=[], metavar='MODULE', help=added)

    def add_config(self, arguments: Sequence[str]) -> None:
        """Add --config. If help is asked for, its epilog lists the keys of that config."""
        if {'-h', '--help'} & {*arguments}:
            first = Parser(add_help=False)
            first.add_argument('--config', default='')
            self.epilog = describe_keys(first.parse_known_args(arguments)[0].config)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        shown = 'a Python file, or the name of a file of configs/; --config.section.key=value changes a key'
        self.add_argument('--config', required=True, help=shown)

    def parse_known_args(self, args=None, namespace=None):
        flags, others = super().parse_known_args(args, namespace)
        import_modules(flags.modules)
        return flags, others

    def error(self, message: str):
        raise BadInput(f'{message}; see {self.prog} --help')


def parse_with_overrides(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse flags, and --config.section.key=value into overrides 'section.key=value'.

    >>> parse_with_overrides(Parser(), ['--config.train.steps=3', '--config.debug', 'True'])[1]
    ['train.steps=3', 'debug=True']
    """
    flags, others = parser.parse_known_args(list(arguments))
    overrides = []
    while others:
        flag = others.pop(0)
        if not flag.startswith('--config.'):
            parser.error(f'unknown argument {flag}')
        if '=' not in flag:
            if not others:
                parser.error(f'{flag} has no value')
            flag = f'{flag}={others.pop(0)}'
        overrides.append(flag.removeprefix('--config.'))
    return flags, overrides


def path_flag(text: str) -> Path:
    """Read a path of the command line, for `type=`; ~ is the home folder."""
    try:
        return reach(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def workdir_flag(text: str) -> Path:
    """Read the path of a folder to write into, which JAX's libraries need as UTF-8."""
    if not text:
        raise argparse.ArgumentTypeError('it must name a folder, got an empty text')
    try:
        os.path.abspath(text).encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f'the path {quote(text)} must be UTF-8: use another folder') from error
    return path_flag(text)


def check_count(flag: str, value: int, most: int = 1000) -> None:
    """Raise BadInput unless the value of a flag is from 1 to `most`."""
    if not 1 <= value <= most:
        raise BadInput(f'{flag} must be an integer from 1 to {most}, got {value}')


def make_line(text: str) -> str:
    r"""Make one printable line of a text; escape sequences from files must not reach the terminal.

    >>> print(make_line('a\n b \x1b[2J'))
    a b \x1b[2J
    """
    text = ''.join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in ' '.join(text.split()))
    left = len(text) - MAX_CHARACTERS
    return text if left <= 0 else f'{text[:MAX_CHARACTERS]}… and {left} characters more'


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that the next start is quick. Settings of JAX win."""
    with contextlib.suppress(OSError, BadInput):  # without such a folder, everything is compiled again
        if jax.config.jax_compilation_cache_dir is None:
            # A program may use instructions that another machine lacks.
            folder = reach(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'pad_jax' / socket.gethostname()
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update('jax_compilation_cache_dir', str(folder))
    # After a damaged entry or on a full disk, the program is compiled again.
    warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')


def exit_status(command: Callable[[], None]) -> int:
    """Run a command and return its exit status.

    Bad input becomes one line on stderr and status 2, a run that cannot continue one line and status 1. So does output
    that is lost, but a reader that has seen enough gets no line.
    """
    use_compilation_cache()
    with lasting_streams() as find_lost:
        status, lost = _run(command), find_lost()
        if lost and lost.errno != errno.EPIPE:
            print(f'error: stdout cannot be written: {lost.strerror}', file=sys.stderr)
        return status or int(bool(lost))


def _run(command: Callable[[], None]) -> int:
    try:
        command()
        return 0
    except (BadInput, PartitionError, Stopped) as error:
        status = 1 if isinstance(error, Stopped) else 2
        print(f'error: {make_line(str(error))}', file=sys.stderr)
        return status if isinstance(error, (AgreedProblem, AgreedStop)) else leave_at_once(status)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return leave_at_once(130)
    except Exception as error:
        if line := _find_environment_problem(error):
            print(f'error: {make_line(line)}', file=sys.stderr)
            return leave_at_once(2)
        if jax.distributed.is_initialized():
            if is_lost_connection(error):
                leave_at_once(1, OTHERS_ENDED)
            traceback.print_exc()
            leave_at_once(1)
        raise


def _find_environment_problem(error: Exception) -> str:
    """Describe a file that the system refuses, a folder that is gone, or JAX without a device; '' for other errors."""
    if isinstance(error, OSError) and error.filename is not None:
        return f'{quote(os.fsdecode(error.filename))}: {error.strerror}'
    try:
        os.getcwd()
    except OSError as problem:
        return f'the current folder cannot be used: {problem.strerror}'
    try:
        jax.devices()
        return ''
    except (RuntimeError, AssertionError) as problem:  # of the plugin of a platform, or of its number of devices
        asked = {name: os.environ[name] for name in ('JAX_PLATFORMS', 'XLA_FLAGS') if os.environ.get(name)}
        given = ' '.join(f'{name}={value}' for name, value in asked.items())
        return f'JAX finds no device ({given or "JAX_PLATFORMS is not set"}): {str(problem) or "the platform has none"}'


class StopSignals:
    """Record SIGTERM and SIGINT in `received` during the `with` block; a second signal ends the process at once.

    The exit status is 128 + the signal's number: 143 or 130. With several processes, JAX agrees on the step after
    which all of them stop. There SIGINT counts as SIGTERM, and a second signal changes nothing.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> 'StopSignals':
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._record)
        if jax.process_count() > 1:  # jax.distributed handles SIGTERM itself
            handlers = {signal.SIGINT: lambda number, frame: signal.raise_signal(signal.SIGTERM)}
        with contextlib.suppress(ValueError):  # outside the main thread, signals belong to the caller
            self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def stop_after(self, step: int) -> bool:
        """Return True if the run must end now that `step` steps are done. Call after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received is not None

    def _record(self, number, frame):
        self.received = signal.Signals(number)
        self.__exit__()

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
