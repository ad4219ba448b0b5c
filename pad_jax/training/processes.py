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
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
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
_MOST = 10**9
"""Largest number of processes and of seconds: twice as many fit into 32 bits."""
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
    needs = '--coordinator must be auto, or HOST:PORT with --num-processes=N and --process-id from 0 to N - 1'
    if coordinator in (None, AUTO):
        address, is_sound = None, num_processes is process_id is None
    else:
        address, (host, _, port) = coordinator, coordinator.rpartition(':')
        is_sound = host and re.fullmatch('[0-9]{1,5}', port) and 0 < int(port) < 2**16
        is_sound = is_sound and None not in (num_processes, process_id) and 0 <= process_id < num_processes
    if not is_sound or (num_processes or 0) > _MOST:
        raise BadInput(f'{needs}; got {coordinator}, {num_processes} and {process_id}')
    if not 0 <= join_seconds <= _MOST:
        raise BadInput(f'--join-seconds must be an integer from 0 to {_MOST}, got {join_seconds}')
    if coordinator is None:
        return
    # Where JAX would abort with a page of C++, a line is written before: here and by a thread.
    try:
        if address and process_id == 0:
            socket.create_server(('', int(port))).close()
    except OSError as error:
        why = os.strerror(error.errno)
        raise BadInput(f'process 0 cannot listen on port {port} of --coordinator={coordinator}: {why}') from error
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
        raise BadInput(f'--coordinator=auto finds no TPU pod, Slurm or Open MPI to ask ({error}): {needs}') from error
    finally:
        timer.cancel()


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

    AgreedProblem then names the first process of each problem, unless all have the same.
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
        different = filter(None, dict.fromkeys(problems))
        problem = '; '.join(f'on process {problems.index(line)}: {line}' for line in different)
    if problem:
        raise AgreedProblem(problem)


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Refuse processes that differ in JSON values which must be the same. All processes must call it.

    AgreedProblem names each key in which process 0 and the first other one differ, with both values.
    """
    first, *_ = found = gather(dict(values))
    process, other = next(((index, one) for index, one in enumerate(found) if one != first), (0, first))
    differing = [
        f'{key}: {first.get(key, "missing")!r} on process 0, {other.get(key, "missing")!r} on process {process}'
        for key in sorted(first.keys() | other.keys())
        if first.get(key, 'missing') != other.get(key, 'missing')
    ]
    if differing:
        raise AgreedProblem(f'the processes disagree on the {what}: {"; ".join(differing)}')
