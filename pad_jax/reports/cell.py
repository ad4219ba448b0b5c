"""One cell of a sweep, in a process of its own: what crashes, or needs too much memory, is that cell alone.

    python -m pad_jax.reports.cell WORKDIR LABEL

The first line of stdin is the config as JSON. The end of stdin ends the run as SIGTERM does, with a checkpoint: the
sweep closes it, or has itself been killed.
"""

import json
import os
import signal
import sys
import threading

import ml_collections

from pad_jax.training.cli import exit_status
from pad_jax.training.trainer import train


def main() -> None:
    workdir, label = sys.argv[1:]
    config = ml_collections.ConfigDict(json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    train(config, workdir, label)


def _stop_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # The sweep has blocked it, as a second one would end the run without a checkpoint: it may have come by itself.
    if signal.SIGTERM not in signal.sigpending():
        os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


if __name__ == '__main__':
    sys.exit(exit_status(main))
