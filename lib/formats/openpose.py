"""OpenPose: a file for each frame, {'people': [{'pose_keypoints_2d': [x, y, score, ...], 'person_id': [3]}]}.

AlphaPose writes this form (--format open), or its predecessor's (cmu), as one file by image: {'0.jpg': {'people': []}}.
"""

from typing import Any

from lib.errors import UserError, shown, shown_text
from lib.formats.clip import Clip, Person
from lib.formats.frame_numbers import frame_numbers
from lib.formats.values import identity, mapping, sequence, triples

NAME, FILES = 'OpenPose', 'JSON, a file for each frame'
_KEYS = 'pose_keypoints_2d', 'pose_keypoints', 'joints'


def recognises(content: Any) -> bool:
    return _is_frame(content) or (isinstance(content, dict) and bool(content) and all(map(_is_frame, content.values())))


def read(content: Any, where: str) -> Clip:
    if _is_frame(content):
        return Clip(NAME, {0: _people(content, where)})
    numbers, note = frame_numbers(content, where)
    frames = {numbers[name]: _people(frame, f'{where}: image {shown_text(name)}') for name, frame in content.items()}
    return Clip(f'{NAME} by AlphaPose', frames, note=note)


def _is_frame(content: Any) -> bool:
    return isinstance(content, dict) and bool(content.keys() & {'people', 'bodies'})


def _people(content: dict[str, Any], where: str) -> list[Person]:
    persons = []
    key = 'people' if 'people' in content else 'bodies'
    for i, person in enumerate(sequence(content[key], f'{where}: {key}')):
        place = f'{where}: person {i}'
        keys = [key for key in _KEYS if key in mapping(person, place)]
        if not keys:
            raise UserError(f'{place} lacks pose_keypoints_2d; found the keys {shown(list(person))}.')
        if person[keys[0]] != []:  # only a face or a hand was found
            joints = triples(person[keys[0]], f'{place}: {keys[0]}')
            persons.append(Person(joints, identity(person.get('person_id', person.get('idx')))))
    return persons
