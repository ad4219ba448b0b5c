import gc
import os
import signal
import threading
import time

import pytest

from pad_jax.training.signals import StopSignals

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


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


def test_a_signal_in_a_destructor_acts_after_it(capsys):
    done = []

    class Slow:
        def __del__(self):
            send(signal.SIGTERM)
            done.append('tidied up')

    with pytest.raises(SystemExit) as caught, StopSignals('mine'):
        Slow()
        time.sleep(5)
        done.append('further')
    assert caught.value.code == 143 and done == ['tidied up']
    assert capsys.readouterr().err == 'mine: SIGTERM before the first step, nothing is lost\n'


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_signal_that_is_swallowed_acts_before_anything_can_be_lost():
    def swallow(phase, info):
        gc.callbacks.remove(swallow)
        send(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught, StopSignals('mine') as signals:
        gc.callbacks.append(swallow)
        gc.collect()
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
