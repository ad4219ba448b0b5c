"""The examples of a step: a pure function of (seed, step).

Nothing is remembered between steps. So a resumed run, a run on another number of processes and a batch requested twice
see the same examples. The positions of a run count 0, 1, 2, ...; step s takes the positions [s·B, (s + 1)·B). Position
p lies in epoch p // N, and each epoch is its own permutation of the N examples. A batch may span two epochs; within an
epoch no example is dropped or repeated.

Random numbers are the raw output of Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). NumPy
keeps its stream fixed, unlike the methods of `numpy.random.Generator`.
"""

import dataclasses
import functools
import operator
import threading

import numpy as np

# Top word of Philox's counter: words drawn for one use never coincide with words drawn for another.
ORDER, AUGMENTATION, SCORING, DISTORTION, VIEW, MASKING, MASKING_SCORED, MASKING_HELD = range(8)
# Share of the examples that is for evaluation if the data has no split for it.
HOLDOUT = 0.2


def choose_held(classes: np.ndarray, holdout: float = HOLDOUT) -> np.ndarray:
    """Choose a share of each class for evaluation, for all seeds: every fifth example by default; [N] -> bool[N].

    >>> np.flatnonzero(choose_held(np.array([0, 1, 0, 0, 0, 0, 1]))).tolist()
    [5]
    """
    held = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        ends = np.floor(np.arange(len(members) + 1) * holdout + 1e-9)  # 1e-9: a product may lie below its whole number
        held[members] = np.diff(ends) > 0
    return held


def draw_bits(seed: int, number: int, use: int, count: int) -> np.ndarray:
    """Return random words, uint64[count], a pure function of the arguments.

    Args:
        seed, number: in [0, 2⁶⁴); the number is that of the epoch or step that needs the words.
        use: one of the constants above.

    >>> bool((draw_bits(0, 7, ORDER, 3) == draw_bits(0, 7, SCORING, 3)).any())
    False
    """
    key = np.array([operator.index(seed), operator.index(number)], np.uint64)
    return np.random.Philox(counter=np.array([0, 0, 0, use], np.uint64), key=key).random_raw(count)


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of `num_examples` examples under `seed`.

    >>> order = Order(num_examples=5, seed=0)
    >>> sorted(order.indices(0, 3).tolist() + order.indices(1, 3).tolist()[:2])
    [0, 1, 2, 3, 4]
    """

    num_examples: int
    seed: int
    use: int = ORDER

    def indices(self, step: int, batch_size: int, rows: slice | None = None) -> np.ndarray:
        """Return the examples of a global batch, int64[B] in [0, N), or of its `rows`."""
        positions = operator.index(step) * batch_size + np.arange(batch_size)[rows or slice(None)]
        indices = np.empty_like(positions)
        for epoch in np.unique(positions // self.num_examples):
            here = positions // self.num_examples == epoch
            with _ONE_AT_A_TIME:
                permutation = _draw_permutation(self.num_examples, self.seed, int(epoch), self.use)
            indices[here] = permutation[positions[here] % self.num_examples]
        return indices


# Without the lock every thread that comes to a new epoch would compute its permutation.
_ONE_AT_A_TIME = threading.Lock()


# Four: training and scoring, each with the two epochs that a batch can span.
@functools.lru_cache(maxsize=4)
def _draw_permutation(num_examples: int, seed: int, epoch: int, use: int) -> np.ndarray:
    permutation = np.argsort(draw_bits(seed, epoch, use, num_examples), kind='stable')
    permutation.flags.writeable = False
    return permutation
