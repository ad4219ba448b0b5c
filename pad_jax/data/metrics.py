"""Metrics of GLUE's tasks and of language models."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def _call(name: str, *arrays: np.ndarray, **options) -> Any:
    """Call a function by its full name; scipy and scikit-learn are imported only then, because that takes a second."""
    module, _, function = name.rpartition('.')
    return getattr(importlib.import_module(module), function)(*arrays, **options)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    'accuracy': lambda labels, predictions: float(np.mean(labels == predictions)),
    'f1': lambda *arrays: float(_call('sklearn.metrics.f1_score', *arrays, zero_division=0)),  # of label 1
    'matthews': lambda *arrays: float(_call('sklearn.metrics.matthews_corrcoef', *arrays)),
    'pearson': lambda *arrays: float(_call('scipy.stats.pearsonr', *arrays).statistic),
    'spearman': lambda *arrays: float(_call('scipy.stats.spearmanr', *arrays).statistic),
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


def score_language(losses: Mapping[str, tuple[float, float]], bytes_per_token: Mapping[str, float]) -> dict[str, float]:
    """Measure a language model over all domains, and over each if there are several, as `DOMAIN/MEASURE`.

    Args:
      losses: domain -> (mean loss in nats a token, number of tokens).
      bytes_per_token: mean bytes of a token by domain; empty if the loss is not that of all tokens.

    Returns:
      `loss` of each domain, `perplexity` = exp(loss), and `bits_per_byte` = loss / bytes a token / ln 2.

    >>> found = score_language({'text': (math.log(2), 10), 'code': (math.log(8), 10)}, {'text': 1.0, 'code': 2.0})
    >>> {name: round(value, 3) for name, value in found.items() if '/' not in name}
    {'perplexity': 4.0, 'bits_per_byte': 1.333}
    """

    def measure(domains):
        tokens = sum(losses[domain][1] for domain in domains)
        nats = sum(loss * count for loss, count in map(losses.get, domains))
        found = {'perplexity': math.exp(min(nats / tokens, 700))}  # a larger loss would be infinite
        if bytes_per_token:
            num_bytes = sum(bytes_per_token[domain] * losses[domain][1] for domain in domains)
            found['bits_per_byte'] = nats / num_bytes / math.log(2)
        return found

    measured = measure(losses)
    for domain, (loss, _) in losses.items() if len(losses) > 1 else ():
        measured |= {f'{domain}/{name}': value for name, value in {'loss': loss, **measure([domain])}.items()}
    return measured
