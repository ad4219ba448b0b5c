import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from pad_jax.errors import BadInput
from pad_jax.training.lock import LOCK, WorkdirLock
from tests.training.fixtures import contents
from tests.training.tiny import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from pad_jax.training.lock import WorkdirLock
with WorkdirLock(Path(sys.argv[1])) as lock:
    lock.take()
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    workdir = tmp_path / 'deep' / 'run'
    with WorkdirLock(workdir) as first:
        first.take()
        holder = json.loads((workdir / LOCK).read_text())
        assert holder.keys() == {'host', 'pid', 'since'}
        assert (holder['host'], holder['pid']) == (socket.gethostname(), os.getpid())
        before = contents(workdir)
        with pytest.raises(BadInput) as caught, WorkdirLock(workdir) as second:
            second.take()
        assert str(caught.value) == (
            f'{workdir} is in use by a run on {holder["host"]}, process {os.getpid()}, since {holder["since"]}: '
            'wait for its end, stop it, or use another workdir'
        )
        assert contents(workdir) == before
    assert list(tmp_path.iterdir()) == []
    with WorkdirLock(workdir) as third:
        third.take()


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(BadInput, match=rf'process {process.pid}, since'), WorkdirLock(tmp_path) as second:
            second.take()
        process.kill()
    assert (tmp_path / LOCK).exists()
    with WorkdirLock(tmp_path) as third:
        third.take()
        assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()


def test_the_end_of_another_run_is_waited_for(tmp_path, capsys):
    """As a sweep does for the runs of a killed one."""
    with WorkdirLock(tmp_path) as first:
        first.take()
        threading.Timer(0.5, first.__exit__).start()
        with WorkdirLock(tmp_path, wait_seconds=60) as second:
            second.take()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'waits for its end: {tmp_path} is in use by a run on ')


def test_without_locks_of_the_kernel_one_line_warns(tmp_path, monkeypatch, capsys):
    def unknown(number, operation):
        raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

    monkeypatch.setattr(fcntl, 'flock', unknown)
    with WorkdirLock(tmp_path) as first:
        first.take()
        assert capsys.readouterr().err == f'{tmp_path}/{LOCK}: without file locks here, a second run is not noticed\n'
        with WorkdirLock(tmp_path) as second:
            second.take()


@pytest.mark.parametrize('content', ['', 'no json', '[]', '{"host": 3}'])
def test_a_lock_that_says_nothing_is_nobodys(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with WorkdirLock(tmp_path) as mine:
        mine.take()
