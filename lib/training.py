"""What training needs around the model, whatever the framework: clips, batches prepared ahead, finite losses."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.data.classes import class_names
from lib.data.clips import Clips
from lib.metrics import classification_metrics, mean_over_views


def make_clips(config: EasyDict, split: str) -> Clips:
    """The clips of a split. Raises UserError if they, their class names or their labels do not fit the config."""
    size = {'size': config.heatmap.size} if 'heatmap' in config else {}
    class_names(config)  # needed only at the end, checked at the start
    clips = Clips(split, **size, **config.data)
    clips.check_labels(config.model.num_classes)
    return clips


def prefetch(load: Callable[[int], Any], numbers: Sequence[int], num_workers: int) -> Iterator[Any]:
    """Yields load(number) for each number, in this order, computed ahead by threads: NumPy releases the GIL."""
    with ThreadPoolExecutor(num_workers) as loader:
        ahead = deque(loader.submit(load, number) for number in numbers[: num_workers + 1])
        for i in range(len(numbers)):
            batch = ahead.popleft().result()
            ahead.extend(loader.submit(load, number) for number in numbers[i + num_workers + 1 :][:1])
            yield batch


def pad_batch(batch: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """A batch with clips of zeros appended up to `count` clips: compiled graphs want one shape."""
    missing = max(0, count - len(batch['label']))
    return {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}


def check_losses(losses: Sequence[float], clips: Clips, epoch: int, first: int) -> None:
    """Raises FloatingPointError, naming step and clips, for the first loss that is not finite.

    first: the step of the epoch that losses[0] belongs to.
    """
    for step, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f'the loss became {loss} in epoch {epoch + 1}, step {step + 1} of {len(clips)}, with the clips '
                f'{" ".join(clips.names(epoch, step))}. The last checkpoint is intact. A lower learning rate may help.'
            )


def scores_of(logits: np.ndarray, clips: Clips) -> np.ndarray:
    """Logits (N, views, K) of a split -> scores (N, K), see mean_over_views.

    Raises FloatingPointError, naming the clip, if one is not finite.
    """
    bad = (~np.isfinite(logits)).any(axis=(1, 2))
    if bad.any():
        name = clips.store.name(clips.clips[bad.argmax()])
        raise FloatingPointError(f'the scores of {bad.sum()} clips of {clips.list_name} are not finite, first {name}.')
    return mean_over_views(logits)


def validation_metrics(logits: np.ndarray, clips: Clips) -> dict[str, float]:
    """{'loss', 'top1', 'top5', 'mean_class'} of logits (N, views, K) of a split."""
    metrics = classification_metrics(scores_of(logits, clips), clips.labels)
    del metrics['per_class']
    return metrics


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """The seed of the dropout of a step in a process, below 2**63."""
    state = np.random.SeedSequence([seed % 2**64, epoch, step, rank]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
