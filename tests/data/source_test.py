import threading

import pytest

from pad_jax.data.source import run_ahead


def own_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith('run_ahead')]


def test_gives_every_step_in_order():
    with run_ahead(lambda step: 10 * step, start=4, stop=9) as batches:
        assert list(batches) == [(step, 10 * step) for step in range(4, 9)]
    with run_ahead(str, start=3, stop=3) as batches:
        assert list(batches) == []
    assert not own_threads()


def test_works_ahead_by_so_many_and_no_further():
    made, ahead = [], threading.Event()

    def make_batch(step):
        made.append(step)
        if len(made) == 3:
            ahead.set()
        return step

    with run_ahead(make_batch, start=0, stop=100, num_ahead=2) as batches:
        assert next(batches) == (0, 0)
        assert ahead.wait(10)
    assert sorted(made) == [0, 1, 2]


def test_raises_an_exception_of_a_thread_at_its_step():
    def make_batch(step):
        if step == 2:
            raise OSError('the disk is gone')
        return step

    with run_ahead(make_batch, start=0, stop=5) as batches:
        assert [next(batches), next(batches)] == [(0, 0), (1, 1)]
        with pytest.raises(OSError, match='the disk is gone'):
            next(batches)
        assert list(batches) == []
    assert not own_threads()


def test_leaving_early_ends_the_threads():
    made = []
    with run_ahead(made.append, start=0, stop=10**9) as batches:
        next(batches)
    assert len(made) <= 3 and not own_threads()
