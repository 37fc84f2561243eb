"""MMPose: predictions for a video or an image as its inferencer saves them, and dumps of what it yields.

{'meta_info': {...}, 'instance_info': [{'frame_id', 'instances': [instance]}]}    a video, or only the list
[instance]                                                                        an image
[{'predictions': [[instance]]}], or only the predictions: [[instance]]            json.dump of the results, an inner
                                                                                  list per frame of a batch
instance: {'keypoints': [[x, y]], 'keypoint_scores': [score], 'track_id'}; MMPose 0.x: {'keypoints': [[x, y, score]]}
"""

from typing import Any

import numpy as np

from lib.errors import UserError, shown
from lib.formats.clip import Clip, Person
from lib.formats.values import entries, first_item, has, identity, numbers, sequence, whole_number

NAME, FILES = 'MMPose', 'JSON'


def recognises(content: Any) -> bool:
    if has(content, 'instance_info') or has(content, 'predictions') or has(content, 'instances'):
        return True
    depth, item = first_item(content)
    if depth == 1 and (has(item, 'instances') or has(item, 'predictions')):
        return True
    if depth not in (1, 2, 3) or not has(item, 'keypoints'):
        return False
    return 'keypoint_scores' in item or ('image_id' not in item and first_item(item['keypoints'])[0] == 2)


def read(content: Any, where: str) -> Clip:
    names = None
    if isinstance(content, dict):
        names = _joint_names(content.get('meta_info'))
        content = content.get('instance_info', [content])
    depth, first = first_item(content)
    if has(first, 'instances'):
        return Clip(NAME, _numbered(content, where), joint_names=names)
    if has(first, 'predictions'):
        batches = [entry.get('predictions') for _, entry in entries(content, where, 'entry')]
    else:
        batches = [content] if depth == 1 else sequence(content, where)
    frames = []  # lists of instances
    for batch in batches:
        is_nested = isinstance(batch, list) and any(isinstance(frame, list) for frame in batch)
        frames += batch if is_nested else [batch]
    return Clip(NAME, {i: _persons(frame, f'{where}: frame {i}') for i, frame in enumerate(frames)}, joint_names=names)


def _numbered(content: Any, where: str) -> dict[int, list[Person]]:
    frames: dict[int, list[Person]] = {}
    for place, entry in entries(content, where, 'entry'):
        number = whole_number(entry, 'frame_id')
        if number is None or number in frames:
            raise UserError(
                f'{place}: frame_id must be a whole number, different in each frame, found '
                f'{shown(entry.get("frame_id"))}.'
            )
        frames[number] = _persons(entry.get('instances'), f'{where}: frame {number}')
    return frames


def _persons(instances: Any, where: str) -> list[Person]:
    persons = []
    for place, instance in entries(instances, where, 'person'):
        joints = numbers(instance.get('keypoints'), f'{place}: keypoints')
        if 'keypoint_scores' in instance or joints.shape[1:] != (3,):
            score = numbers(instance.get('keypoint_scores'), f'{place}: keypoint_scores')
            if joints.shape[1:] != (2,) or score.shape != joints.shape[:1]:
                raise UserError(
                    f'{place}: keypoints must be [x, y] of each joint and keypoint_scores one number per joint, found '
                    f'shapes {joints.shape} and {score.shape}.'
                )
            joints = np.concatenate([joints, score[:, None]], axis=1)
        persons.append(Person(joints, identity(instance.get('track_id'))))
    return persons


def _joint_names(meta_info: Any) -> list[Any] | None:
    """keypoint_id2name: {'0': 'nose'}, or keypoint_names: ['nose']."""
    names = meta_info.get('keypoint_id2name', meta_info.get('keypoint_names')) if isinstance(meta_info, dict) else None
    if isinstance(names, dict) and all(str(number).isdecimal() for number in names):
        return [names[number] for number in sorted(names, key=int)]
    return names if isinstance(names, list) else None
