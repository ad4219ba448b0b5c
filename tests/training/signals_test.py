import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pad_jax.training.signals import StopSignals
from tests.training.tiny import ROOT

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize('number', NUMBERS)
def test_a_signal_acts_at_once_and_says_so(number, capsys):
    reached = []
    with pytest.raises(SystemExit) as caught, StopSignals('mine'):
        send(number)
        reached.append('further')
    assert caught.value.code == 128 + number and not reached
    assert capsys.readouterr().err == f'mine: {number.name} before the first step, nothing is lost\n'


@pytest.mark.parametrize('number', NUMBERS)
def test_a_signal_is_noted_where_there_is_something_to_lose(number, capsys):
    with StopSignals('mine') as signals:
        signals.note()
        signals.note()
        assert signals.received is None
        send(number)
        assert signals.received is number
    assert capsys.readouterr().err == ''


def test_a_second_signal_does_what_it_did_before():
    with pytest.raises(KeyboardInterrupt), StopSignals('mine') as signals:
        signals.note()
        send(signal.SIGINT)
        send(signal.SIGINT)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_signal_that_a_destructor_swallows_is_not_lost(capsys):
    class Swallows:
        def __del__(self):
            send(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught, StopSignals('mine') as signals:
        Swallows()
        assert signals.received is signal.SIGTERM
        signals.note()
    assert caught.value.code == 143


def test_another_thread_leaves_signals_alone():
    found = []

    def work():
        with StopSignals('mine') as signals:
            signals.note()
            found.append((signals.received, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def test_who_waits_for_signals_already_goes_on_to(capsys):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    try:
        with pytest.raises(SystemExit), StopSignals('mine'):
            send(signal.SIGTERM)
        assert os.read(reader, 9) == bytes([signal.SIGTERM])
    finally:
        assert signal.set_wakeup_fd(-1) == writer
        os.close(reader)
        os.close(writer)


STUCK = """
import ctypes
from pad_jax.training.signals import StopSignals
mutex = (ctypes.c_char * 64)()
lock = ctypes.CDLL(None).pthread_mutex_lock
with StopSignals('mine') as signals:
    lock(mutex)
    print('ready', flush=True)
    lock(mutex)  # never returns, as a long compilation
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs a mutex of 64 zeros')
@pytest.mark.parametrize('number', NUMBERS)
def test_a_process_that_is_stuck_in_a_compilation_ends(number):
    process = subprocess.Popen(
        [sys.executable, '-c', STUCK], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == f'mine: {number.name} before the first step, nothing is lost\n'
