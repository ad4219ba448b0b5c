"""The one exception that a command turns into one line and exit status 2, and how that line names a file."""

import os


class BadInput(ValueError):
    """Something that the user gave (a flag, a config value, a file) is wrong.

    Its message is one line that names the value and says what is allowed or what to do. Commands print it
    on stderr and exit with status 2; code that calls this package as a library sees a `ValueError`.

    >>> issubclass(BadInput, ValueError)
    True
    """


def quote(path: str | os.PathLike) -> str:
    r"""In quotes, with anything escaped that would break the line.

    >>> print(quote('a\nb'))
    'a\nb'
    """
    return repr(str(path))
