"""`small_train.py` that kills itself at the KILL_AT-th thing it does to a file below KILL_IN; without them, never."""

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path

CHANGES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate', 'os.utime')


def watch(folder: str, at: int) -> None:
    """Counts what Python is about to do, and dies before the `at`-th thing."""
    counter = itertools.count(1)

    def hook(event, arguments):
        if event == 'open':
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(folder) and next(counter) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == '__main__':
    if os.environ.get('KILL_AT'):
        watch(os.environ['KILL_IN'], int(os.environ['KILL_AT']))
    runpy.run_path(str(Path(__file__).parents[1] / 'training' / 'small_train.py'), run_name='__main__')
