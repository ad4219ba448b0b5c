import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from pad_jax.errors import BadInput
from pad_jax.training import lock
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


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, 'BEAT_SECONDS', 0.02)
    monkeypatch.setattr(lock, 'WATCH_SECONDS', 0.4)


def write_lock(workdir, host):
    (workdir / LOCK).write_text(json.dumps({'host': host, 'pid': 7, 'since': '2024-05-06T07:08:09+00:00'}))


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    workdir = tmp_path / 'deep' / 'run'
    with WorkdirLock(workdir) as first:
        first.find()
        assert not workdir.exists()
        first.take()
        holder = json.loads((workdir / LOCK).read_text())
        assert holder.keys() == {'host', 'pid', 'since'}
        assert (holder['host'], holder['pid']) == (socket.gethostname(), os.getpid())
        before = contents(workdir)
        for attempt in ('find', 'take'):
            with pytest.raises(BadInput) as caught, WorkdirLock(workdir) as second:
                getattr(second, attempt)()
            assert str(caught.value) == (
                f'{workdir} is in use by a run on {holder["host"]}, process {os.getpid()}, since {holder["since"]}: '
                'wait for its end, stop it, or use another workdir'
            )
        assert contents(workdir) == before
    assert list(workdir.iterdir()) == []
    with WorkdirLock(workdir) as third:
        third.take()


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(BadInput, match=rf'process {process.pid}, since'), WorkdirLock(tmp_path) as second:
            second.find()
        process.kill()
    assert (tmp_path / LOCK).exists()
    before = contents(tmp_path)
    with WorkdirLock(tmp_path) as third:
        third.find()
        assert contents(tmp_path) == before
        third.take()
        assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()


def test_a_lock_of_another_machine_is_watched(tmp_path, quick, capsys):
    """Its kernel may keep its locks to itself: a time that moves tells that the run lives."""
    write_lock(tmp_path, 'elsewhere')
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(BadInput, match='a run on elsewhere, process 7, since 2024'), WorkdirLock(tmp_path) as mine:
            mine.find()
    finally:
        ended.set()
        thread.join()
    assert capsys.readouterr().err == (f"{tmp_path}/{LOCK}: held by a run on 'elsewhere'; watching it for 0 s\n")
    start = time.monotonic()
    with WorkdirLock(tmp_path) as mine:
        mine.find()
        assert time.monotonic() - start >= 0.4
        mine.take()


def test_without_locks_of_the_kernel_the_file_tells(tmp_path, quick, monkeypatch):
    def unknown(number, operation):
        raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

    monkeypatch.setattr(fcntl, 'flock', unknown)
    with WorkdirLock(tmp_path) as first:
        first.take()
        with pytest.raises(BadInput, match='is in use by a run on'), WorkdirLock(tmp_path) as second:
            second.find()
    write_lock(tmp_path, socket.gethostname())
    with WorkdirLock(tmp_path) as third:
        third.take()


@pytest.mark.parametrize('content', ['', 'no json', '[]', '{"host": 3}'])
def test_a_lock_that_says_nothing_is_nobodys(tmp_path, quick, content):
    (tmp_path / LOCK).write_text(content)
    with WorkdirLock(tmp_path) as mine:
        mine.find()
        mine.take()
