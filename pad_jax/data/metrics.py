"""What GLUE measures each task by.

Legend: N examples, C classes.
"""

from collections.abc import Callable, Sequence

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
        logits: float[N, C], or float[N, 1] for regression. Where one of them is not finite all metrics are NaN: a class
            could still be chosen, and would hide it.

    >>> score(['accuracy', 'f1'], np.array([1, 0]), np.array([[0.0, 1.0], [0.0, 1.0]]))['accuracy']
    0.5
    """
    logits = np.asarray(logits)
    if not np.isfinite(logits).all():
        return dict.fromkeys(metrics, float('nan'))
    predictions = choose_predictions(logits)
    return {name: METRICS[name](np.asarray(labels), predictions) for name in metrics}
