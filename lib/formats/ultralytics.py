"""Ultralytics YOLO pose: JSON of results[0].to_json(), a list of these, or a folder of label files (save_txt).

    [{'name': 'person', 'box': {...}, 'keypoints': {'x': [...], 'y': [...], 'visible': [...]}, 'track_id': 1}]
    0 cx cy w h x y score x y score ... [confidence] [track]       a line per person, normalised; score may be missing

Boxes without joints are skipped. Uncertain joints are at (0, 0) and keep their score: they count as missing.
"""

import json
import math
from typing import Any

import numpy as np

from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, shown
from lib.formats.clip import Clip, Person
from lib.formats.values import entries, first_item, has, identity, mapping, numbers

NAME, FILES = 'Ultralytics', 'JSON, or a folder of label files'
_BEFORE = 5  # class and box
_BOX = range(_BEFORE, _BEFORE + 3)  # numbers of a line without joints: also confidence and track
_COUNTS = sorted({len(names) for names in LAYOUTS.values()}, key=lambda count: (count != 17, count))


def recognises(content: Any) -> bool:
    if isinstance(content, str):
        words = content.lstrip().split('\n', 1)[0].split()
        is_known = len(words) >= _BEFORE + 2 * 17 or len(words) in _BOX
        return is_known and all(map(_is_number, words)) and float(words[0]).is_integer()
    depth, item = first_item(content)
    if depth == 1 and isinstance(item, str):  # a list of results of to_json()
        return item.lstrip().startswith('[')
    return depth in (1, 2) and has(item, 'box') and (not item.get('keypoints') or has(item['keypoints'], 'x', 'y'))


def read(content: Any, where: str) -> Clip:
    if isinstance(content, str):
        return Clip(NAME, {0: _lines(content, where)})
    depth, first = first_item(content)
    if isinstance(first, str):
        content = [_parsed(text, f'{where}: frame {i}') for i, text in enumerate(content)]
    elif depth == 1:
        content = [content]
    return Clip(NAME, {i: _people(frame, f'{where}: frame {i}') for i, frame in enumerate(content)})


def _parsed(text: Any, where: str) -> Any:
    try:
        return json.loads(text) if text else []
    except (ValueError, TypeError, RecursionError):
        raise UserError(f'{where} must be a result of to_json(), found {shown(text)}.') from None


def _people(people: Any, where: str) -> list[Person]:
    persons = []
    for place, person in entries(people, where, 'person'):
        if not person.get('keypoints'):  # not a person, or a model without poses
            continue
        keypoints = mapping(person['keypoints'], f'{place}: keypoints')
        columns = [numbers(keypoints.get(key), f'{place}: keypoints {key}') for key in ('x', 'y')]
        visible = keypoints.get('visible')
        score = np.ones_like(columns[0]) if visible is None else numbers(visible, f'{place}: keypoints visible')
        if columns[0].ndim != 1 or not columns[0].shape == columns[1].shape == score.shape:
            raise UserError(f'{place}: keypoints must have one x, y and visible per joint.')
        persons.append(Person(np.stack([*columns, score], axis=1), identity(person.get('track_id'))))
    return persons


def _lines(text: str, where: str) -> list[Person]:
    persons = []
    for i, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not all(map(_is_number, words)):
            raise UserError(f'{where}: line {i} must be numbers, found {shown(line)}.')
        if not words or len(words) in _BOX:
            continue
        values = np.array(words[_BEFORE:], np.float32)
        fits = ((count, size) for count in _COUNTS for size in (3, 2) if 0 <= len(values) - count * size <= 2)
        count, size = next(fits, (0, 0))
        if not count:
            raise UserError(
                f'{where}: line {i} has {len(words)} numbers; expected class, box and the joints of a known layout.'
            )
        joints = values[: count * size].reshape(count, size)
        if size == 2:
            joints = np.concatenate([joints, np.ones((count, 1), np.float32)], axis=1)
        after = words[_BEFORE + count * size :]
        track = after[-1] if after and float(after[-1]).is_integer() and float(after[-1]) >= 1 else None
        persons.append(Person(joints, identity(track and float(track))))
    return persons


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
