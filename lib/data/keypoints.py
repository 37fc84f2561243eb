"""Keypoint inputs without heatmaps: the preprocessing of MotionBERT and MAMP, over a batch of clips.

MotionBERT: Zhu et al., ICCV 2023, lib/data/dataset_action.py and lib/utils/utils_data.py. Stages: camera normalisation,
tracking, COCO to H36M joints, random move, crop. Frames are sampled by `sampling.resampled_frames`. MotionBERT handles
17 COCO joints; for 25 Kinect joints `centre_and_scale` replaces joint mapping and crop.

MAMP (25 Kinect joints): Mao et al., ICCV 2023, feeder/tools.py and, for the centring, data/ntu/seq_transformation.py.
Stages: centring, resizing in time (`sampling.between_frames`), `rotate_3d`. Identities are not tracked.

N clips, M persons, L frames, V joints, C coordinates.
"""

import numpy as np

MOVE_ANGLE = 10.0  # degrees, in either direction
MOVE_SCALE = (0.9, 1.1)
MOVE_SHIFT = 0.1  # in either direction, in units of the keypoints
MOVES_2D = 4  # parameters of a random move: angle, scale, shift in x and y
MOVES_3D = 7  # angles about x, y and z, scale, shift in x, y and z
CROP_MINIMUM = 4  # points; MotionBERT sets clips with fewer to zero

# COCO joint of each H36M joint; midpoints of two joints are computed in `coco_to_h36m`.
_COCO_OF_H36M = np.array([11, 12, 14, 16, 11, 13, 15, 5, 5, 0, 1, 5, 7, 9, 6, 8, 10])


def to_camera(keypoint: np.ndarray, img_shape: np.ndarray) -> np.ndarray:
    """MotionBERT's camera normalisation, x / max(w, h) * 2 - 1 for both coordinates: (N, ..., 2) -> float32.

    img_shape: (N, 2), (h, w). Missing joints become (-1, -1). Computed in float32, which reproduces MotionBERT's values
    bit for bit.
    """
    longest = img_shape.max(axis=1).astype(np.float32).reshape(-1, *[1] * (keypoint.ndim - 1))
    return keypoint.astype(np.float32) / longest * np.float32(2) - np.float32(1)


def identity_swaps(first: np.ndarray, second: np.ndarray, total_frames: np.ndarray) -> np.ndarray:
    """MotionBERT's human_tracking: frames in which the two persons of a clip must be swapped, (R,) bool.

    first, second: (R, V, C), persons 0 and 1 of n clips, all frames, clip by clip. total_frames: (n,), at least 1 each,
    with sum R. Identities cross between two frames if person 0 is further from person 0 in the previous frame than from
    person 1, summed over joints. A frame is swapped after an odd number of crossings, the first frame never. Computed
    in the dtype of the keypoints, as in MotionBERT: float16 for a 3D pickle.
    """
    start = np.cumsum(total_frames) - total_frames
    stayed, crossed = (
        np.linalg.norm(first[1:] - before[:-1], axis=-1).sum(axis=-1)  # (R - 1,)
        for before in (first, second)
    )
    crossings = np.cumsum(np.concatenate([[False], stayed > crossed]))  # across the borders of clips too
    return (crossings - np.repeat(crossings[start], total_frames)) % 2 == 1


def coco_to_h36m(keypoint: np.ndarray) -> np.ndarray:
    """Converts COCO joints (..., 17, C) to H36M; root, belly, neck and head are midpoints of two joints.

    MotionBERT does not reorder the scores accordingly. Computed in the dtype of the keypoints.
    """
    moved = keypoint[..., _COCO_OF_H36M, :]
    for middle, a, b in ((0, 11, 12), (8, 5, 6), (10, 1, 2)):
        moved[..., middle, :] = (keypoint[..., a, :] + keypoint[..., b, :]) / 2
    moved[..., 7, :] = (moved[..., 0, :] + moved[..., 8, :]) / 2
    return moved


