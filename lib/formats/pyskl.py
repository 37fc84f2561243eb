"""Pickles: datasets of PYSKL and mmaction2, single annotations, or lists of annotations."""

from pathlib import Path
from typing import Any

import numpy as np

from lib.data.pickles import check_annotations, check_content, listed_annotations, refuse_kinetics, score_of
from lib.data.skeletons import convert
from lib.errors import UserError
from lib.formats.clip import require_joints
from lib.formats.posture import require_posture

NAME, FILES = 'PYSKL', '.pkl'


def read(data: Any, path: Path, layout: str | None) -> list[dict[str, Any]]:
    """The annotations in a pickle, their joints converted to the models' order if `layout` is another one."""
    refuse_kinetics(data, path)
    if (listed := listed_annotations(data)) is not None:
        names = [f'{path.stem}_{i}' for i in range(len(listed))] if len(listed) > 1 else [path.stem]
        listed = [_completed(item, name) for item, name in zip(listed, names, strict=True)]
        annotations = check_annotations(listed, path)
    else:
        annotations = check_content(data, path)['annotations']
    if layout is None:
        _require_posture(annotations, path)
        return annotations
    return [_in_layout(annotation, layout, path) for annotation in annotations]


def _completed(annotation: Any, name: str) -> Any:
    """An annotation with defaults for keys that only datasets need."""
    if not isinstance(annotation, dict):
        return annotation
    added = {'frame_dir': name, 'label': 0}
    if isinstance(keypoint := annotation.get('keypoint'), np.ndarray) and keypoint.ndim == 4:
        added['total_frames'] = keypoint.shape[1]
    return added | annotation


def _require_posture(annotations: list[dict[str, Any]], path: Path) -> None:
    """Raises UserError if 2D joints form a body only in another layout with as many joints."""
    num_joints, size = annotations[0]['keypoint'].shape[2:]
    layout = {17: 'coco17', 25: 'ntu25'}.get(num_joints)
    if layout is None or size == 3:
        return
    some = annotations[:: max(1, len(annotations) // 50)]
    poses = [_with_score(a)[:, :: max(1, a['total_frames'] // 10)].reshape(-1, num_joints, 3) for a in some]
    remedy = (
        'Add --layout {better}, or convert the pickle: '
        '`python -m lib.tools.make_pickle {path} --layout {better} --out NEW.pkl`.'
    )
    require_posture(np.concatenate(poses), layout, path, remedy)


def _with_score(annotation: dict[str, Any]) -> np.ndarray:
    keypoint = annotation['keypoint']
    return np.concatenate([keypoint, score_of(annotation)[..., None].astype(keypoint.dtype)], axis=3)


def _in_layout(annotation: dict[str, Any], layout: str, path: Path) -> dict[str, Any]:
    target = 'coco17' if annotation['keypoint'].shape[3] == 2 else 'ntu25'
    require_joints(annotation['keypoint'].shape[2], layout, path)
    if layout == target:
        return annotation
    if target == 'ntu25':
        raise UserError(f'{path}: 3D joints must be those of Kinect (ntu25), found {layout}.')
    joints = convert(_with_score(annotation), layout, target)
    return annotation | {'keypoint': joints[..., :2], 'keypoint_score': joints[..., 2]}
