"""MediaPipe Pose (BlazePose): landmarks of each frame as JSON or CSV, which users write in their own loops.

    [[{'x', 'y', 'z', 'visibility'} * 33], ...]           frames; null or [] without a person; lists of persons
    Frame,LandmarkID,X,Y[,Z,Visibility]                   CSV with a row for each joint
    frame,x0,y0,z0,v0,x1,...  or  nose_x,nose_y,...       CSV with a row for each frame

Coordinates are shares of the image. z is not read.
"""

import csv
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, shown
from lib.formats.clip import Clip, Person
from lib.formats.frame_numbers import frame_numbers
from lib.formats.values import first_item, float32, has, identity, mapping, sequence

NAME, FILES = 'MediaPipe', 'JSON or CSV'
_FRAME = (
    'frame',
    'frame_id',
    'frame_index',
    'frame_number',
    'frameid',
    'frameindex',
    'framenumber',
    'frameno',
    'frameidx',
)
_IMAGE = 'image', 'imageid', 'imagename', 'filename', 'file', 'framename'
_TIME = 'time', 'timestamp', 'timestampms', 'timems', 'seconds', 'milliseconds'
_JOINT = (
    'landmarkid',
    'landmark',
    'landmarkindex',
    'landmarkname',
    'joint',
    'jointid',
    'keypoint',
    'id',
    'index',
    'idx',
    'name',
)
_PERSON = 'person', 'personid', 'pose', 'poseid', 'poseindex', 'track', 'trackid'
_SCORE = 'visibility', 'v', 'score', 'presence', 'confidence'
_LAYOUT = LAYOUTS['blazepose33']


def recognises(content: Any) -> bool:
    if isinstance(content, str):
        return _columns(next(_rows(content), [])) is not None
    depth, item = first_item(content)
    return depth >= 1 and has(item, 'x', 'y')


def read(content: Any, where: str) -> Clip:
    if isinstance(content, str):
        return _read_csv(content, where)
    if first_item(content)[0] == 1:  # an image with a person
        content = [content]
    frames, names = {}, None
    for i, frame in enumerate(sequence(content, where)):
        place = f'{where}: frame {i}'
        people = [frame] if first_item(frame)[0] == 1 else sequence(frame, place)
        found = [_landmarks(person, f'{place}: person {j}') for j, person in enumerate(people) if person]
        frames[i] = [Person(joints) for joints, _ in found]
        names = names or next((names for _, names in found if names), None)
    return _clip(frames, names)


def _landmarks(landmarks: Any, where: str) -> tuple[np.ndarray, list[str] | None]:
    rows, names = [], []
    for i, landmark in enumerate(sequence(landmarks, where)):
        point = mapping(landmark, f'{where}: joint {i}')
        score = next((point[key] for key in _SCORE if point.get(key) is not None), 1)
        rows.append([point.get('x'), point.get('y'), score])
        names.append(str(point.get('name', '')))
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in rows[-1]):
            raise UserError(f'{where}: joint {i} must have x and y, found {shown(landmark)}.')
    with np.errstate(over='ignore'):
        joints = np.array([[_real(value) for value in row] for row in rows])
    return float32(joints), names if all(names) else None


