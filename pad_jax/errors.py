"""Exceptions that a command reports in one line."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class BadInput(ValueError):
    """Wrong input of the user: a flag, a config value or a file.

    The message is one line that names the value and the remedy. Commands print it on stderr and exit with status 2.
    """


class Stopped(RuntimeError):
    """End of a valid run that cannot continue, because the disk is full or the loss is not finite.

    The message is one line with the cause and the remedy. Commands print it on stderr and exit with status 1.
    """


def check_together(*checks: Callable[[], Any]) -> list:
    """Return the results of all checks, or raise one `BadInput` with the messages of all that failed."""
    found, problems = [], []
    for check in checks:
        try:
            found.append(check())
        except BadInput as problem:
            problems.append(problem)
    if problems:
        raise problems[0] if len(problems) == 1 else BadInput('; '.join(dict.fromkeys(map(str, problems))))
    return found


def quote(path: str | os.PathLike) -> str:
    r"""Quote a path and escape characters that would break the line.

    >>> print(quote('a\nb'))
    'a\nb'
    """
    return repr(str(path))


def list_first(names: Sequence[str], most: int = 3) -> str:
    """List the first names for a message.

    >>> list_first(['a', 'b', 'c', 'd', 'e'])
    'a, b, c and 2 more'
    """
    more = len(names) - most
    return ', '.join(names[:most]) + (f' and {more} more' if more > 0 else '')


def describe(error: Exception) -> str:
    """Return the message of any exception as one line, or its type if it has no message.

    >>> describe(OSError(13, 'Permission denied')), describe(KeyError())
    ('Permission denied', 'KeyError')
    """
    return getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise `BadInput`, with the allowed values, if `value` is not one of them.

    >>> check_choice('scales', 'both', ('both', 'none'))
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise BadInput(f'{name} must be one of {", ".join(map(str, allowed))}, got {value!r}')
