"""NTU RGB+D's raw .skeleton text: 25 Kinect joints of each body in metres.

    number of frames; per frame the number of bodies; per body an id, 9 numbers, 25 and per joint x, y, z, 9 numbers

A name such as S001C002P003R002A013 contains setup, camera, person, repetition and action (label + 1).
"""

import re
from typing import Any

import numpy as np

from lib.errors import UserError
from lib.formats.clip import Clip, Person

NAME, FILES = 'NTU RGB+D', '.skeleton, or a folder of them'
ID = re.compile(r'S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})')
_BODY, _JOINTS, _JOINT = 10, 25, 12  # numbers per body, joints, numbers per joint
# Persons in the training splits of NTU60 (up to 40) and NTU120.
TRAIN_PERSONS = frozenset(
    (1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38, 45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78)
) | {*range(80, 87), 89, *range(91, 96), 97, 98, 100, 103}


def recognises(content: Any) -> bool:
    if not isinstance(content, str):
        return False
    lines = [line.split() for line in content.split('\n', 4)[:3]]
    if [len(line) for line in lines[:2]] != [1, 1] or not all(line[0].isdecimal() for line in lines[:2]):
        return False
    return lines[1] == ['0'] or (len(lines) > 2 and len(lines[2]) in (_BODY, 0))


def read(content: str, where: str) -> Clip:
    words, at = content.split(), 0

    def take(count: int) -> list[str]:
        nonlocal at
        at += count
        if at > len(words):
            raise UserError(f'{where} ends within a frame: it is truncated. Copy it again.')
        return words[at - count : at]

    def take_count() -> int:
        (word,) = take(1)
        if not word.isdecimal():
            raise UserError(f'{where}: number {at} must be a count, found {word[:20]!r}: the file is damaged.')
        return int(word)

    frames: dict[int, list[Person]] = {}
    for t in range(take_count()):
        frames[t] = []
        for _ in range(take_count()):
            body = take(_BODY)[0]
            if take_count() != _JOINTS:
                raise UserError(f'{where}: frame {t} has a body without {_JOINTS} joints.')
            numbers = take(_JOINTS * _JOINT)
            try:
                joints = np.array(numbers, np.float64).reshape(_JOINTS, _JOINT)[:, :3]
            except ValueError:
                raise UserError(f'{where}: frame {t} has a joint that is not numeric.') from None
            frames[t].append(Person(joints.astype(np.float32), body))
    return Clip(NAME, frames, layout='ntu25', label=label_of(where), is_certain=True, is_3d=True, by_motion=True)


def label_of(name: str) -> int:
    """The label in a file name of NTU, otherwise 0."""
    match = re.search(rf'{ID.pattern}[^/]*$', name)
    return max(int(match[5]) - 1, 0) if match else 0


def splits_of(names: list[str]) -> dict[str, list[str]]:
    """Splits of NTU60 (xsub, xview), or of NTU120 (xsub, xset) if clips have its setups or actions."""
    parts = {name: [int(number) for number in ID.match(name).groups()] for name in names}
    is_120 = any(setup > 17 or action > 60 for setup, _, _, _, action in parts.values())
    rules = {'xsub': lambda setup, camera, person, *_: person in TRAIN_PERSONS}
    rules |= (
        {'xset': lambda setup, *_: setup % 2 == 0} if is_120 else {'xview': lambda setup, camera, *_: camera in (2, 3)}
    )
    return {
        f'{rule}_{part}': [name for name in names if is_train(*parts[name]) == (part == 'train')]
        for rule, is_train in rules.items()
        for part in ('train', 'val')
    }
