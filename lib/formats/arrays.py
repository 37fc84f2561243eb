"""Bare arrays: .npy, .npz or nested lists in JSON, (frames, joints, 2 or 3) or (persons, frames, joints, 2 or 3).

Pixels, the third number a score, or 25 Kinect joints in metres (--layout ntu25). MediaPipe's 33 joints may have four:
x, y, z, visibility. An .npz has them as `keypoint`, and may have `keypoint_score` and `img_shape` (h, w).
"""

import contextlib
from itertools import chain
from typing import Any

import numpy as np

from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, shown
from lib.formats.clip import LARGEST_COORDINATE, MOST_FRAMES, Clip, Person
from lib.formats.content import Arrays
from lib.formats.posture import A_BODY, CLEARLY, fit
from lib.formats.values import first_item, float32

NAME, FILES = 'arrays', '.npy and .npz'
_AXES = '(frames, joints, 2 or 3) or (persons, frames, joints, 2 or 3)'
_NAMES = {'keypoint': ('keypoint', 'keypoints'), 'keypoint_score': ('keypoint_score', 'keypoint_scores', 'scores')}
JUMPY = 1.5  # mean step over time by that over joints; real clips have .07 to .52


def recognises(content: Any) -> bool:
    if isinstance(content, Arrays):
        return True
    depth, item = first_item(content)
    return depth in (3, 4) and isinstance(item, int | float)


def read(content: Any, where: str, layout: str | None) -> Clip:
    content = content.by_name if isinstance(content, Arrays) else {'keypoint': _nested(content, where)}
    keypoint = next((content[name] for name in _NAMES['keypoint'] if name in content), None)
    score = next((content[name] for name in _NAMES['keypoint_score'] if name in content), None)
    if keypoint is None:
        if len(content) != 1:
            raise UserError(f'{where} lacks the array keypoint; found {shown(list(content))}.')
        keypoint = next(iter(content.values()))
    given = keypoint.shape
    if keypoint.ndim == 3:
        keypoint, score = keypoint[None], None if score is None else score[None]
    sizes = (2, 3, 4) if keypoint.ndim == 4 and keypoint.shape[2] == 33 else (2, 3)
    if keypoint.dtype.kind not in 'iuf' or keypoint.ndim != 4 or 0 in keypoint.shape or keypoint.shape[3] not in sizes:
        raise UserError(f'{where}: keypoint must be numbers of shape {_AXES}, found {keypoint.dtype} of {given}.')
    if score is not None and (score.dtype.kind not in 'iuf' or score.shape != keypoint.shape[:3]):
        raise UserError(
            f'{where}: keypoint_score must be a number for each joint, found {score.dtype} of '
            f'{score.shape[score.ndim - len(given) + 1 :]} beside '
            f'keypoint of {given}.'
        )
    if layout is None and keypoint.shape[2] == 25:
        raise UserError(
            f'{where}: an array of 25 joints may hold those of OpenPose or of Kinect. Say which: --layout body25 '
            '(pixels) or --layout ntu25 (metres); BODY_25B is --layout body25b.'
        )
    _require_axes(keypoint, where, layout)
    if keypoint.shape[1] > MOST_FRAMES:
        raise UserError(f'{where} has {keypoint.shape[1]:,} frames, and at most {MOST_FRAMES:,} are read: cut it.')
    num_joints, size = keypoint.shape[2:]
    if num_joints not in {len(names) for names in LAYOUTS.values()}:
        raise UserError(
            f'{where} has {num_joints} joints, a number of no known layout, if its shape {given} is {_AXES}. Reorder '
            'the axes, or leave out further joints.'
        )
    keypoint = float32(keypoint)
    if layout == 'ntu25' and size == 3:
        return Clip('array', _by_frame(keypoint), layout=layout, is_certain=True, is_3d=True)
    if size == 3 and num_joints == 33 and (keypoint[..., 2] < 0).any():  # z
        keypoint, size = keypoint[..., :2], 2
    if size == 4:
        keypoint, size = keypoint[..., [0, 1, 3]], 3
    if size == 3 and score is not None:
        raise UserError(f'{where}: keypoint has a third number, the score, and there is keypoint_score: leave one out.')
    if size == 2:
        score = (keypoint != 0).any(axis=3) if score is None else score
        keypoint = np.concatenate([keypoint, float32(score[..., None])], axis=3)
    elif not (np.isnan(keypoint[..., 2]) | ((keypoint[..., 2] > -0.5) & (keypoint[..., 2] <= 2))).all():
        raise UserError(
            f'{where}: the third number of 2D joints is a score between 0 and 1, found '
            f"{np.nanmin(keypoint[..., 2]):.6g} to {np.nanmax(keypoint[..., 2]):.6g}. 3D is read of Kinect's 25 "
            'joints, --layout ntu25.'
        )
    return Clip('array', _by_frame(keypoint), img_shape=_img_shape(content, where), is_certain=True)


