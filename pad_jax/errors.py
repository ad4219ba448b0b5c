"""The exceptions that a command turns into one line, and how that line names a file."""

import os


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


def quote(path: str | os.PathLike) -> str:
    r"""In quotes, with anything escaped that would break the line.

    >>> print(quote('a\nb'))
    'a\nb'
    """
    return repr(str(path))
