"""Landmarks in CSV tables, mostly MediaPipe's, as users' own loops write them.

    Frame,LandmarkID,X,Y[,Z,Visibility]                a row per joint
    frame,x0,y0,z0,v0,x1,...  or  nose_x,nose_y,...    a row per frame

Frames are identified by a number, an image name or a time; otherwise a new frame starts when a joint recurs. Joints are
names or numbers from 0 or 1.
"""

import csv
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lib.errors import UserError, shown
from lib.formats.clip import Clip, Person
from lib.formats.frame_numbers import frame_numbers
from lib.formats.mediapipe import NUM_LANDMARKS, of_landmarks
from lib.formats.values import float32, identity

NAME, FILES = 'MediaPipe', 'CSV'
# Names of columns in lower case without punctuation.
_COLUMNS = {
    'frame': ('frame', 'frameid', 'frameindex', 'frameidx', 'framenumber', 'frameno'),
    'image': ('image', 'imageid', 'imagename', 'filename', 'file', 'framename'),
    'time': ('time', 'timestamp', 'timestampms', 'timems', 'seconds', 'milliseconds'),
    'person': ('person', 'personid', 'pose', 'poseid', 'poseindex', 'track', 'trackid'),
    'joint': ('landmarkid', 'landmark', 'landmarkindex', 'landmarkname', 'joint', 'jointid', 'keypoint', 'id', 'name'),
    'score': ('visibility', 'v', 'score', 'presence', 'confidence'),
}


def recognises(content: Any) -> bool:
    try:
        return isinstance(content, str) and _columns(next(_rows(content.split('\n', 1)[0]), [])) is not None
    except csv.Error:
        return False


def read(text: str, where: str) -> Clip:
    try:
        header, *rows = _rows(text)
    except csv.Error as error:
        raise UserError(f'{where} cannot be read as a CSV table ({error}).') from None
    columns, joints = _columns(header)
    listed = list(joints) or [row[columns['joint']] for row in rows if len(row) > columns['joint']]
    order, count, names = _joint_order(listed, where)
    key = next((key for key in ('frame', 'image', 'time') if key in columns), None)
    values: dict[tuple[Any, str], np.ndarray] = {}
    frame, seen = 0, set()  # for tables without frame numbers
    for i, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < len(header):
            raise UserError(f'{where}: line {i} has {len(row)} cells, the first line {len(header)}.')
        person = row[columns['person']].strip() if 'person' in columns else ''
        if key == 'image':
            frame = row[columns[key]].strip()
        elif key:
            frame = _number(row[columns[key]], f'{where}: line {i}')
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
    if key == 'image':
        number, note = frame_numbers(times, where)
    elif key != 'time' and all(float(t).is_integer() and 0 <= t < 10**9 for t in times):
        number = {t: int(t) for t in times}
    else:
        number, note = {t: i for i, t in enumerate(sorted(times))}, 'frames in the order of their times'
    frames: dict[int, list[Person]] = {number[t]: [] for t in times}
    for (t, person), pose in values.items():
        frames[number[t]].append(Person(float32(pose), identity(person)))
    return of_landmarks(frames, names, note)


def _rows(text: str) -> Iterator[list[str]]:
    header = text.split('\n', 1)[0]
    delimiter = max(',;\t', key=header.count)
    return csv.reader(text.splitlines(), delimiter=delimiter)


def _columns(header: list[str]) -> tuple[dict[str, int], dict[str, dict[str, int]]] | None:
    """Columns by meaning, and the columns of each joint if a row is a frame. None if there are no joints."""
    plain = [re.sub(r'[^a-z0-9]', '', name.lower()) for name in header]
    found = {key: next((plain.index(name) for name in names if name in plain), None) for key, names in _COLUMNS.items()}
    columns = {key: column for key, column in found.items() if column is not None}
    if 'x' in plain and 'y' in plain and 'joint' in columns:
        return columns | {'x': plain.index('x'), 'y': plain.index('y')}, {}
    joints: dict[str, dict[str, int]] = {}
    for i, name in enumerate(header):
        match = re.fullmatch(r'(x|y|v|visibility)_?(\d+)|(.+?)[_. ](x|y|v|visibility|score)', name.strip().lower())
        if match:
            axis = match[1] or match[4]
            joint = re.sub(r'^(landmark|joint|keypoint|kp|pose)[_. ]?(?=\d)', '', match[2] or match[3])
            joints.setdefault(joint, {})[axis if axis in 'xy' else 'score'] = i
    joints = {joint: found for joint, found in joints.items() if {'x', 'y'} <= found.keys()}
    return (columns, joints) if joints else None


def _joint_order(joints: list[str], where: str) -> tuple[dict[str, int], int, list[str] | None]:
    """Index of each joint by its name or number in the file, number of joints per pose, and joint names."""
    keys = list(dict.fromkeys(joint.strip().lower() for joint in joints))
    if not keys or not all(key.isdecimal() and len(key) < 10 for key in keys):
        return {key: i for i, key in enumerate(keys)}, len(keys), [key.rsplit('.', 1)[-1] for key in keys]
    last = max(map(int, keys))
    first = int(last >= NUM_LANDMARKS and '0' not in keys)  # joints are counted from 0 or from 1
    count = last - first + 1
    if count > NUM_LANDMARKS:
        raise UserError(f"{where} has joint {last}; MediaPipe's joints are 0 to 32.")
    return {key: int(key) - first for key in keys}, count if count <= 17 else NUM_LANDMARKS, None


def _number(cell: str, where: str) -> float:
    cell = cell.strip()
    if not cell or cell.lower() in ('nan', 'none', 'null'):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise UserError(f'{where}: {shown(cell)} must be a number.') from None
