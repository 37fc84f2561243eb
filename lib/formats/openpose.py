"""OpenPose: a file per frame, {'people': [{'pose_keypoints_2d': [x, y, score, ...], 'person_id': [3]}]}.

AlphaPose writes this form (--format open), or its predecessor's (cmu), as one file by image: {'0.jpg': {'people': []}}.
"""

from typing import Any

from lib.errors import UserError, shown, shown_text
from lib.formats.clip import Clip, Person, number_frames
from lib.formats.values import entries, identity, triples

NAME, FILES = 'OpenPose', 'JSON, one file per frame'
_KEYS = 'pose_keypoints_2d', 'pose_keypoints', 'joints'


def recognises(content: Any) -> bool:
    return _is_frame(content) or (isinstance(content, dict) and bool(content) and all(map(_is_frame, content.values())))


def read(content: Any, where: str) -> Clip:
    if _is_frame(content):
        return Clip(NAME, {0: _people(content, where)})
    by_image = {name: _people(frame, f'{where}: image {shown_text(name)}') for name, frame in content.items()}
    return number_frames(Clip(f'{NAME} by AlphaPose', {}), by_image, where)


def _is_frame(content: Any) -> bool:
    return isinstance(content, dict) and bool(content.keys() & {'people', 'bodies'})


def _people(content: dict[str, Any], where: str) -> list[Person]:
    persons = []
    for place, person in entries(content['people' if 'people' in content else 'bodies'], where, 'person'):
        key = next((key for key in _KEYS if key in person), None)
        if key is None:
            raise UserError(f'{place} lacks pose_keypoints_2d; found the keys {shown(list(person))}.')
        if person[key] != []:  # empty if only a face or a hand was found
            joints = triples(person[key], f'{place}: {key}')
            persons.append(Person(joints, identity(person.get('person_id', person.get('idx')))))
    return persons
