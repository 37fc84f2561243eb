"""Classification metrics in NumPy, shared by both frameworks."""

from typing import Any

import numpy as np


def classification_metrics(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Metrics of logits (N, K) for labels (N,), as fractions.

    loss: mean cross-entropy in nats. top1, top5: fraction of clips whose label is among the 1 or 5 largest logits
    (ties: lower class first). per_class: {class: top1} of the classes present. mean_class: mean of per_class. All
    logits must be finite.
    """
    assert np.isfinite(logits).all(), 'NaN would count as correct'
    true = log_probability(logits)[np.arange(len(label)), label]
    rank = _ranks(logits, label)
    per_class = {int(c): float((rank[label == c] == 0).mean()) for c in np.unique(label)}
    return {
        'loss': float(-true.mean()),
        'top1': float((rank < 1).mean()),
        'top5': float((rank < 5).mean()),
        'mean_class': float(np.mean(list(per_class.values()))),
        'per_class': per_class,
    }


def log_probability(logits: np.ndarray) -> np.ndarray:
    """Log-softmax of logits (N, K), float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def mean_over_views(logits: np.ndarray) -> np.ndarray:
    """Log of the mean probability over views: (N, views, K) -> (N, K) float32.

    The logits of a single view are returned unchanged.
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    views = log_probability(logits.reshape(-1, logits.shape[2])).reshape(logits.shape)
    largest = views.max(axis=1, keepdims=True)
    return (largest[:, 0] + np.log(np.exp(views - largest).mean(axis=1))).astype(np.float32)


def _ranks(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Rank of the label among the classes, (N,); 0 is the best."""
    true = logits[np.arange(len(label)), label][:, None]
    ahead = (logits > true) | ((logits == true) & (np.arange(logits.shape[1]) < label[:, None]))
    return ahead.sum(axis=1)


def bootstrap_intervals(logits: np.ndarray, label: np.ndarray, draws: int = 10_000) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of top1, top5 and mean_class (percentile method, Efron and Tibshirani, 1993).

    Clips are resampled independently: if several clips show the same recording, the intervals are too narrow. The seed
    is fixed, so that equal predictions have equal intervals.
    """
    classes, of_class = np.unique(label, return_inverse=True)
    rank = _ranks(logits, label)
    # Only the counts per class of top-1, other top-5 and remaining clips matter: one multinomial draw per resample.
    cells = np.zeros((len(classes), 3))
    np.add.at(cells, (of_class, np.where(rank < 1, 0, np.where(rank < 5, 1, 2))), 1)
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(label), cells.ravel() / len(label), size=draws).reshape(draws, *cells.shape)
    count = drawn.sum(axis=2)
    right, first_five = drawn[..., 0], drawn[..., :2].sum(axis=2)
    per_class = np.divide(right, count, out=np.full(count.shape, np.nan), where=count > 0)
    found = {
        'top1': right.sum(axis=1) / len(label),
        'top5': first_five.sum(axis=1) / len(label),
        'mean_class': np.nanmean(per_class, axis=1),
    }
    return {name: tuple(np.percentile(values, (2.5, 97.5)).tolist()) for name, values in found.items()}


def confusion_matrix(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Number of clips per label (row) and predicted class (column): (K, K) int64."""
    matrix = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(matrix, (label, logits.argmax(axis=1)), 1)
    return matrix


def most_confused(matrix: np.ndarray, most: int = 10) -> list[tuple[int, int, int]]:
    """(label, predicted class, clips) of the most frequent errors (ties: lowest label first)."""
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    first = np.argsort(-mistakes, axis=None, kind='stable')[:most]
    pairs = [
        (int(i), int(j), int(mistakes[i, j])) for i, j in zip(*np.unravel_index(first, mistakes.shape), strict=True)
    ]
    return [pair for pair in pairs if pair[2]]