def random_move(keypoint: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """MotionBERT's random_move: rotation, scale and shift that change linearly from the first to the last frame.

    keypoint: (N, M, L, V, C) float32, C = 2 or 3; rotated about the origin, in 3D about x, then y, then z. All points
    move, including absent ones. draws: (N, K, 2) in [0, 1), values for the first and last frame, K = MOVES_2D or
    MOVES_3D; 0.5 is the identity. (The 3D version is ours: MotionBERT moves only 2D keypoints.)
    """
    _, _, L, _, C = keypoint.shape
    drawn = np.linspace(draws[..., 0], draws[..., 1], L, axis=-1)  # (N, K, L)
    angles, scale, shift = drawn[:, : -C - 1], drawn[:, -C - 1], drawn[:, -C:]
    angles = np.deg2rad(MOVE_ANGLE * (2 * angles - 1))
    scale = MOVE_SCALE[0] + (MOVE_SCALE[1] - MOVE_SCALE[0]) * scale
    shift = MOVE_SHIFT * (2 * shift - 1)

    matrix = _turn(angles[:, -1], 0, 1, C)
    if C == 3:
        matrix = matrix @ _turn(angles[:, 1], 2, 0, C) @ _turn(angles[:, 0], 1, 2, C)
    matrix = (matrix * scale[..., None, None]).astype(keypoint.dtype)
    shift = np.moveaxis(shift, 1, 2).astype(keypoint.dtype)  # (N, L, C)
    turned = keypoint @ np.swapaxes(matrix, -1, -2)[:, None]  # 15 times as fast as einsum
    return turned + shift[:, None, :, None]


def crop_scale(motion: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """MotionBERT's crop_scale: maps a square of `ratio` (N,) times the box around all persons to [-1, 1].

    motion: (N, M, L, V, 3), x, y, score. The box encloses all points with non-zero score, but all points are mapped,
    including absent persons; then x, y and score are clipped to [-1, 1]. Clips with fewer than CROP_MINIMUM scored
    points, or with an empty box, become zeros.
    """
    motion = motion.astype(np.float32)  # a copy
    present = motion[..., 2:] != 0
    usable = present.sum(axis=(1, 2, 3, 4)) >= CROP_MINIMUM
    lowest, highest = (np.where(usable[:, None], edge[:, :2], 0) for edge in _box(motion, present))
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
    """Centres and scales Kinect joints in metres, (N, M, L, V, 3) float32; same shape, dimensionless.

    The origin is the spine base (joint 0) of person 0 in the first frame where it is present, the unit the longest side
    of the box around all joints, persons and frames of the clip, which preserves relative sizes and distances. Joints
    that are not `present` (N, M, L, V) bool become zero, as do clips without extent.
    """
    base = _first_position(keypoint, present, 0)
    present = present[..., None]
    lowest, highest = _box(keypoint, present)
    side = (highest - lowest).max(axis=1)
    usable = side > 0  # side is -inf if no joint is present
    scaled = (keypoint - base) / np.where(usable, side, 1)[:, None, None, None, None]
    return np.where(present & usable[:, None, None, None, None], scaled, np.float32(0))


def centre(keypoint: np.ndarray) -> np.ndarray:
    """Centres Kinect joints (N, M, L, V, 3) on the spine in the first frame; missing joints stay zero.

    The origin is joint 1, the middle of the spine, of person 0 in the first frame where it is present: MAMP uses the
    files of CTR-GCN's seq_transformation.py ("new origin: joint-2", counted from 1), not the spine base.
    """
    present = (keypoint != 0).any(axis=-1)
    return np.where(present[..., None], keypoint - _first_position(keypoint, present, 1), np.float32(0))


def rotate_3d(keypoint: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotates clips (N, M, L, V, 3) about the origin: about x, then y, then z, by angles (N, 3) rad."""
    x, y, z = angles.T
    matrix = _turn(z, 0, 1, 3) @ _turn(y, 2, 0, 3) @ _turn(x, 1, 2, 3)
    return keypoint @ np.swapaxes(matrix, -1, -2).astype(keypoint.dtype)[:, None, None]


def _turn(angle: np.ndarray, a: int, b: int, C: int) -> np.ndarray:
    """Matrices that turn axis a towards axis b, (*angle.shape, C, C)."""
    matrix = np.tile(np.eye(C), (*angle.shape, 1, 1))
    matrix[..., a, a] = matrix[..., b, b] = np.cos(angle)
    matrix[..., b, a] = np.sin(angle)
    matrix[..., a, b] = -matrix[..., b, a]
    return matrix


def _first_position(keypoint: np.ndarray, present: np.ndarray, joint: int) -> np.ndarray:
    """Position of a joint of person 0 in the first frame where it is present, else zeros: (N, 1, 1, 1, 3)."""
    has_joint = present[:, 0, :, joint]  # (N, L)
    position = keypoint[np.arange(len(keypoint)), 0, has_joint.argmax(axis=1), joint]
    return np.where(has_joint.any(axis=1, keepdims=True), position, 0)[:, None, None, None]


def _box(keypoint: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of the points (N, M, L, V, C) that are `present` (N, M, L, V, 1): (N, C) each.

    (inf, -inf) if none is present.
    """
    N, M, L, V, C = keypoint.shape

    def reduced(ufunc: np.ufunc, default: float) -> np.ndarray:
        points = np.where(present, keypoint, np.float32(default)).reshape(N, M * L, V * C)  # long inner loops
        return ufunc.reduce(ufunc.reduce(points, axis=1).reshape(N, V, C), axis=1)

    return reduced(np.minimum, np.inf), reduced(np.maximum, -np.inf)
