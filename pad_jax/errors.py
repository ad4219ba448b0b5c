"""The exceptions that a command turns into one line, and how that line names things."""

import os
from collections.abc import Callable
from typing import Any


class BadInput(ValueError):
    """Something that the user gave (a flag, a config value, a file) is wrong.

    Its message is one line that names the value and says what is allowed or what to do. Commands print it
    on stderr and exit with status 2; code that calls this package as a library sees a `ValueError`.

    >>> issubclass(BadInput, ValueError)
    True
    """


class Stopped(RuntimeError):
    """A run that was right to begin can't go on: the disk is full, or the loss is no number.

    Its message is one line that says what happened and what to do. Commands print it on stderr and exit with status 1.
    """


def check_together(*checks: Callable[[], Any]) -> list:
    """Makes all of the checks before it raises what they found, so that a user is told everything at once.

    Returns:
        What they return.

    Raises:
        BadInput: with what each of them had to say.
    """
    found, problems = [], []
    for check in checks:
        try:
            found.append(check())
        except BadInput as problem:
            problems.append(problem)
    if len(problems) > 1:
        raise BadInput('; '.join(dict.fromkeys(map(str, problems))))
    if problems:
        raise problems[0]
    return found


def quote(path: str | os.PathLike) -> str:
    r"""In quotes, with anything escaped that would break the line.

    >>> print(quote('a\nb'))
    'a\nb'
    """
    return repr(str(path))
