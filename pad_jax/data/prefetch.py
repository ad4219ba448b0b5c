"""Makes the next batches while a step runs."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar('T')


class Prefetch(Generic[T]):
    """Iterates over `(step, make_batch(step))` for the steps in [start, stop), `depth` of them ahead.

    One background thread calls `make_batch`, in the order of the steps. What it raises is raised by the
    `next` that would have returned that batch, and ends the iteration. Leaving the `with` block waits for
    the call under way and makes no further one.

    >>> with Prefetch(lambda step: step * step, start=3, stop=6) as batches:
    ...     list(batches)
    [(3, 9), (4, 16), (5, 25)]
    """

    def __init__(self, make_batch: Callable[[int], T], start: int, stop: int, depth: int = 2):
        if depth < 1:
            raise ValueError(f'depth must be at least 1, got {depth}')
        self._make_batch = make_batch
        self._steps = iter(range(start, stop))
        self._pending: deque[tuple[int, Future[T]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='prefetch')
        for _ in range(depth):
            self._submit_next()

    def _submit_next(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._pending.append((step, self._pool.submit(self._make_batch, step)))

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return self

    def __next__(self) -> tuple[int, T]:
        if not self._pending:
            raise StopIteration
        step, future = self._pending.popleft()
        try:
            batch = future.result()
        except BaseException:
            self.close()
            raise
        self._submit_next()
        return step, batch

    def close(self) -> None:
        """Stops the thread; calling it again does nothing."""
        self._steps = iter(())
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> 'Prefetch[T]':
        return self

    def __exit__(self, *exception) -> None:
        self.close()
