"""Checks whether joints form a body in a layout, for layouts guessed from the number of joints."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.data.skeletons import COCO17, LAYOUTS, convert
from lib.errors import UserError

CLEARLY = 0.1  # margin between two fits; in 450 clips of real motion the right layout wins by .14 to .55
_A_BODY = 0.58  # minimum fit of a body, ignoring direction: real bodies have .65 to .8, random joints .3 to .5
_MOST_POSES = 500  # evenly spaced
_NOSE, _HIPS, _ANKLES = [0], [11, 12], [15, 16]
_LEFT, _RIGHT = ((5, 7), (7, 9), (11, 13), (13, 15)), ((6, 8), (8, 10), (12, 14), (14, 16))


def fit(joints: np.ndarray, layout: str) -> tuple[float, float] | None:
    """Fit of poses (P, V, 3), x, y and score in pixels, to a layout, from 0 to 1; None with too few joints.

    The first number is the mean of three figures: the share of poses with the nose above the hips above the ankles; the
    length ratio of left and right limbs; and the shortness of limbs, since a wrong order connects distant joints. The
    second number is the mean of the last two, which do not depend on the direction of up.
    """
    joints = joints[:: max(1, len(joints) // _MOST_POSES)].astype(np.float64)
    joints = np.where(joints[..., 2:] > 0, joints, np.nan)
    points = convert(joints, layout, 'coco17')
    if layout == 'ntu25':
        points[:, _NOSE] = joints[:, [LAYOUTS[layout].index('head')]]
    points = np.where(points[..., 2:] > 0, points[..., :2], np.nan)
    with np.errstate(invalid='ignore', divide='ignore'):
        nose, hips, ankles = (points[:, part, 1].mean(axis=1) for part in (_NOSE, _HIPS, _ANKLES))
        standing = np.where(np.isfinite(nose + hips + ankles), (nose < hips) & (hips < ankles), np.nan)
        left, right = _lengths(points, _LEFT), _lengths(points, _RIGHT)
        ratio = np.minimum(left, right) / np.maximum(left, right)
        size = np.linalg.norm(np.fmax.reduce(joints, axis=1) - np.fmin.reduce(joints, axis=1), axis=1)
        shortness = 1 - 2 * _lengths(points, COCO17.limbs) / size[:, None]
    figures = [values[np.isfinite(values)] for values in (standing, ratio, shortness)]
    if not all(map(len, figures[1:])):
        return None
    means = [float(values.mean()) for values in figures if len(values)]
    return sum(means) / len(means), sum(means[-2:]) / 2


def _lengths(points: np.ndarray, limbs: Sequence[tuple[int, int]]) -> np.ndarray:
    start, end = np.array(limbs).T
    return np.linalg.norm(points[:, start] - points[:, end], axis=-1)


def is_clearly_better(other: tuple[float, float], given: tuple[float, float]) -> bool:
    """Whether a fit is that of a body and clearly better than another one.

    A poor fit alone is no evidence: people fall and lie down.
    """
    return other[0] > given[0] + CLEARLY and other[1] > max(given[1], _A_BODY)


def require_posture(joints: np.ndarray, layout: str, path: Path, remedy: str) -> None:
    """Raises UserError if another layout with as many joints fits poses (P, V, 3) clearly better.

    remedy: what to do, with {better} for that layout, {layout} and {path}.
    """
    others = [name for name, names in LAYOUTS.items() if len(names) == len(LAYOUTS[layout]) and name != layout]
    given = fit(joints, layout)
    fits = {name: found for name in others if given and (found := fit(joints, name))}
    better = [name for name, found in fits.items() if is_clearly_better(found, given)]
    if better:
        better.sort(key=fits.get, reverse=True)
        raise UserError(
            f'{path} has {joints.shape[1]} joints like {layout}, but they form a body only in {" or ".join(better)}. '
            + remedy.format(better=better[0], layout=layout, path=path)
        )
