"""Arrays: .npy, .npz or nested lists in JSON, (frames, joints, 2 or 3) or (persons, frames, joints, 2 or 3).

In pixels, the third number a score, or 25 Kinect joints in metres (--layout ntu25). MediaPipe's 33 joints may have
x, y, z and visibility, also as 132 numbers per frame. An .npz has `keypoint`, and optionally `keypoint_score` and
`img_shape` (h, w).
"""

from typing import Any

import numpy as np

from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, shown
from lib.formats.clip import LARGEST_COORDINATE, LAYOUT_BY_NUMBER, Clip, Person
from lib.formats.content import Arrays
from lib.formats.mediapipe import NUM_LANDMARKS
from lib.formats.posture import CLEARLY, fit, is_clearly_better
from lib.formats.values import array, first_item, float32

NAME, FILES = 'arrays', '.npy and .npz'
_AXES = '(frames, joints, 2 or 3) or (persons, frames, joints, 2 or 3)'
_KEYPOINT, _SCORE = ('keypoint', 'keypoints'), ('keypoint_score', 'keypoint_scores', 'scores')
JUMPY = 1.5  # mean step along time relative to that along joints; .07 to .52 in real clips
MOST_PERSONS = 10  # in a clip with as many frames, the two may be swapped


def recognises(content: Any) -> bool:
    if isinstance(content, Arrays):
        return True
    depth, item = first_item(content)
    return depth in (2, 3, 4) and isinstance(item, int | float)


def read(content: Any, where: str, layout: str | None) -> Clip:
    arrays = content.by_name if isinstance(content, Arrays) else {'keypoint': array(content)}
    keypoint, score = _keypoint_and_score(arrays, where)
    num_joints, size = keypoint.shape[2:]
    if layout is None and num_joints == 25:
        raise UserError(
            f'{where}: 25 joints may be those of OpenPose or of Kinect. Add --layout body25 (pixels) or --layout ntu25 '
            '(metres); BODY_25B is --layout body25b.'
        )
    _require_axes(keypoint, where, layout)
    keypoint = float32(keypoint)
    if layout == 'ntu25' and size == 3:
        return Clip('array', _by_frame(keypoint), layout=layout, is_certain=True, is_3d=True)
    if num_joints == NUM_LANDMARKS and size == 4:
        keypoint = keypoint[..., [0, 1, 3]]
    elif num_joints == NUM_LANDMARKS and size == 3 and (keypoint[..., 2] < 0).any():  # z
        keypoint = keypoint[..., :2]
    if keypoint.shape[3] == 2:
        score = (keypoint != 0).any(axis=3) if score is None else score
        keypoint = np.concatenate([keypoint, float32(score[..., None])], axis=3)
    elif score is not None:
        raise UserError(f'{where} has scores both in keypoint and in keypoint_score: remove one of them.')
    elif not (np.isnan(keypoint[..., 2]) | ((keypoint[..., 2] > -0.5) & (keypoint[..., 2] <= 2))).all():
        raise UserError(
            f'{where}: the third number of 2D joints must be a score between 0 and 1, found '
            f'{np.nanmin(keypoint[..., 2]):.6g} to {np.nanmax(keypoint[..., 2]):.6g}. 3D needs 25 Kinect joints, '
            '--layout ntu25.'
        )
    return Clip('array', _by_frame(keypoint), img_shape=_img_shape(arrays, where), is_certain=True)


