"""Results by frame, as users' own loops over frames collect them from any tool.

{'frame_0012.jpg': RESULT}    {'fps': 30, 'frames': [RESULT]}    [{'frame': 12, 'landmarks': RESULT}]
"""

from collections.abc import Iterable
from typing import Any

from lib.formats.values import has, whole_number

_FRAME = 'frame', 'frame_id', 'frame_index', 'frame_number', 'frame_idx', 'frame_no', 'frameIndex', 'image_id', 'index'
_RESULT = 'pose_landmarks', 'poseLandmarks', 'landmarks', 'predictions', 'keypoints', 'persons', 'people', 'results'


def by_frame(content: Any) -> tuple[list[str], list[Any]] | None:
    """Names or numbers of frames and the result of each; None if the content has no such form."""
    if isinstance(content, dict):
        is_named = set(map(type, content.values())) <= {list, str, type(None)}
        if is_named and not content.keys() & {*_RESULT} and (len(content) > 1 or _has_digit(content)):
            return list(content), list(content.values())
        inner = _result(content)
        return None if inner is None else by_frame(inner) or ([str(i) for i in range(len(inner))], inner)
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        return None
    numbers, results = [whole_number(entry, *_FRAME) for entry in content], [_result(entry) for entry in content]
    if not any(results):
        return None
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(content)))
    return list(map(str, numbers)), results


def _has_digit(names: Iterable[str]) -> bool:
    return any(character.isdigit() for name in names for character in name)


def _result(entry: dict[str, Any]) -> list[Any] | None:
    """The list with a common name, which may be in a dict of that name, or the only list, or points by joint name."""
    lists = {key: value for key, value in entry.items() if isinstance(value, list)}
    nested = {key: found for key in _RESULT if isinstance(entry.get(key), dict) and (found := _result(entry[key]))}
    common = next((found[key] for key in _RESULT for found in (lists, nested) if key in found), None)
    if common is None and len(lists) == 1:
        return next(iter(lists.values()))
    return common or [{'name': key, **value} for key, value in entry.items() if has(value, 'x', 'y')] or None
