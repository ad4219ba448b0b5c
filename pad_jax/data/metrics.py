"""Metrics of GLUE's tasks."""

from collections.abc import Callable, Sequence

import numpy as np


def _correlate_pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    import scipy.stats

    return float(scipy.stats.pearsonr(labels, predictions).statistic)


def _correlate_spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Measure Pearson's correlation of the ranks. Equal values share a rank."""
    import scipy.stats

    return float(scipy.stats.spearmanr(labels, predictions).statistic)


def _measure_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean(labels == predictions))


def _measure_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Measure the F1 score of label 1; 0 without true positives."""
    import sklearn.metrics

    return float(sklearn.metrics.f1_score(labels, predictions, pos_label=1, zero_division=0))


def _correlate_matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    import sklearn.metrics

    return float(sklearn.metrics.matthews_corrcoef(labels, predictions))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    'accuracy': _measure_accuracy,
    'f1': _measure_f1,
    'matthews': _correlate_matthews,
    'pearson': _correlate_pearson,
    'spearman': _correlate_spearman,
}
"""Functions of labels and predictions, each [N]. Higher is better, and 1 is the best value."""
CORRELATIONS = ('matthews', 'pearson', 'spearman')
"""Metrics that are undefined for constant labels or predictions."""


def choose_predictions(logits: np.ndarray) -> np.ndarray:
    """Return the most likely class of float[N, F] as int64[N]; for regression, float[N, 1], the number as float[N].

    >>> choose_predictions(np.array([[0.0, 2.0], [1.0, -1.0]])).tolist()
    [1, 0]
    """
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)


def score(metrics: Sequence[str], labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Measure metrics of a whole split.

    Args:
      metrics: keys of `METRICS`.
      labels: int[N], or float[N] for regression; N at least 1.
      logits: float[N, F], or float[N, 1] for regression.

    Returns:
      Value by metric. All are NaN if a logit is not finite, because a class could still be chosen and hide it. A
      correlation with constant labels or predictions is 0.

    >>> score(['accuracy', 'f1'], np.array([1, 0]), np.array([[0.0, 1.0], [0.0, 1.0]]))['accuracy']
    0.5
    """
    logits = np.asarray(logits)
    if not np.isfinite(logits).all():
        return dict.fromkeys(metrics, float('nan'))
    labels, predictions = np.asarray(labels), choose_predictions(logits)
    if logits.shape[1] == 1:
        labels, predictions = labels.astype(np.float64), predictions.astype(np.float64)
    is_constant = np.ptp(labels) == 0 or np.ptp(predictions) == 0
    return {
        name: 0.0 if is_constant and name in CORRELATIONS else METRICS[name](labels, predictions) for name in metrics
    }