def _keypoint_and_score(arrays: dict[str, np.ndarray | None], where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """keypoint (M, T, V, C), and score (M, T, V) if there is one."""
    keypoint = next((arrays[name] for name in _KEYPOINT if name in arrays), None)
    score = next((arrays[name] for name in _SCORE if name in arrays), None)
    if keypoint is None and len(arrays) == 1:
        (keypoint,) = arrays.values()
    if keypoint is None:
        raise UserError(f'{where} must contain an array keypoint of numbers, {_AXES}; found {shown(list(arrays))}.')
    if keypoint.ndim == 2 and keypoint.shape[1] == NUM_LANDMARKS * 4:
        keypoint = keypoint.reshape(-1, NUM_LANDMARKS, 4)
    sizes = (2, 3, 4) if keypoint.ndim > 1 and keypoint.shape[-2] == NUM_LANDMARKS else (2, 3)
    is_numeric = keypoint.dtype.kind in 'iuf' and 0 not in keypoint.shape
    if not is_numeric or keypoint.ndim not in (3, 4) or keypoint.shape[-1] not in sizes:
        raise UserError(
            f'{where}: keypoint must be numbers of shape {_AXES}, found {keypoint.dtype} of {keypoint.shape}.'
        )
    if score is not None and (score.dtype.kind not in 'iuf' or score.shape != keypoint.shape[:-1]):
        raise UserError(
            f'{where}: keypoint_score must have one number per joint, found {score.dtype} of {score.shape} for '
            f'keypoint of {keypoint.shape}.'
        )
    if keypoint.ndim == 3:
        return keypoint[None], None if score is None else score[None]
    return keypoint, score


def _by_frame(keypoint: np.ndarray) -> dict[int, list[Person]]:
    return {
        t: [Person(joints, str(m)) for m, joints in enumerate(persons)]
        for t, persons in enumerate(keypoint.swapaxes(0, 1))
    }


def _img_shape(arrays: dict[str, np.ndarray], where: str) -> tuple[int, int] | None:
    shape = arrays.get('img_shape')
    if shape is None:
        return None
    if shape.shape != (2,) or shape.dtype.kind not in 'iu' or shape.min() < 1 or shape.max() > LARGEST_COORDINATE:
        raise UserError(f'{where}: img_shape must be height and width in pixels, found {shown(shape.tolist())}.')
    return tuple(shape.tolist())


def _require_axes(keypoint: np.ndarray, where: str, layout: str | None) -> None:
    """Raises UserError if the axes of (M, T, V, C) are probably in another order."""
    persons, frames, num_joints, size = keypoint.shape
    points, reason = _points(keypoint), None
    if persons > frames:
        reason = f'more persons ({persons}) than frames ({frames})'
    elif num_joints < 15:
        reason = f'{num_joints} joints'
    elif size == 2 and persons > 1 and _has_scores_as_person(keypoint):
        reason = 'a person has only numbers between 0 and 1, like scores'
    elif _are_joints_and_frames_swapped(points, layout):
        reason = 'points are nearer to each other within a joint than within a frame'
    elif persons > 1 and frames <= MOST_PERSONS and _are_persons_and_frames_swapped(points):
        reason = 'poses are nearer to each other within a frame than within a person'
    elif size == 2 and persons in (2, 3) and frames > 1 and layout != 'ntu25':
        swapped = _points(keypoint.transpose(3, 1, 2, 0))
        if is_clearly_better(_worst_fit(swapped, layout), _worst_fit(points, layout)):
            reason = 'the joints form bodies only if the first axis is x and y'
    if reason:
        raise UserError(
            f'{where}: an array of shape {keypoint.shape} is read as {_AXES}, but {reason}. Reorder the axes with '
            'np.transpose.'
        )


def _has_scores_as_person(keypoint: np.ndarray) -> bool:
    largest = np.nanmax(np.abs(keypoint), axis=(1, 2, 3), initial=0)
    return bool(largest.max() > 2 and ((largest > 0) & (largest <= 1)).any())


def _are_joints_and_frames_swapped(points: np.ndarray, layout: str | None) -> bool:
    """Whether steps along time are too large and the joints do not form clearly better bodies than the frames."""
    over_time, over_joints = (_step(points, axis) for axis in (1, 2))
    if not over_time > JUMPY * over_joints > 0:
        return False
    given, other = _worst_fit(points, layout), _worst_fit(points.swapaxes(1, 2), layout)
    return given[0] < other[0] + CLEARLY


def _are_persons_and_frames_swapped(points: np.ndarray) -> bool:
    """Whether poses differ more over time than between persons, in position and, for fast persons, in posture."""
    middle = (np.fmin.reduce(points, axis=2, keepdims=True) + np.fmax.reduce(points, axis=2, keepdims=True)) / 2
    return all(_step(part, 1) > JUMPY * _step(part, 0) > 0 for part in (points, points - middle))


def _points(keypoint: np.ndarray) -> np.ndarray:
    """x and y (M, T, V, 2), NaN for missing joints."""
    xy = keypoint[..., :2].astype(np.float64)
    return np.where(xy.any(axis=-1, keepdims=True), xy, np.nan)


def _step(points: np.ndarray, axis: int) -> float:
    """Mean step along an axis between points that are found, 0 if there are none."""
    steps = np.abs(np.diff(points, axis=axis))
    return float(steps[np.isfinite(steps)].mean()) if np.isfinite(steps).any() else 0.0


def _worst_fit(points: np.ndarray, layout: str | None) -> tuple[float, float]:
    """The worst fit of the persons (M, T, V, 2) that are found; see posture.fit. Zeros for other numbers of joints."""
    layout = layout or LAYOUT_BY_NUMBER.get(points.shape[2])
    if layout is None or len(LAYOUTS[layout]) != points.shape[2]:
        return 0, 0
    joints = np.concatenate([points, np.isfinite(points).all(axis=-1, keepdims=True)], axis=-1)
    return min(filter(None, (fit(person, layout) for person in joints)), default=(0, 0))
