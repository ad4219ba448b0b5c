import os

from pad_jax.data.processors import usable_processors
from tests.data.streaming_test import make_source


def test_only_those_that_the_process_may_run_on(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {5, 3, 9}, raising=False)
    assert usable_processors() == [3, 5, 9]
    assert make_source().num_threads == 3


def test_all_where_the_system_can_not_say(monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    assert usable_processors() == [0, 1, 2, 3]
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert usable_processors() == [0]
