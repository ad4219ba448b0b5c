import threading

import pytest

from pad_jax.data.prefetch import Prefetch


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith('prefetch')]


def test_gives_every_step_in_order_from_one_thread():
    threads = set()

    def make_batch(step):
        threads.add(threading.current_thread().name)
        return 10 * step

    with Prefetch(make_batch, start=4, stop=9) as batches:
        assert list(batches) == [(step, 10 * step) for step in range(4, 9)]
    assert len(threads) == 1 and threading.current_thread().name not in threads
    assert not prefetch_threads()


def test_works_ahead_by_its_depth_and_no_further():
    made = []
    ahead = threading.Event()

    def make_batch(step):
        made.append(step)
        if len(made) == 3:
            ahead.set()
        return step

    with Prefetch(make_batch, start=0, stop=100, depth=2) as batches:
        assert next(batches) == (0, 0)
        assert ahead.wait(10)
    assert made == [0, 1, 2]


def test_raises_what_the_thread_raised_at_the_step_where_it_happened():
    def make_batch(step):
        if step == 2:
            raise OSError('the disk is gone')
        return step

    batches = Prefetch(make_batch, start=0, stop=5)
    assert [next(batches), next(batches)] == [(0, 0), (1, 1)]
    with pytest.raises(OSError, match='the disk is gone'):
        next(batches)
    assert list(batches) == []
    assert not prefetch_threads()


def test_closing_early_stops_the_thread_and_may_be_repeated():
    made = []
    with Prefetch(made.append, start=0, stop=10**9) as batches:
        next(batches)
    batches.close()
    assert len(made) <= 3
    assert not prefetch_threads()


def test_nothing_to_do():
    with Prefetch(str, start=3, stop=3) as batches:
        assert list(batches) == []


def test_refuses_a_depth_of_zero():
    with pytest.raises(ValueError, match='depth must be at least 1, got 0'):
        Prefetch(str, start=0, stop=1, depth=0)
