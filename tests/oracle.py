"""Gaussian joint and limb maps in plain NumPy loops: the reference for both renderers.

After GeneratePoseTarget of PYSKL (https://github.com/kennymckormick/pyskl, pyskl/datasets/pipelines/heatmap_related.py,
Apache-2.0). M persons, T frames, V joints, L limbs, H and W map height and width; all lengths in pixels of the map.
"""

import numpy as np

from lib.data.heatmap import MIN_SCORE, Kind
from lib.data.skeletons import skeleton_of


def heatmaps(
    keypoint: np.ndarray,
    score: np.ndarray,
    *,
    kind: Kind = 'joint',
    img_shape: tuple[int, int],
    sigma: float = 0.6,
) -> np.ndarray:
    """Maps of all frames: the maximum over persons of `score * Gaussian of the distance`, cut off at 3 sigma.

    A limb has the lower score of its two joints; a joint is drawn as a limb of length zero. keypoint: (M,T,V,2), x
    right and y down, converted to float32 as in PYSKL. score: (M,T,V). kind: 'joint' (V channels), 'limb' (L, in the
    order of `skeleton_of(V).limbs`) or 'both'. img_shape: (H,W). Returns (T,channels,H,W) float32. Raises
    UserError if the limbs of V joints are unknown.
    """
    keypoint, score = np.asarray(keypoint, np.float32), np.asarray(score, np.float32)
    num_frames, num_joints = keypoint.shape[1:3]
    ends = [] if kind == 'limb' else [(joint, joint) for joint in range(num_joints)]
    ends += [] if kind == 'joint' else skeleton_of(num_joints).limbs
    volume = np.zeros((num_frames, len(ends), *img_shape), np.float32)
    for t in range(num_frames):
        for i, (start, end) in enumerate(ends):
            for points, values in zip(keypoint[:, t], score[:, t], strict=True):
                _draw_limb(volume[t, i], points[start], points[end], values[start], values[end], sigma)
    return volume


def _window(low: np.float32, high: np.float32, sigma: float, size: int) -> slice:
    """Pixels of one axis within 3 sigma of [low, high].

    Computed in float32 and truncated by int(), as in the fast renderers: a pixel more or less at the edge of a window
    would be a difference of .01.
    """
    reach = np.float32(3 * sigma)
    start, stop = max(int(low - reach), 0), min(int(high + reach) + 1, size)
    return slice(start, stop) if start < stop else slice(0, 0)


def _draw_limb(
    image: np.ndarray, start: np.ndarray, end: np.ndarray, start_value: np.float32, end_value: np.float32, sigma: float
) -> None:
    """Draws a limb from start (x,y) to end (x,y) into image (H,W); a limb shorter than a pixel as its start joint."""
    value = min(start_value, end_value)
    if value < MIN_SCORE:
        return
    if np.sum((start - end) ** 2) < 1:
        end, value = start, start_value
    left, top = np.minimum(start, end)
    right, bottom = np.maximum(start, end)
    cols = _window(left, right, sigma, image.shape[1])
    rows = _window(top, bottom, sigma, image.shape[0])
    x, y = np.arange(cols.start, cols.stop), np.arange(rows.start, rows.stop)[:, None]
    start, along = start.astype(np.float64), end.astype(np.float64) - start
    # Position of the nearest point on the segment, from 0 (start) to 1 (end).
    length2 = np.sum(along**2) or 1
    share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length2, 0, 1)
    distance2 = (x - start[0] - share * along[0]) ** 2 + (y - start[1] - share * along[1]) ** 2
    patch = image[rows, cols]
    np.maximum(patch, value * np.exp(-distance2 / (2 * sigma**2)), out=patch, casting='same_kind')
