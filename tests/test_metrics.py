import numpy as np
import pytest

from lib.metrics import bootstrap_intervals, classification_metrics, confusion_matrix, mean_over_views, most_confused


def test_metrics_by_hand():
    logits = np.array([[3.0, 2, 1], [1, 3, 2], [0, 5, 4], [9, 0, 0]])
    label = np.array([0, 1, 2, 2])
    metrics = classification_metrics(logits, label)
    assert metrics['top1'] == 0.5
    assert metrics['top5'] == 1.0
    assert metrics['per_class'] == {0: 1.0, 1: 1.0, 2: 0.0}
    assert metrics['mean_class'] == pytest.approx(2 / 3)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert metrics['loss'] == pytest.approx(-np.log(probability[range(4), label]).mean())


def test_top5_large_logits_and_ties():
    logits = np.zeros((2, 8))
    logits[0, :6] = [6, 5, 4, 3, 2, 1]
    logits[1] = np.arange(8) * 1e4
    metrics = classification_metrics(logits, np.array([4, 2]))
    assert metrics['top5'] == 0.5
    assert np.isfinite(metrics['loss'])
    assert classification_metrics(np.zeros((100, 10)), np.arange(100) % 10)['top1'] == 0.1


def test_intervals_equal_the_plain_bootstrap():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 7, 300)
    logits = rng.normal(size=(300, 7)) + 1.5 * np.eye(7)[label] * rng.integers(0, 2, (300, 1))
    found = bootstrap_intervals(logits, label)
    draws = [classification_metrics(logits[i], label[i]) for i in rng.integers(0, 300, (2000, 300))]
    for name in ('top1', 'top5', 'mean_class'):
        plain = np.percentile([draw[name] for draw in draws], (2.5, 97.5))
        np.testing.assert_allclose(found[name], plain, atol=0.006)
        assert found[name][1] - found[name][0] > 0.02
    assert found == bootstrap_intervals(logits, label)


def test_an_interval_of_the_test_split_is_two_standard_errors():
    """One standard error at 87 % on NTU60's 16,487 test clips is .26 points."""
    label = np.arange(16487) % 60
    logits = np.eye(60)[np.where(np.arange(16487) < 0.87 * 16487, label, (label + 1) % 60)]
    low, high = bootstrap_intervals(logits, label)['top1']
    assert (high - low) / 4 == pytest.approx(0.0026, rel=0.05)


def test_probabilities_are_averaged_over_views_without_underflow():
    logits = np.array([[[300.0, 0, 0], [300, 0, 0]], [[0, np.log(3), 0], [0, 0, np.log(3)]]])
    expected = [[0, -300, -300], np.log([0.2, 0.4, 0.4])]
    np.testing.assert_allclose(mean_over_views(logits), expected, atol=1e-4)


def test_confusion_matrix_by_hand():
    label = np.array([0, 0, 0, 1, 1, 2])
    matrix = confusion_matrix(np.eye(4)[[0, 2, 2, 1, 0, 2]], label)
    assert matrix.tolist() == [[1, 0, 2, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert most_confused(matrix) == [(0, 2, 2), (1, 0, 1)]
    assert most_confused(matrix, most=1) == [(0, 2, 2)]
