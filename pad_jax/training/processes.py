"""Several processes that train one network: how they find one another, and what they have to agree on.

All of it costs a run of one process nothing. What is bad input to one process ends all of them, each with a line: a
process that stopped alone would leave the others waiting for it in the next step.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pad_jax.data.processors import usable_processors
from pad_jax.errors import BadInput, Stopped
from pad_jax.partition import PartitionError

AUTO = 'auto'
HEARTBEAT_SECONDS = 100
"""A process that says nothing for so long is given up, and the others with it."""
SECONDS_TO_APPEAR = 60
"""Network file systems may show a new file to other machines only after a while."""
_MARKER = '.seen-by-all-'
_LOST = re.compile(
    r'Gloo [\w-]+ failed: .*(Connection (reset|closed) by peer|Broken pipe)'
    r'|NCCL .* failed: remote process exited or there was a network error',
    re.DOTALL,
)


class AgreedProblem(BadInput):
    """Bad input that every process knows of, so that all end together."""


class AgreedStop(Stopped):
    """What no process can go on with, so that all end together."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that several processes may run together; `join` takes their values."""
    group = parser.add_argument_group('several processes', 'docs/pods.md shows them on TPU pod slices and on GPUs')
    group.add_argument('--coordinator', help='HOST:PORT of process 0; auto on TPU pods, under Slurm and Open MPI')
    group.add_argument('--num-processes', type=int, help='how many there are; with HOST:PORT')
    group.add_argument('--process-id', type=int, help='which one this is, from 0; with HOST:PORT')
    group.add_argument('--join-seconds', type=int, default=300, help='how long to wait for the others (default: 300)')


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, join_seconds: int) -> None:
    """Makes this process one of several; before anything is computed. Without a coordinator it stays alone.

    Raises:
      BadInput: on flags that don't go together, and where there is no cluster to ask for them.
      SystemExit: 2, after a line, when the others have not come within `join_seconds`.
    """
    numbers = {'--num-processes': num_processes, '--process-id': process_id}
    if coordinator in (None, AUTO):
        given = [name for name, number in numbers.items() if number is not None]
        if given:
            raise BadInput(f'{" and ".join(given)} needs --coordinator=HOST:PORT')
        if coordinator is None:
            return
    else:
        _check_address(coordinator)
        missing = [name for name, number in numbers.items() if number is None]
        if missing:
            raise BadInput(f'--coordinator={coordinator} needs {" and ".join(missing)}')
        if num_processes < 1:
            raise BadInput(f'--num-processes must be at least 1, got {num_processes}')
        if not 0 <= process_id < num_processes:
            raise BadInput(f'--process-id must be from 0 to {num_processes - 1}, got {process_id}')
    if join_seconds < 1:
        raise BadInput(f'--join-seconds must be at least 1, got {join_seconds}')
    address = None if coordinator == AUTO else coordinator
    if process_id == 0:
        _check_free(address)
    # jax's own time-out aborts the process with a page of C++; a thread says it in a line before.
    arrived = threading.Event()
    threading.Thread(target=_give_up, args=(arrived, join_seconds, address, process_id), daemon=True).start()
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
            f'--coordinator=auto finds no TPU pod, Slurm or Open MPI to ask ({error}): give --coordinator=HOST:PORT, '
            '--num-processes and --process-id'
        ) from error
    finally:
        arrived.set()


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise BadInput(f'--coordinator must be HOST:PORT or auto, got {address!r}')


def _check_free(address: str) -> None:
    """BadInput where process 0 can't listen: jax would abort."""
    port = int(address.rpartition(':')[2])
    try:
        with socket.create_server(('', port)):
            pass
    except OSError as error:
        raise BadInput(
            f'process 0 cannot listen on port {port} of --coordinator={address}: {os.strerror(error.errno)}'
        ) from error


def _give_up(arrived: threading.Event, seconds: int, address: str | None, process_id: int | None) -> None:
    if arrived.wait(seconds):
        return
    reason = 'not all processes came; --num-processes must be the same for all, and --process-id another for each'
    if address and process_id:
        host, _, port = address.rpartition(':')
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
        except OSError as error:
            reason = f'process 0 cannot be reached from here ({error.strerror or error})'
    where = f'--coordinator={address}' if address else 'the coordinator'
    print(f'error: waited {seconds} s at {where}: {reason}', file=sys.stderr, flush=True)
    os._exit(2)  # the main thread is in C++ and can't be interrupted


