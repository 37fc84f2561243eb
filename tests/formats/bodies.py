"""A walking body for the keypoint files of every source."""

import numpy as np

from lib.data.skeletons import LAYOUTS, convert

IMG_SHAPE = (720, 1280)
_BODY = [
    [0, 0], [5, -5], [-5, -5], [10, -2], [-10, -2], [25, 20], [-25, 20], [35, 50], [-35, 50], [38, 80], [-38, 80],
    [15, 90], [-15, 90], [17, 135], [-17, 135], [18, 180], [-18, 180],
]  # fmt: skip


def body(frames: int = 6, at: tuple[float, float] = (300, 210), score: float = 0.9) -> np.ndarray:
    """COCO joints (T, 17, 3) float64, x, y, score: 2 px per frame to the right with swinging wrists and ankles."""
    pose = np.array(_BODY, float) + at + 2 * np.arange(frames)[:, None, None] * (1, 0)
    pose[:, 9, 0] += 8 * np.sin(np.arange(frames) / 3)
    pose[:, 15:, 0] += 10 * np.sin(np.arange(frames) / 4)[:, None] * (1, -1)
    return np.concatenate([pose, np.full((frames, 17, 1), score)], axis=-1)


TWO = np.stack([body(at=(200, 210)), body(at=(600, 210))])


def in_layout(joints: np.ndarray, layout: str) -> np.ndarray:
    """Converts COCO joints (..., 17, 3) to another layout; joints missing in COCO are midpoints of neighbours."""
    joints_there = convert(joints, 'coco17', layout)
    middles = {'neck': (5, 6), 'mid_hip': (11, 12), 'root': (11, 12), 'head': (1, 2), 'belly': (5, 12)}
    for i, name in enumerate(LAYOUTS[layout]):
        if name in middles and name not in LAYOUTS['coco17']:
            joints_there[..., i, :] = joints[..., middles[name], :].mean(axis=-2)
    return joints_there


def frames(joints: np.ndarray, person) -> list[list]:
    """person(m, pose) for each person in each frame."""
    return [[person(m, joints[m, t]) for m in range(len(joints))] for t in range(joints.shape[1])]


def mmpose(m: int, pose: np.ndarray) -> dict:
    return {'keypoints': pose[:, :2].tolist(), 'keypoint_scores': pose[:, 2].tolist(), 'track_id': m}


def numbered(joints: np.ndarray, start: int = 0) -> list[dict]:
    """MMPose's results of a video."""
    return [{'frame_id': t, 'instances': people} for t, people in enumerate(frames(joints, mmpose), start)]
