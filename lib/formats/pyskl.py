"""Pickles: PYSKL's and mmaction2's sets, a single annotation of theirs, or a list of them."""

from pathlib import Path
from typing import Any

import numpy as np

from lib.data.pickles import check_annotations, check_content, listed_annotations
from lib.data.skeletons import convert
from lib.errors import UserError
from lib.formats.clip import require_joints
from lib.formats.posture import MOST_POSES, better_layouts

NAME, FILES = 'PYSKL', '.pkl'


def read(data: Any, path: Path, layout: str | None) -> list[dict[str, Any]]:
    """The annotations of a pickle, their joints in the order that models take if `layout` names another one."""
    if (listed := listed_annotations(data)) is not None:
        listed = [_completed(item, path, i if len(listed) > 1 else None) for i, item in enumerate(listed)]
        annotations = check_annotations(listed, path)
    else:
        annotations = check_content(data, path)['annotations']
    if layout is None:
        _require_posture(annotations, path)
        return annotations
    return [_in_layout(annotation, layout, path) for annotation in annotations]


def _completed(annotation: Any, path: Path, number: int | None) -> Any:
    """An annotation with what only sets need: a name, a label."""
    if not isinstance(annotation, dict):
        return annotation
    added = {'frame_dir': path.stem if number is None else f'{path.stem}_{number}', 'label': 0}
    if isinstance(keypoint := annotation.get('keypoint'), np.ndarray) and keypoint.ndim == 4:
        added['total_frames'] = keypoint.shape[1]
    return added | annotation


def _require_posture(annotations: list[dict[str, Any]], path: Path) -> None:
    """Raises UserError if 2D joints form a body only in another layout than that of their number."""
    layout = {17: 'coco17', 25: 'ntu25'}.get(annotations[0]['keypoint'].shape[2])
    if layout is None or annotations[0]['keypoint'].shape[3] == 3:
        return
    some = annotations[:: max(1, len(annotations) // 50)]
    poses = np.concatenate(
        [_with_score(a)[:, :: max(1, a['total_frames'] // 10)].reshape(-1, *_shape(a)) for a in some]
    )
    if better := better_layouts(poses[:: max(1, len(poses) // MOST_POSES)], layout):
        raise UserError(
            f'{path} has {poses.shape[1]} joints, as {layout}, but they form a body only as {" or ".join(better)}. '
            f'Name it, --layout {better[0]}, or convert the pickle: `python -m lib.tools.make_pickle {path} --layout '
            f'{better[0]} --out NEW.pkl`.'
        )


def _shape(annotation: dict[str, Any]) -> tuple[int, int]:
    return annotation['keypoint'].shape[2], 3


def _with_score(annotation: dict[str, Any]) -> np.ndarray:
    keypoint, score = annotation['keypoint'], annotation.get('keypoint_score')
    score = (keypoint != 0).any(axis=3) if score is None else score
    return np.concatenate([keypoint, score[..., None].astype(keypoint.dtype)], axis=3)


def _in_layout(annotation: dict[str, Any], layout: str, path: Path) -> dict[str, Any]:
    target = 'coco17' if annotation['keypoint'].shape[3] == 2 else 'ntu25'
    require_joints(annotation['keypoint'].shape[2], layout, path)
    if layout == target:
        return annotation
    if target == 'ntu25':
        raise UserError(f'{path}: 3D joints must be those of Kinect (ntu25), found {layout}.')
    joints = convert(_with_score(annotation), layout, target)
    return annotation | {'keypoint': joints[..., :2], 'keypoint_score': joints[..., 2]}
