"""Several processes that train one network: how they join, and what they agree on.

Everything is built on `gather`, which gives each process the values of all. Bad input of one process ends all of them
with one line each: a process that stopped by itself would leave the others waiting in the next step. In a run of one
process none of this costs anything.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pad_jax.data.source import usable_processors
from pad_jax.errors import BadInput, Stopped
from pad_jax.partition import PartitionError

AUTO = 'auto'
HEARTBEAT_SECONDS = 100
"""Seconds without a sign of life after which a process is given up, and the others with it."""
SECONDS_TO_APPEAR = 60
"""Seconds until a network file system must show a new file to other machines."""
_LOST = re.compile(
    r'Gloo [\w-]+ failed: .*(Connection (reset|closed) by peer|Broken pipe)'
    r'|NCCL .* failed: remote process exited or there was a network error',
    re.DOTALL,
)


class AgreedProblem(BadInput):
    """Bad input that every process knows of, so that all end together."""


class AgreedStop(Stopped):
    """A reason to stop that every process knows of, so that all end together."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that several processes may run together; `join` takes their values."""
    group = parser.add_argument_group('several processes', 'docs/pods.md shows them on TPU pod slices and on GPUs')
    group.add_argument('--coordinator', help='HOST:PORT of process 0; auto on TPU pods, under Slurm and Open MPI')
    group.add_argument('--num-processes', type=int, help='number of processes; with HOST:PORT')
    group.add_argument('--process-id', type=int, help='number of this process, from 0; with HOST:PORT')
    group.add_argument('--join-seconds', type=int, default=300, help='seconds to wait for the others (default: 300)')


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, join_seconds: int) -> None:
    """Make this process one of several, before anything is computed. Without a coordinator, do nothing.

    Raises:
      BadInput: flags do not go together, or `auto` finds no cluster.
      SystemExit: 2, after one line, if the others have not come within `join_seconds`.
    """
    _check_flags(coordinator, num_processes, process_id, join_seconds)
    if coordinator is None:
        return
    address = None if coordinator == AUTO else coordinator
    # JAX's own time-out aborts the process with a page of C++; a thread reports it in one line before.
    timer = threading.Timer(join_seconds, _give_up, (join_seconds, coordinator))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            cluster_detection_method='deactivate' if address else None,
            initialization_timeout=2 * join_seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        if address:
            raise
        raise BadInput(
            f'--coordinator=auto finds no TPU pod, Slurm or Open MPI to ask ({error}). Give --coordinator=HOST:PORT, '
            '--num-processes and --process-id'
        ) from error
    finally:
        timer.cancel()


def _check_flags(coordinator, num_processes, process_id, join_seconds):
    if join_seconds < 1:
        raise BadInput(f'--join-seconds must be at least 1, got {join_seconds}')
    if coordinator in (None, AUTO):
        if num_processes is not None or process_id is not None:
            raise BadInput('--num-processes and --process-id need --coordinator=HOST:PORT')
        return
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise BadInput(f'--coordinator must be HOST:PORT or auto, got {coordinator!r}')
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise BadInput(
            f'--coordinator={coordinator} needs --num-processes=N and --process-id from 0 to N - 1, got '
            f'{num_processes} and {process_id}'
        )
    try:
        if process_id == 0:  # JAX would abort
            socket.create_server(('', int(port))).close()
    except OSError as error:
        why = os.strerror(error.errno)
        raise BadInput(f'process 0 cannot listen on port {port} of --coordinator={coordinator}: {why}') from error


def _give_up(seconds: int, coordinator: str) -> None:
    print(
        f'error: waited {seconds} s at --coordinator={coordinator}: process 0 cannot be reached, or not all processes '
        'came. --num-processes must be the same for all, and --process-id another for each',
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)  # the main thread is in C++ and cannot be interrupted


def leave_at_once(status: int, why: str = 'ends by itself') -> int:
    """End one of several processes with a line; return the status if there is only one.

    In an orderly exit it would wait for the others, and they for it in the next step.
    """
    if jax.distributed.is_initialized():
        print(f'process {jax.process_index()} of {jax.process_count()} {why}', file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def is_lost_connection(error: Exception) -> bool:
    """Return True for the errors of gloo (CPU) and NCCL (GPU) after another process has ended."""
    return isinstance(error, jax.errors.JaxRuntimeError) and bool(_LOST.search(str(error)))


def is_first() -> bool:
    """Return True for the process that writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Gather a JSON value from every process, in their order. All processes must call it.

    >>> gather([1, 2])
    [[1, 2]]
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.pad(content, (0, int(sizes.max()) - len(content)))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def ask_first(question: Callable[[], Any]) -> Any:
    """Give all processes the first one's answer, a JSON value, or its bad input. All processes must call it.

    >>> ask_first(lambda: [1, 2])
    [1, 2]
    """
    with all_or_none():
        answer = question() if is_first() else None
    return gather(answer)[0]


def count_own_processors() -> int:
    """Count the machine's processors for this process, at least 1. All processes must call it.

    Processes that may run on the same processors share them equally.
    """
    place = [socket.gethostname(), usable_processors()]
    return max(len(place[1]) // gather(place).count(place), 1)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Make bad input in the `with` block of one process that of all. All processes must reach its end.

    Raises:
      AgreedProblem: on every process, naming the processes that had it unless all had the same.
    """
    if jax.process_count() == 1:
        yield
        return
    problem = ''
    try:
        yield
    except (BadInput, PartitionError) as error:
        problem = str(error)
    problems = gather(problem)
    if len(set(problems)) > 1:
        others = {line: ' and others' * (problems.count(line) > 1) for line in problems if line}
        problem = '; '.join(f'on process {problems.index(line)}{more}: {line}' for line, more in others.items())
    if problem:
        raise AgreedProblem(problem)


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Refuse processes that differ in JSON values which must be the same. All processes must call it.

    Raises:
      AgreedProblem: naming each key that differs, with the value of process 0 and the first other one.
    """
    found, problems = gather(dict(values)), []
    for key in sorted(set().union(*found)):
        column = [values.get(key, 'missing') for values in found]
        differing = [process for process, value in enumerate(column) if value != column[0]]
        for other in differing[:1]:
            problems.append(f'{key}: {column[0]!r} on process 0, {column[other]!r} on process {other}')
    if problems:
        raise AgreedProblem(f'the processes disagree on the {what}: {"; ".join(problems)}')


def check_shared(workdir: Path) -> None:
    """Refuse a workdir that is a different directory for another process. All processes must call it.

    Process 0 writes a file that all must see. It is removed; the workdir stays only if all see the file.

    Raises:
      AgreedProblem: naming the processes that do not see it.
    """
    if jax.process_count() == 1:
        return
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    marker = workdir / gather(f'.seen-by-all-{secrets.token_hex(8)}')[0]
    try:
        with all_or_none():
            if is_first():
                _write_marker(marker)
            if not _appears(marker):
                raise BadInput(
                    f'workdir {workdir} on {socket.gethostname()} is not the folder that process 0 writes into. It '
                    'must be on storage that all processes share'
                )
        made = []
    finally:
        if is_first():
            marker.unlink(missing_ok=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _write_marker(marker: Path) -> None:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise BadInput(f'workdir {marker.parent} cannot be written: {error.strerror}') from error


def _appears(marker: Path) -> bool:
    end = time.monotonic() + SECONDS_TO_APPEAR
    # Listed, because file systems remember names that did not exist when they were asked for.
    while not (marker.parent.is_dir() and marker.name in os.listdir(marker.parent)):
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