def leave_at_once(status: int, why: str = 'ends by itself') -> None:
    """Ends a process that fails alone, with a line; returns where there is only one.

    In an orderly exit it would wait for the others, and they for it in the next step.
    """
    if jax.distributed.is_initialized():
        print(f'process {jax.process_index()} of {jax.process_count()} {why}', file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_lost_connection(error: Exception) -> bool:
    """Whether that is what gloo (CPU) or NCCL (GPU) raises in one of several processes when another has ended.

    >>> is_lost_connection(jax.errors.JaxRuntimeError('INTERNAL: Gloo all-reduce failed: Connection reset by peer'))
    True
    >>> is_lost_connection(jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'))
    False
    """
    return isinstance(error, jax.errors.JaxRuntimeError) and bool(_LOST.search(str(error)))


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def gather_texts(text: str) -> list[str]:
    """The text of every process, in their order. All have to call it."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def ask_first(question: Callable[[], Any]) -> Any:
    """The first process' answer, a JSON value, or the bad input that it met, for all. All have to call it.

    >>> ask_first(lambda: [1, 2])
    [1, 2]
    """
    if jax.process_count() == 1:
        return question()
    answer = {}
    if is_first():
        try:
            answer = {'value': question()}
        except BadInput as error:
            answer = {'problem': str(error)}
    answer = json.loads(gather_texts(json.dumps(answer))[0])
    if 'problem' in answer:
        raise AgreedProblem(answer['problem'])
    return answer['value']


def gather_lines(lines: Iterable[str]) -> list[str]:
    """The lines of all processes, sorted, each of them once. All have to call it.

    >>> gather_lines(['two', 'one', 'two'])
    ['one', 'two']
    """
    return sorted(set().union(*map(json.loads, gather_texts(json.dumps(list(lines))))))


def count_own_processors() -> int:
    """How many of a machine's processors are one process' own, at least 1. All have to call it.

    Those that it may run on, divided by the processes there that may run on the same ones: Slurm gives each of its own,
    and where nobody does all share all of them.
    """
    usable = usable_processors()
    place = json.dumps([socket.gethostname(), usable])
    return max(len(usable) // gather_texts(place).count(place), 1)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Bad input within the `with` block of one process is that of all. All have to come to its end.

    Raises:
      AgreedProblem: on every process, saying which of them had it; the process' own words where all had the same.
    """
    if jax.process_count() == 1:
        yield
        return
    problem = ''
    try:
        yield
    except (BadInput, PartitionError) as error:
        problem = str(error)
    problems = gather_texts(problem)
    if any(problems):
        raise AgreedProblem(_describe(problems))


def _describe(problems: list[str]) -> str:
    """What is wrong where; '' is nothing.

    >>> _describe(['no data', 'no data'])
    'no data'
    >>> _describe(['', 'no data', 'no data'])
    'on process 1 and 2: no data'
    """
    if len(set(problems)) == 1:
        return problems[0]
    places: dict[str, list[int]] = {}
    for process, problem in enumerate(problems):
        if problem:
            places.setdefault(problem, []).append(process)
    return '; '.join(f'on process {_list_numbers(where)}: {problem}' for problem, where in places.items())


def _list_numbers(numbers: list[int]) -> str:
    if len(numbers) > 3:
        return f'{numbers[0]}, {numbers[1]} and {len(numbers) - 2} more'
    return ' and '.join(map(str, numbers))


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Refuses processes that differ in JSON values which have to be the same. All have to call it.

    Raises:
      AgreedProblem: naming each key that differs, with the value of process 0 and the first other one.
    """
    problems = find_disagreements([json.loads(text) for text in gather_texts(json.dumps(dict(values)))])
    if problems:
        raise AgreedProblem(f'the processes disagree on the {what}: {"; ".join(problems)}')


def find_disagreements(found: list[dict[str, Any]]) -> list[str]:
    """'key: value on process 0, value on process N' for each key that is not the same for all.

    >>> find_disagreements([{'seed': 0, 'steps': 5}, {'seed': 0, 'steps': 5}, {'seed': 1}])
    ['seed: 0 on process 0, 1 on process 2', "steps: 5 on process 0, 'missing' on process 2"]
    """
    problems = []
    for key in sorted(set().union(*found)):
        values = [values.get(key, 'missing') for values in found]
        other = next((process for process, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            problems.append(f'{key}: {values[0]!r} on process 0, {values[other]!r} on process {other}')
    return problems


def check_shared(workdir: Path) -> None:
    """Refuses a workdir that is another folder for another process. All have to call it.

    Process 0 writes a file into it that all have to see. Nothing stays of it but the workdir, and that only if all do.

    Raises:
      AgreedProblem: naming the processes that don't.
    """
    if jax.process_count() == 1:
        return
    missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    marker = workdir / f'{_MARKER}{secrets.token_hex(8)}'
    shared = False
    try:
        with all_or_none():
            if is_first():
                _write_marker(marker)
        name = gather_texts(marker.name)[0]
        with all_or_none():
            if not _appears(workdir / name):
                host = socket.gethostname()
                raise BadInput(
                    f'workdir {workdir} on {host} is not the folder that process 0 writes into: it must be on storage '
                    'that all processes share'
                )
        shared = True
    finally:
        if is_first():
            marker.unlink(missing_ok=True)
            if not shared:
                for folder in missing:
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
    while True:
        # Listed, not asked for: what a file system remembers of names that were not there may be old.
        if marker.parent.is_dir() and marker.name in os.listdir(marker.parent):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
