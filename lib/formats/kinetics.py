"""Kinetics-skeleton, the set of ST-GCN: {'data': [{'frame_index': 1, 'skeleton': [{'pose': [x, y, ...], 'score'}]}]}.

OpenPose's 18 joints, in shares of the image; label_index is the label.
"""

from typing import Any

import numpy as np

from lib.errors import UserError
from lib.formats.clip import Clip, Person
from lib.formats.values import has, mapping, numbers, sequence, whole_number

NAME, FILES = 'Kinetics-skeleton', 'JSON'


def recognises(content: Any) -> bool:
    if not has(content, 'data') or not isinstance(content['data'], list):
        return False
    return has(content, 'label_index') or any(has(frame, 'skeleton') for frame in content['data'][:1])


def read(content: Any, where: str) -> Clip:
    frames: dict[int, list[Person]] = {}
    for i, frame in enumerate(content['data']):
        place = f'{where}: frame {i}'
        number = whole_number(mapping(frame, place), 'frame_index')
        persons = []
        for j, skeleton in enumerate(sequence(frame.get('skeleton'), place)):
            pose = numbers(mapping(skeleton, f'{place}: person {j}').get('pose'), f'{place}: person {j}: pose')
            score = numbers(skeleton.get('score'), f'{place}: person {j}: score')
            if pose.shape != (2 * len(score),) or score.ndim != 1:
                raise UserError(f'{place}: person {j} must have x and y in pose for each number in score.')
            persons.append(Person(np.concatenate([pose.reshape(-1, 2), score[:, None]], axis=1)))
        frames[i if number is None else number] = persons
    return Clip(NAME, frames, layout='openpose18', label=min(whole_number(content, 'label_index') or 0, 2**31 - 1))
