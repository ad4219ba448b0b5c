"""What GLUE measures each task by, and the average over tasks.

Legend: N examples, C classes.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats
import sklearn.metrics


def correlate_pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation in [-1, 1]; 0 where either is constant, which correlates with nothing.

    >>> round(correlate_pearson(np.array([0.0, 1.0, 2.0]), np.array([5.0, 4.0, 3.0])), 6)
    -1.0
    """
    return _correlate(scipy.stats.pearsonr, labels, predictions)


def correlate_spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's correlation, Pearson's of the ranks (equal values share theirs); 0 where either is constant.

    >>> round(correlate_spearman(np.array([0.0, 1.0, 2.0]), np.array([1.0, 10.0, 100.0])), 6)
    1.0
    """
    return _correlate(scipy.stats.spearmanr, labels, predictions)


def _correlate(measure: Callable, labels: np.ndarray, predictions: np.ndarray) -> float:
    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if not np.isfinite(predictions).all():
        return float('nan')
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return float(measure(labels, predictions).statistic)


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _measure_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(sklearn.metrics.accuracy_score(labels, predictions))


def _measure_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(sklearn.metrics.f1_score(labels, predictions, pos_label=1, zero_division=0))


def _correlate_matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    # scikit-learn gives 0 too, but with a warning where both are the same constant.
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return float(sklearn.metrics.matthews_corrcoef(labels, predictions))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    'accuracy': _measure_accuracy,
    'f1': _measure_f1,
    'matthews': _correlate_matthews,
    'pearson': correlate_pearson,
    'spearman': correlate_spearman,
}
"""Functions of labels and predictions, each [N]; all are the better the higher, and at most 1.

The F1 is that of label 1. Matthews' correlation is 0 where all labels or all predictions are one class.
"""


def choose_predictions(logits: np.ndarray) -> np.ndarray:
    """float[N, C] -> the likeliest class int64[N]; for regression float[N, 1] -> the number itself, float[N].

    >>> choose_predictions(np.array([[0.0, 2.0], [1.0, -1.0]])).tolist()
    [1, 0]
    """
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)


def score(metrics: Sequence[str], labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Each of the named metrics of a whole split.

    Args:
        metrics: keys of `METRICS`.
        labels: int[N], or float[N] for regression; N at least 1.
        logits: float[N, C], or float[N, 1] for regression. Where one is no number the regression metrics are
            NaN; a class is still chosen.

    >>> score(['accuracy', 'f1'], np.array([1, 0]), np.array([[0.0, 1.0], [0.0, 1.0]]))['accuracy']
    0.5
    """
    predictions = choose_predictions(np.asarray(logits))
    return {name: METRICS[name](np.asarray(labels), predictions) for name in metrics}


def average_tasks(scores: Mapping[str, Mapping[str, float]]) -> float:
    """GLUE's average: of the tasks' means, so that a task with two metrics (or two splits) counts once.

    >>> average_tasks({'mrpc': {'accuracy': 0.8, 'f1': 0.9}, 'rte': {'accuracy': 0.65}})
    0.75
    """
    return statistics.fmean(statistics.fmean(values.values()) for values in scores.values())
