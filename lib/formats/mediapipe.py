"""MediaPipe Pose (BlazePose) as JSON: the landmarks of each frame, as users' own loops collect them.

    [[{'x', 'y', 'z', 'visibility'} * 33], ...]    one item per frame: landmarks, a list of persons, null or []

Coordinates are normalised; z is ignored. Joint names (TensorFlow.js) are used if present.
"""

import math
from typing import Any

import numpy as np

from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, shown
from lib.formats.clip import Clip, Person
from lib.formats.values import entries, first_item, float32, has, sequence

NAME, FILES = 'MediaPipe', 'JSON'
NUM_LANDMARKS = len(LAYOUTS['blazepose33'])
_SCORES = 'visibility', 'score', 'presence'


def recognises(content: Any) -> bool:
    depth, item = first_item(content)
    return depth >= 1 and has(item, 'x', 'y')


def read(content: Any, where: str) -> Clip:
    if first_item(content)[0] == 1:  # an image of one person
        content = [content]
    frames, names = {}, None
    for i, frame in enumerate(sequence(content, where)):
        place = f'{where}: frame {i}'
        people = [frame] if first_item(frame)[0] == 1 else sequence(frame, place)
        found = [_landmarks(person, f'{place}: person {j}') for j, person in enumerate(people) if person]
        frames[i] = [Person(joints) for joints, _ in found]
        names = names or next((names for _, names in found if names), None)
    return of_landmarks(frames, names)


def _landmarks(landmarks: Any, where: str) -> tuple[np.ndarray, list[str] | None]:
    rows, names = [], []
    for place, point in entries(landmarks, where, 'joint'):
        score = next((point[key] for key in _SCORES if point.get(key) is not None), 1)
        rows.append([point.get('x'), point.get('y'), score])
        names.append(str(point.get('name', '')))
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in rows[-1]):
            raise UserError(f'{place} must have x and y, found {shown(point)}.')
    joints = float32(np.array([[_real(value) for value in row] for row in rows]))
    return joints, names if all(names) else None


def _real(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def of_landmarks(frames: dict[int, list[Person]], names: list[str] | None, note: str = '') -> Clip:
    """A clip in MediaPipe's layout if it has 33 joints."""
    counts = {len(person.joints) for persons in frames.values() for person in persons}
    layout = 'blazepose33' if counts == {NUM_LANDMARKS} else None
    return Clip(NAME, frames, layout=layout, joint_names=names, note=note)
