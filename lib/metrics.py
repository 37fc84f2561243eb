"""What is reported of a set of predictions. NumPy only, so that both frameworks count alike."""

from typing import Any

import numpy as np


def classification_metrics(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Metrics of logits (N, K) for the true classes label (N,), as shares between 0 and 1.

    loss: mean cross-entropy in nats. top1, top5: share of clips whose class is among the 1 or 5 largest logits (of
    equal ones the lower class comes first). mean_class: mean over the classes present of their top1, which is
    `per_class`: {class: top1}. All logits must be finite.
    """
    assert np.isfinite(logits).all(), 'NaN would count as a hit'
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    true = log_probability[np.arange(len(label)), label][:, None]
    ahead = (log_probability > true) | ((log_probability == true) & (np.arange(logits.shape[1]) < label[:, None]))
    rank = ahead.sum(axis=1)
    per_class = {int(c): float((rank[label == c] == 0).mean()) for c in np.unique(label)}
    return {
        'loss': float(-true.mean()),
        'top1': float((rank < 1).mean()),
        'top5': float((rank < 5).mean()),
        'mean_class': float(np.mean(list(per_class.values()))),
        'per_class': per_class,
    }
