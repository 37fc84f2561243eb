"""Following persons through the frames of a video by their poses, where a pose estimator says only who is in a frame.

T frames, P persons of one frame, A persons that are being followed, M persons in the end, V joints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lib.errors import UserError

SAME_DETECTION = 0.06  # of the body's diagonal: two poses in a frame that are nearer are one person, found twice
FARTHEST = 0.3  # of the diagonal, by which a pose may miss the expected one a frame later
GROWTH = 0.02  # of the diagonal, by which it may miss it more for each frame in which the person was not found
LONGEST_GAP = 30  # frames without a person after which whoever appears there is somebody new
MOMENTUM = 0.5  # of the speed, which a new pose leaves
DAMPING = 0.8  # of the speed for each frame in which a person is not found


class Tracks(NamedTuple):
    """Persons through all frames, the most present (the highest sum of scores) first; zeros where one is absent.

    keypoint (M, T, V, 2) float32 in the unit of what was given, score (M, T, V) float32. left_out: further persons
    that were found, down to those seen in one frame alone.
    """

    keypoint: np.ndarray
    score: np.ndarray
    left_out: int


def track(frames: Sequence[tuple[np.ndarray, np.ndarray]], max_persons: int = 10) -> Tracks:
    """Links the persons of each frame, keypoint (P, V, 2) and score (P, V) in any order, to those of the frames before.

    A person is expected where its joints would be if the body went on at its speed. The distance of a pose from that is
    the mean over the joints that both have, in diagonals of the body, so that it holds near and far alike. The nearest
    pair is taken first, then the nearest of the others: with few persons nothing is gained by the assignment of least
    total distance, which rather moves two persons a little wrongly than one a lot. Persons are bridged over
    LONGEST_GAP frames; poses that are almost the same as a better one in the frame are dropped. Joints of score 0 are
    missing. P may be 0. Raises UserError where there is no frame at all.
    """
    if not frames:
        raise UserError('there are no frames in which to follow persons.')
    num_joints = frames[0][0].shape[1]
    pose, speed = np.zeros((0, num_joints, 2), np.float32), np.zeros((0, 1, 2), np.float32)  # of the A followed ones
    known, gap, person = np.zeros((0, num_joints), bool), np.zeros(0, int), np.zeros(0, int)
    detections, persons, presence = [], [], []  # persons: per frame, the number of each detection's
    for keypoint, score in frames:
        keypoint, score = np.asarray(keypoint, np.float32), np.asarray(score, np.float32)
        kept = _once_each(keypoint, score)
        keypoint, score = keypoint[kept], score[kept]
        found = score > 0

        gap += 1
        pose, speed = pose + speed * known[..., None], speed * np.where(gap > 1, DAMPING, 1)[:, None, None]
        alive = gap <= LONGEST_GAP
        pose, speed, known, gap, person = (array[alive] for array in (pose, speed, known, gap, person))

        distance = pose_distance(pose, known, keypoint, found)
        rows, columns = _nearest_first(distance, FARTHEST + GROWTH * (gap - 1))
        moved = _median_shift(pose[rows], known[rows], keypoint[columns], found[columns])
        speed[rows] += (1 - MOMENTUM) * moved / gap[rows, None, None]
        pose[rows] = np.where(found[columns, :, None], keypoint[columns], pose[rows] + moved)
        known[rows] |= found[columns]
        gap[rows] = 0

        new = np.setdiff1d(np.arange(len(keypoint)), columns)
        number = np.empty(len(keypoint), int)
        number[columns] = person[rows]
        number[new] = len(presence) + np.arange(len(new))
        presence += [0.0] * len(new)
        for i, total in zip(number, score.sum(axis=1), strict=True):
            presence[i] += float(total)
        pose, known = np.concatenate([pose, keypoint[new]]), np.concatenate([known, found[new]])
        speed = np.concatenate([speed, np.zeros((len(new), 1, 2), np.float32)])
        gap, person = np.concatenate([gap, np.zeros(len(new), int)]), np.concatenate([person, number[new]])
        detections.append((keypoint, score))
        persons.append(number)

    order = np.argsort(-np.array(presence), kind='stable')[:max_persons]
    row = np.full(len(presence), -1)
    row[order] = np.arange(len(order))
    tracks = Tracks(
        np.zeros((len(order), len(frames), num_joints, 2), np.float32),
        np.zeros((len(order), len(frames), num_joints), np.float32),
        len(presence) - len(order),
    )
    for t, ((keypoint, score), number) in enumerate(zip(detections, persons, strict=True)):
        kept = row[number] >= 0
        tracks.keypoint[row[number[kept]], t] = keypoint[kept] * (score[kept] > 0)[..., None]
        tracks.score[row[number[kept]], t] = score[kept]
    return tracks


def pose_distance(a: np.ndarray, a_found: np.ndarray, b: np.ndarray, b_found: np.ndarray) -> np.ndarray:
    """(A, B): how far each pose of a (A, V, 2) is from each of b (B, V, 2), in diagonals of the larger body.

    a_found (A, V), b_found (B, V): which joints are there. Infinite where two poses share no joint.
    """
    shared = a_found[:, None] & b_found[None]
    size = np.maximum(np.maximum(_diagonal(a, a_found)[:, None], _diagonal(b, b_found)[None]), 1e-6)
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1) / size[..., None]  # (A, B, V)
    count = shared.sum(axis=-1)
    total = np.where(shared, apart, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def _diagonal(pose: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(P,): the diagonal of the box about the joints of each pose that are there; 0 where none is."""
    low = np.where(found[..., None], pose, np.inf).min(axis=1)
    high = np.where(found[..., None], pose, -np.inf).max(axis=1)
    return np.linalg.norm(np.where(high >= low, high - low, 0), axis=-1)


def _once_each(keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The poses of a frame that have a joint and are of different persons, the better of two being kept; rising."""
    kept = []
    found = score > 0
    same = pose_distance(keypoint, found, keypoint, found) < SAME_DETECTION
    for i in np.argsort(-score.sum(axis=1), kind='stable'):
        if found[i].any() and not same[i, kept].any():
            kept.append(int(i))
    return np.array(sorted(kept), int)


def _nearest_first(distance: np.ndarray, farthest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pairs of distance (A, P) up to farthest (A,), each row and column at most once."""
    rows, columns = [], []
    for i, j in zip(*np.unravel_index(np.argsort(distance, axis=None, kind='stable'), distance.shape), strict=True):
        if distance[i, j] <= farthest[i] and i not in rows and j not in columns:
            rows.append(i)
            columns.append(j)
    return np.array(rows, int), np.array(columns, int)


def _median_shift(a: np.ndarray, a_found: np.ndarray, b: np.ndarray, b_found: np.ndarray) -> np.ndarray:
    """(P, 1, 2): how far the body moved from pose a to pose b, each (P, V, 2), by the joints that both have."""
    shift = np.where((a_found & b_found)[..., None], b - a, np.nan)
    return np.nanmedian(shift, axis=1, keepdims=True)