def _by_frame(keypoint: np.ndarray) -> dict[int, list[Person]]:
    return {
        t: [Person(joints, str(m)) for m, joints in enumerate(persons)]
        for t, persons in enumerate(keypoint.swapaxes(0, 1))
    }


def _nested(content: Any, where: str) -> np.ndarray:
    """Nested lists of numbers as an array; null is NaN."""
    leaves = content
    while leaves and all(isinstance(item, list) for item in leaves):
        leaves = list(chain.from_iterable(leaves))
    if set(map(type, leaves)) <= {int, float, type(None)}:
        with contextlib.suppress(ValueError, OverflowError, TypeError):
            return np.array(content, np.float64)
    raise UserError(f'{where}: lists of numbers must have the shape {_AXES}, and all rows the same length.')


def _img_shape(content: dict[str, np.ndarray], where: str) -> tuple[int, int] | None:
    shape = content.get('img_shape')
    if shape is None:
        return None
    if shape.shape != (2,) or shape.dtype.kind not in 'iu' or shape.min() < 1 or shape.max() > LARGEST_COORDINATE:
        raise UserError(f'{where}: img_shape must be height and width in pixels, found {shown(shape.tolist())}.')
    return tuple(shape.tolist())


def _require_axes(keypoint: np.ndarray, where: str, layout: str | None) -> None:
    """Raises UserError if the axes of (M, T, V, C) are probably in another order."""
    persons, frames, _, size = keypoint.shape

    def refuse(what: str) -> None:
        raise UserError(
            f'{where}: {what}. An array of shape {keypoint.shape} is read as {_AXES}: reorder the axes with '
            'np.transpose.'
        )

    if persons > frames:
        refuse(f'more persons ({persons}) than frames ({frames}); probably the frames come first')
    if size == 2 and persons > 1:
        largest = np.nanmax(np.abs(keypoint), axis=(1, 2, 3), initial=0)
        if largest.max() > 2 and ((largest > 0) & (largest <= 1)).any():
            number = int(((largest > 0) & (largest <= 1)).argmax())
            refuse(f'person {number} has only numbers between 0 and 1, as scores')
    xy = keypoint[..., :2].astype(np.float64)
    over_time, over_joints = (
        np.nanmean(np.abs(np.diff(xy, axis=axis))) if xy.shape[axis] > 1 else 0 for axis in (1, 2)
    )
    if over_time > JUMPY * over_joints > 0:
        refuse('points are nearer to each other within a joint than within a frame; probably joints come before frames')
    if layout != 'ntu25' and (persons, size) == (2, 2) and frames > 1 and keypoint.shape[2] == 17:
        given, other = _fits(keypoint), _fits(keypoint.transpose(3, 1, 2, 0))
        if other[0] > given[0] + CLEARLY and other[1] > max(given[1], A_BODY):
            refuse('the joints form bodies only with x and y first; probably the axes are (2, frames, joints, persons)')


def _fits(keypoint: np.ndarray) -> np.ndarray:
    """The worst fit (2,) of the persons (M, T, 17, 2); see posture.fit."""
    joints = np.concatenate([keypoint, (keypoint != 0).any(axis=-1, keepdims=True)], axis=-1)
    return np.min([fit(person, 'coco17') or (0, 0) for person in joints], axis=0)
