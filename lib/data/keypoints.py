"""Keypoints as the input of a model, without heatmaps: MotionBERT's preparation for actions, over a batch of clips.

Zhu et al., ICCV 2023, lib/data/dataset_action.py and lib/utils/utils_data.py. Pixels -> camera -> identities -> H36M's
joints -> random move -> crop. Which frames are taken is `sampling.resampled_frames`.

MotionBERT prepares 17 COCO joints; 25 Kinect joints have `centre_and_scale` in the place of joint map and crop.

N clips, M persons, L frames, V joints, C coordinates.
"""

import numpy as np

MOVE_ANGLE = 10.0  # degrees either way
MOVE_SCALE = (0.9, 1.1)
MOVE_SHIFT = 0.1  # either way, in units of the keypoints
MOVES_2D = 4  # what a random move is made of: angle, scale, shift in x and y
MOVES_3D = 7  # angles about x, y and z, scale, shift in x, y and z
CROP_MINIMUM = 4  # points; MotionBERT makes zeros of a clip with fewer

# The COCO joint that each of H36M's 17 is, or stands next to where it is the middle of two.
_COCO_OF_H36M = np.array([11, 12, 14, 16, 11, 13, 15, 5, 5, 0, 1, 5, 7, 9, 6, 8, 10])


def to_camera(keypoint: np.ndarray, img_shape: np.ndarray) -> np.ndarray:
    """Pixels (N, ..., 2) to MotionBERT's camera, x / max(w, h) * 2 - 1 for both coordinates: float32, same shape.

    img_shape: (N, 2), (h, w). A missing joint moves to (-1, -1). Computed in float32 whatever the type of the pixels,
    which reproduces MotionBERT's values to the bit.
    """
    longest = img_shape.max(axis=1).astype(np.float32).reshape(-1, *[1] * (keypoint.ndim - 1))
    return keypoint.astype(np.float32) / longest * np.float32(2) - np.float32(1)


def identity_swaps(first: np.ndarray, second: np.ndarray, total_frames: np.ndarray) -> np.ndarray:
    """MotionBERT's human_tracking: in which frames the two persons of a clip are to be exchanged, (R,) bool.

    first, second: (R, V, C), persons 0 and 1 of n clips, all frames of a clip, clip after clip. total_frames: (n,), at
    least 1 each, R in sum. The identities cross between two frames where person 0 moves further, summed over the
    joints, than it would if it had been person 1 before; a frame is swapped after an odd number of crossings. The first
    frame of a clip never is. Computed in the type of the keypoints, as in MotionBERT: float16 for a 3D pickle.
    """
    start = np.cumsum(total_frames) - total_frames
    stayed, crossed = (
        np.linalg.norm(first[1:] - before[:-1], axis=-1).sum(axis=-1)  # (R - 1,)
        for before in (first, second)
    )
    crossings = np.cumsum(np.concatenate([[False], stayed > crossed]))  # across the borders of clips too
    return (crossings - np.repeat(crossings[start], total_frames)) % 2 == 1


def coco_to_h36m(keypoint: np.ndarray) -> np.ndarray:
    """COCO's joints (..., 17, C) in the order of H36M: its root, belly, neck and head are middles of others.

    MotionBERT does not reorder the scores along with them. Computed in the type of the keypoints.
    """
    moved = keypoint[..., _COCO_OF_H36M, :]
    for middle, a, b in ((0, 11, 12), (8, 5, 6), (10, 1, 2)):
        moved[..., middle, :] = (keypoint[..., a, :] + keypoint[..., b, :]) / 2
    moved[..., 7, :] = (moved[..., 0, :] + moved[..., 8, :]) / 2
    return moved


