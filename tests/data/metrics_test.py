import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pad_jax.data.metrics import METRICS, choose_predictions, score

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 0])
CHOSEN = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0])
# Of label 1: 2 right, 2 missed, 1 wrongly chosen; of label 0: 5 right.
NUMBERS = np.array([1.0, 2.0, 3.0, 4.0])
GUESSES = np.array([1.0, 3.0, 2.0, 6.0])


@pytest.mark.parametrize(
    'name, pair, expected',
    [
        ('accuracy', (LABELS, CHOSEN), 7 / 10),
        # 2 · 2 / (2 · 2 + 2 + 1)
        ('f1', (LABELS, CHOSEN), 4 / 7),
        # (2 · 5 − 1 · 2) / √((2 + 1)(2 + 2)(5 + 1)(5 + 2))
        ('matthews', (LABELS, CHOSEN), 8 / math.sqrt(3 * 4 * 6 * 7)),
        # Deviations of the labels −1.5, −0.5, 0.5, 1.5 and of the guesses −2, 0, −1, 3: products sum to 7, squares
        # to 5 and 14.
        ('pearson', (NUMBERS, GUESSES), 7 / math.sqrt(5 * 14)),
        # Ranks 1, 2, 3, 4 against 1, 3, 2, 4: 1 − 6 · (0 + 1 + 1 + 0) / (4 · 15).
        ('spearman', (NUMBERS, GUESSES), 0.8),
    ],
)
def test_golden_values(name, pair, expected):
    assert METRICS[name](*pair) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30)
@given(st_numpy.arrays(np.int64, st.tuples(st.just(2), st.integers(2, 30)), elements=st.integers(0, 1)))
def test_classes_against_scikit_learn(pairs):
    labels, chosen = pairs
    logits = np.eye(2)[chosen]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = score(('accuracy', 'f1', 'matthews'), labels, logits)
        warnings.simplefilter('ignore')
        assert found == {
            'accuracy': sklearn.metrics.accuracy_score(labels, chosen),
            'f1': sklearn.metrics.f1_score(labels, chosen, zero_division=0),
            'matthews': sklearn.metrics.matthews_corrcoef(labels, chosen),
        }


def test_numbers_against_scipy():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 26, 200).astype(np.float32) / 5
    logits = (labels + rng.normal(size=200)).astype(np.float32).round(1)[:, None]
    found = score(('pearson', 'spearman'), labels, logits)
    one, other = labels.astype(np.float64), logits[:, 0].astype(np.float64)
    assert found['pearson'] == pytest.approx(scipy.stats.pearsonr(one, other)[0], abs=1e-12)
    assert found['spearman'] == pytest.approx(scipy.stats.spearmanr(one, other)[0], abs=1e-12)
    assert all(type(value) is float for value in found.values())


def test_a_constant_prediction_scores_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for constant in (np.zeros(4), np.full(4, 0.1, np.float32)):
            for pair in ((NUMBERS, constant), (constant, NUMBERS)):
                assert score(('pearson', 'spearman'), pair[0], pair[1][:, None]) == {'pearson': 0, 'spearman': 0}
        one_class = score(('f1', 'matthews'), LABELS, np.tile([1.0, 0.0], (10, 1)))
        assert one_class == {'f1': 0, 'matthews': 0}


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(bad):
    logits = np.array([[1.0], [2.0], [bad], [3.0]])
    assert all(math.isnan(value) for value in score(('pearson', 'spearman'), NUMBERS, logits).values())
    logits = np.array([[0.0, 1.0], [0.0, 1.0], [bad, 1.0], [1.0, 0.0]])
    classes = score(('accuracy', 'f1', 'matthews'), np.array([1, 1, 0, 0]), logits)
    assert len(classes) == 3 and all(math.isnan(value) for value in classes.values())


def test_predictions_are_the_likeliest_class_or_the_number():
    np.testing.assert_array_equal(choose_predictions(np.array([[0.0, 3.0, 1.0], [2.0, -1.0, 1.0]])), [1, 0])
    np.testing.assert_array_equal(choose_predictions(np.array([[0.5], [-2.0]])), [0.5, -2.0])