def _real(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _clip(frames: dict[int, list[Person]], names: list[str] | None, note: str = '') -> Clip:
    counts = {len(person.joints) for persons in frames.values() for person in persons}
    is_blazepose = counts == {len(_LAYOUT)}
    return Clip(NAME, frames, layout='blazepose33' if is_blazepose else None, joint_names=names, note=note)


# --- CSV -----------------------------------------------------------------------------------------------------------


def _rows(text: str) -> Iterable[list[str]]:
    header = text.split('\n', 1)[0]
    delimiter = max(',;\t', key=header.count)
    try:
        yield from csv.reader(text.splitlines(), delimiter=delimiter)
    except csv.Error:
        return


def _columns(header: list[str]) -> tuple[dict[str, int], dict[str, dict[str, int]]] | None:
    """Columns by meaning, and those of each joint if a row is a frame. None if it is no table of joints."""
    plain = [re.sub(r'[^a-z0-9]', '', name.lower()) for name in header]

    def find(names: tuple[str, ...]) -> int | None:
        return next((plain.index(name) for name in names if name in plain), None)

    meaning = {
        'frame': find(_FRAME),
        'image': find(_IMAGE),
        'time': find(_TIME),
        'joint': find(_JOINT),
        'person': find(_PERSON),
    }
    if 'x' in plain and 'y' in plain and meaning['joint'] is not None:
        meaning |= {'x': plain.index('x'), 'y': plain.index('y'), 'score': find(_SCORE)}
        return {key: column for key, column in meaning.items() if column is not None}, {}
    joints: dict[str, dict[str, int]] = {}
    for i, name in enumerate(header):
        match = re.fullmatch(r'(x|y|v|visibility)_?(\d+)|(.+?)[_. ](x|y|v|visibility|score)', name.strip().lower())
        if match:
            axis = match[1] or match[4]
            joint = re.sub(r'^(landmark|joint|keypoint|kp|pose)[_. ]?(?=\d)', '', match[2] or match[3])
            joints.setdefault(joint, {})[axis if axis in 'xy' else 'score'] = i
    joints = {joint: found for joint, found in joints.items() if {'x', 'y'} <= found.keys()}
    return ({key: column for key, column in meaning.items() if column is not None}, joints) if joints else None


def _read_csv(text: str, where: str) -> Clip:
    header, *rows = _rows(text)
    columns, joints = _columns(header)
    listed = list(joints) or [row[columns['joint']] for row in rows if len(row) > columns['joint']]
    order, count, names = _joint_order(listed, where)
    values: dict[tuple[Any, str], np.ndarray] = {}
    frame, seen = 0, set()  # of tables without numbers: a frame begins when a joint recurs
    for i, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < len(header):
            raise UserError(f'{where}: line {i} has {len(row)} cells, the first line {len(header)}.')
        person = row[columns['person']].strip() if 'person' in columns else ''
        if key := next((key for key in ('frame', 'image', 'time') if key in columns), None):
            frame = row[columns[key]].strip() if key == 'image' else _number(row[columns[key]], f'{where}: line {i}')
        else:
            joint = person, '' if joints else row[columns['joint']]
            frame, seen = (frame + 1, {joint}) if joint in seen else (frame, seen | {joint})
        pose = values.setdefault((frame, person), np.zeros((count, 3)))
        for joint, cells in (joints or {row[columns['joint']]: columns}).items():
            score = row[cells['score']] if 'score' in cells else '1'
            pose[order[joint.strip().lower()]] = [
                _number(cell, f'{where}: line {i}') for cell in (row[cells['x']], row[cells['y']], score)
            ]
    times, note = list(dict.fromkeys(frame for frame, _ in values)), ''
    if 'image' in columns and 'frame' not in columns:
        number, note = frame_numbers(times, where)
    elif all(float(t).is_integer() and 0 <= t < 10**9 for t in times) and 'time' not in columns.keys() - {'frame'}:
        number = {t: int(t) for t in times}
    else:
        number, note = {t: i for i, t in enumerate(sorted(times))}, 'frames in the order of their times'
    frames: dict[int, list[Person]] = {number[t]: [] for t in times}
    for (t, person), pose in values.items():
        frames[number[t]].append(Person(float32(pose), identity(person)))
    return _clip(frames, names, note)


def _joint_order(joints: list[str], where: str) -> tuple[dict[str, int], int, list[str] | None]:
    """The index of each joint by its name or number in the file, how many joints a pose has, and their names."""
    keys = list(dict.fromkeys(joint.strip().lower() for joint in joints))
    if not keys or not all(key.isdecimal() for key in keys):
        return {key: i for i, key in enumerate(keys)}, len(keys), [key.rsplit('.', 1)[-1] for key in keys]
    first, last = int(max(map(int, keys)) >= len(_LAYOUT) and '0' not in keys), max(map(int, keys))  # from 0, or from 1
    count = last - first + 1
    if count > len(_LAYOUT):
        raise UserError(f'{where} has a joint of number {last}, not one of MediaPipe, which are 0 to 32.')
    return {key: int(key) - first for key in keys}, count if count <= 17 else len(_LAYOUT), None


def _number(cell: str, where: str) -> float:
    cell = cell.strip()
    if not cell or cell.lower() in ('nan', 'none', 'null'):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise UserError(f'{where}: {shown(cell)} must be a number.') from None