def random_move(keypoint: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """MotionBERT's random_move: turns, scales and shifts a clip by amounts that drift from its first to its last frame.

    keypoint: (N, M, L, V, C) float32, C = 2 or 3; turned about the origin, in 3D about x first, then y, then z. All
    points move, absent ones too. draws: (N, K, 2) in [0, 1), the values at the start and at the end of the clip, with
    K = MOVES_2D or MOVES_3D; .5 leaves everything where it is. (MotionBERT itself moves 2D keypoints alone.)
    """
    N, _, L, _, C = keypoint.shape
    drawn = np.linspace(draws[..., 0], draws[..., 1], L, axis=-1)  # (N, K, L)
    angles, scale, shift = drawn[:, : -C - 1], drawn[:, -C - 1], drawn[:, -C:]
    angles = np.deg2rad(MOVE_ANGLE * (2 * angles - 1))
    scale = MOVE_SCALE[0] + (MOVE_SCALE[1] - MOVE_SCALE[0]) * scale
    shift = MOVE_SHIFT * (2 * shift - 1)

    def turn(angle: np.ndarray, a: int, b: int) -> np.ndarray:  # axis a towards axis b, (N, L, C, C)
        matrix = np.tile(np.eye(C), (N, L, 1, 1))
        matrix[..., a, a] = matrix[..., b, b] = np.cos(angle)
        matrix[..., b, a] = np.sin(angle)
        matrix[..., a, b] = -matrix[..., b, a]
        return matrix

    matrix = turn(angles[:, -1], 0, 1)
    if C == 3:
        matrix = matrix @ turn(angles[:, 1], 2, 0) @ turn(angles[:, 0], 1, 2)
    matrix = (matrix * scale[..., None, None]).astype(keypoint.dtype)
    shift = np.moveaxis(shift, 1, 2).astype(keypoint.dtype)  # (N, L, C)
    turned = keypoint @ np.swapaxes(matrix, -1, -2)[:, None]  # 15 times as fast as einsum
    return turned + shift[:, None, :, None]


def crop_scale(motion: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """MotionBERT's crop_scale: [-1, 1] is a square about all persons' box, `ratio` (N,) times as large; float32.

    motion: (N, M, L, V, 3), x, y, score. The box is that of the points whose score is not 0, but all are moved, those
    of absent persons too; then x, y and score are clipped to [-1, 1]. A clip with fewer than CROP_MINIMUM such points,
    or whose points are all the same, becomes zeros.
    """
    motion = motion.astype(np.float32)  # a copy
    there = motion[..., 2:] != 0
    usable = there.sum(axis=(1, 2, 3, 4)) >= CROP_MINIMUM
    lowest, highest = (np.where(usable[:, None], edge[:, :2], 0) for edge in _box(motion, there))
    side = (highest - lowest).max(axis=1) * ratio
    usable &= side > 0
    side = np.where(usable, side, 1).astype(np.float32)
    xy = motion[..., :2]
    xy -= ((lowest + highest) / 2)[:, None, None, None]
    xy *= (2 / side)[:, None, None, None, None]
    np.clip(motion, -1, 1, out=motion)
    motion[~usable] = 0
    return motion


def centre_and_scale(keypoint: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Kinect joints in metres, (N, M, L, V, 3) float32, relative to where the clip begins; same shape, no unit.

    The origin is the spine base (joint 0) of person 0 in the first of its frames, where it is there in any; the unit is
    the longest side of the box around all joints, all persons and all frames of the clip. So persons keep their
    distance and size. Joints that are not `present` (N, M, L, V) bool become zero, as does a clip without extent.
    """
    base_there = present[:, 0, :, 0]  # (N, L)
    base = keypoint[np.arange(len(keypoint)), 0, base_there.argmax(axis=1), 0]  # (N, 3)
    base = np.where(base_there.any(axis=1, keepdims=True), base, 0)
    there = present[..., None]
    lowest, highest = _box(keypoint, there)
    side = (highest - lowest).max(axis=1)
    usable = side > 0  # -inf where nothing is there
    scaled = (keypoint - base[:, None, None, None]) / np.where(usable, side, 1)[:, None, None, None, None]
    return np.where(there & usable[:, None, None, None, None], scaled, np.float32(0))


def _box(keypoint: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of the points (N, M, L, V, C) that are there (N, M, L, V, 1): (N, C) each.

    Where none is there: (inf, -inf).
    """
    N, M, L, V, C = keypoint.shape

    def reduced(ufunc: np.ufunc, nothing: float) -> np.ndarray:
        points = np.where(there, keypoint, np.float32(nothing)).reshape(N, M * L, V * C)  # long inner loops
        return ufunc.reduce(ufunc.reduce(points, axis=1).reshape(N, V, C), axis=1)

    return reduced(np.minimum, np.inf), reduced(np.maximum, -np.inf)
