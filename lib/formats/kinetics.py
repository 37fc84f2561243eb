"""Kinetics-skeleton, the dataset of ST-GCN.

{'data': [{'frame_index': 1, 'skeleton': [{'pose': [x, y, ...], 'score'}]}], 'label_index'}

OpenPose's 18 joints in normalised coordinates; label_index is the label.
"""

from typing import Any

import numpy as np

from lib.errors import UserError
from lib.formats.clip import Clip, Person
from lib.formats.values import entries, has, numbers, whole_number

NAME, FILES = 'Kinetics-skeleton', 'JSON'


def recognises(content: Any) -> bool:
    if not has(content, 'data') or not isinstance(content['data'], list):
        return False
    return has(content, 'label_index') or any(has(frame, 'skeleton') for frame in content['data'][:1])


def read(content: Any, where: str) -> Clip:
    frames: dict[int, list[Person]] = {}
    for i, (frame_place, frame) in enumerate(entries(content['data'], where, 'frame')):
        persons = []
        for place, skeleton in entries(frame.get('skeleton'), frame_place, 'person'):
            pose = numbers(skeleton.get('pose'), f'{place}: pose')
            score = numbers(skeleton.get('score'), f'{place}: score')
            if pose.shape != (2 * len(score),) or score.ndim != 1:
                raise UserError(f'{place} must have x and y in pose for each number in score.')
            persons.append(Person(np.concatenate([pose.reshape(-1, 2), score[:, None]], axis=1)))
        number = whole_number(frame, 'frame_index')
        frames[i if number is None else number] = persons
    return Clip(NAME, frames, layout='openpose18', label=min(whole_number(content, 'label_index') or 0, 2**31 - 1))
