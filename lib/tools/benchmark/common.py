"""What the benchmarks share: input, timing in turn, reports."""

import argparse
import time
from collections.abc import Callable

import numpy as np

FRAMES, JOINTS, SIZE, SIGMA = 48, 17, 56, 0.6  # the volumes of row 1 of the README's table
MATRIX = 4096  # rows and columns of the product that stands for the machine's peak


def torch_setting(device: str) -> dict[str, object]:
    """What a report says of the machine's side of PyTorch."""
    import torch

    name = torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else device
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__}


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{number} is not 1 or more')
    return number


def walking_skeletons(num_clips: int, num_persons: int, num_frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N,M,T,V,2), in pixels of the map, and scores (N,M,T,V): persons who swing and drift, always the same.

    Some joints leave the map, and one in fifty is missing: score and coordinates zero.
    """
    rng = np.random.default_rng(0)
    shape = (num_clips, num_persons, 1, 1)
    time_axis, body_height = np.arange(num_frames)[:, None], np.linspace(-20, 20, JOINTS)  # from nose to ankles
    swing = np.sin(time_axis * 0.4 + rng.uniform(0, 2 * np.pi, (*shape[:2], 1, JOINTS)))
    x = rng.uniform(12, 44, shape) + rng.uniform(-0.3, 0.3, shape) * time_axis + rng.normal(0, 5, (1, 1, 1, JOINTS))
    x = x + 3 * swing
    y = rng.uniform(24, 32, shape) + body_height + rng.normal(0, 0.3, (*shape[:2], num_frames, JOINTS))
    score = rng.uniform(0.3, 1, x.shape)
    score[rng.random(x.shape) < 0.02] = 0
    keypoint = np.stack([x, y], axis=-1) * (score > 0)[..., None]
    return keypoint.astype(np.float32), score.astype(np.float32)


def peak_resident_bytes() -> int:
    """The most memory this process has had. Not ru_maxrss, which begins at what the parent had."""
    try:
        with open('/proc/self/status') as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith('VmHWM'))
    except FileNotFoundError:
        return 0


def time_in_turn(
    candidates: dict[str, Callable[[], object]], rounds: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after two calls to warm up.

    Every round runs all of them, in alternating order, so that what else the machine does weighs on all alike and the
    ratios of one round's times can be trusted more than the times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(2):
        for run in candidates.values():
            run()
    for i in range(rounds):
        for name in list(candidates) if i % 2 == 0 else reversed(candidates):
            synchronize()
            start = time.perf_counter()
            candidates[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(values: np.ndarray) -> dict[str, float]:
    """Median, quartiles and extremes of one measurement's rounds."""
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {'median': median, 'lower': lower, 'upper': upper, 'min': float(values.min()), 'max': float(values.max())}


def as_text(report: dict) -> str:
    """The report as a table: medians, then the middle half and the extremes of the rounds."""
    columns = ('median', 'lower', 'upper', 'min', 'max')
    lines = [report['title'], ', '.join(f'{name} {value}' for name, value in report['setting'].items()), '']
    tables = (
        (report['unit'], report['rates'], 1),
        ('ratio', report.get('ratios'), 3),
        ('opening', report.get('opening'), 2),
        ('peak MB', report.get('memory'), 0),
    )
    for heading, rows, digits in tables:
        if not rows:
            continue
        lines.append(f'{heading:<28}' + ''.join(f'{column:>10}' for column in columns))
        for name, numbers in rows.items():
            lines.append(f'{name:<28}' + ''.join(f'{numbers[column]:>10.{digits}f}' for column in columns))
        lines.append('')
    return '\n'.join(lines).rstrip()
