"""Tracking of persons by their poses, for pose estimators without tracking.

T frames, P persons in a frame, A tracked persons, M resulting persons, V joints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lib.errors import UserError

# Distances are fractions of the body's diagonal.
SAME_DETECTION = 0.06  # largest distance of two poses in a frame that are one person, detected twice
FARTHEST = 0.3  # largest distance of a pose from the predicted one
GROWTH = 0.02  # increase of that distance per missed frame
LONGEST_GAP = 30  # missed frames after which a track ends
MOMENTUM = 0.5  # weight of the previous velocity
DAMPING = 0.8  # factor of the velocity per missed frame


class Tracks(NamedTuple):
    """Persons in all frames, the most present (highest sum of scores) first; zeros in frames without the person.

    keypoint (M, T, V, 2) float32 in the units of the input, score (M, T, V) float32. left_out: number of further
    persons.
    """

    keypoint: np.ndarray
    score: np.ndarray
    left_out: int


def track(frames: Sequence[tuple[np.ndarray, np.ndarray]], max_persons: int = 10) -> Tracks:
    """Links the persons of each frame, keypoint (P, V, 2) and score (P, V) in any order, to those of earlier frames.

    The joints of a person are predicted from its velocity. The distance of a pose from the prediction is the mean over
    common joints, relative to the body's diagonal, so that it does not depend on the size. Pairs are assigned in order
    of distance; minimising the total distance (Hungarian algorithm) would prefer two small errors to a large one.
    Tracks continue over gaps of up to LONGEST_GAP frames. Near-duplicates of a better pose in the same frame are
    dropped. Joints of score 0 are missing; P may be 0. Raises UserError without frames.
    """
    if not frames:
        raise UserError('no frames to track persons in.')
    num_joints = frames[0][0].shape[1]
    pose, speed = np.zeros((0, num_joints, 2), np.float32), np.zeros((0, 1, 2), np.float32)  # (A, V, 2)
    known, gap, person = np.zeros((0, num_joints), bool), np.zeros(0, int), np.zeros(0, int)
    detections, persons, presence = [], [], []  # persons: number of each detection, by frame
    for keypoint, score in frames:
        keypoint, score = np.asarray(keypoint, np.float32), np.asarray(score, np.float32)
        kept = _once_each(keypoint, score)
        keypoint, score = keypoint[kept], score[kept]
        found = score > 0

        gap += 1
        pose, speed = pose + speed * known[..., None], speed * np.where(gap > 1, DAMPING, 1)[:, None, None]
        alive = gap <= LONGEST_GAP
        pose, speed, known, gap, person = (array[alive] for array in (pose, speed, known, gap, person))

        distance = _pose_distance(pose, known, keypoint, found)
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


def _pose_distance(a: np.ndarray, a_found: np.ndarray, b: np.ndarray, b_found: np.ndarray) -> np.ndarray:
    """Distances (A, B) of poses a (A, V, 2) from poses b (B, V, 2), relative to the diagonal of the larger body.

    a_found (A, V), b_found (B, V): whether a joint is present. Infinite without common joints.
    """
    shared = a_found[:, None] & b_found[None]
    size = np.maximum(np.maximum(_diagonal(a, a_found)[:, None], _diagonal(b, b_found)[None]), 1e-6)
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1) / size[..., None]  # (A, B, V)
    count = shared.sum(axis=-1)
    total = np.where(shared, apart, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def _diagonal(pose: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Diagonal (P,) of the box around the present joints of each pose; 0 without joints."""
    low = np.where(found[..., None], pose, np.inf).min(axis=1)
    high = np.where(found[..., None], pose, -np.inf).max(axis=1)
    return np.linalg.norm(np.where(high >= low, high - low, 0), axis=-1)


def _once_each(keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Indices of the poses in a frame, in ascending order, without empty poses and the worse of two near-duplicates."""
    kept = []
    found = score > 0
    same = _pose_distance(keypoint, found, keypoint, found) < SAME_DETECTION
    for i in np.argsort(-score.sum(axis=1), kind='stable'):
        if found[i].any() and not same[i, kept].any():
            kept.append(int(i))
    return np.array(sorted(kept), int)


def _nearest_first(distance: np.ndarray, farthest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of pairs with distance (A, P) up to farthest (A,), each row and column at most once."""
    rows, columns = [], []
    for i, j in zip(*np.unravel_index(np.argsort(distance, axis=None, kind='stable'), distance.shape), strict=True):
        if distance[i, j] <= farthest[i] and i not in rows and j not in columns:
            rows.append(i)
            columns.append(j)
    return np.array(rows, int), np.array(columns, int)


def _median_shift(a: np.ndarray, a_found: np.ndarray, b: np.ndarray, b_found: np.ndarray) -> np.ndarray:
    """Median shift (P, 1, 2) of the common joints from pose a to pose b, each (P, V, 2)."""
    shift = np.where((a_found & b_found)[..., None], b - a, np.nan)
    return np.nanmedian(shift, axis=1, keepdims=True)
