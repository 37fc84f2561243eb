import numpy as np
import pytest

from lib.metrics import classification_metrics


def test_counts_by_hand():
    logits = np.array([[3.0, 2, 1], [1, 3, 2], [0, 5, 4], [9, 0, 0]])
    label = np.array([0, 1, 2, 2])
    metrics = classification_metrics(logits, label)
    assert metrics['top1'] == 0.5
    assert metrics['top5'] == 1.0
    assert metrics['per_class'] == {0: 1.0, 1: 1.0, 2: 0.0}
    assert metrics['mean_class'] == pytest.approx(2 / 3)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert metrics['loss'] == pytest.approx(-np.log(probability[range(4), label]).mean())


def test_top5_and_large_logits():
    logits = np.zeros((2, 8))
    logits[0, :6] = [6, 5, 4, 3, 2, 1]
    logits[1] = np.arange(8) * 1e4
    metrics = classification_metrics(logits, np.array([4, 2]))
    assert metrics['top5'] == 0.5
    assert np.isfinite(metrics['loss'])


def test_a_model_that_says_nothing_is_not_right_by_accident():
    assert classification_metrics(np.zeros((100, 10)), np.arange(100) % 10)['top1'] == 0.1
