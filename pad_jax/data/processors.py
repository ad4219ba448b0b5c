"""How many threads can work at once."""

import os


def usable_processors() -> list[int]:
    """Those that this process may run on; all of the machine where the system can't say which (other than Linux).

    >>> 1 <= len(usable_processors()) <= os.cpu_count()
    True
    """
    if hasattr(os, 'sched_getaffinity'):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
