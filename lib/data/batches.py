"""Framework-independent batch loading: clips of a config, prefetching, padding."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.data.augmentation import Augmentation
from lib.data.clips import Clips


def make_clips(config: EasyDict, split: str) -> Clips:
    """Opens a split. Raises UserError if the data or the labels do not fit the config."""
    size = config.heatmap.size if 'heatmap' in config else 0
    clips = Clips(split, Augmentation(**config.augmentation), size, **config.data)
    if 'num_classes' in config.model:  # not in pretraining
        clips.check_labels(config.model.num_classes)
    return clips


def prefetch(load: Callable[[int], Any], numbers: Sequence[int], num_workers: int) -> Iterator[Any]:
    """Yields load(number) for each number in order, computed ahead by threads (NumPy releases the GIL)."""
    with ThreadPoolExecutor(num_workers) as loader:
        ahead = deque(loader.submit(load, number) for number in numbers[: num_workers + 1])
        for i in range(num_workers + 1, len(numbers) + num_workers + 1):
            batch = ahead.popleft().result()
            if i < len(numbers):
                ahead.append(loader.submit(load, numbers[i]))
            yield batch


def pad_batch(batch: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Pads a batch with zeros to `count` clips, so that compiled graphs see one shape."""
    missing = count - len(batch['label'])
    if missing <= 0:
        return dict(batch)
    return {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}
