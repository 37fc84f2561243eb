"""Checked values of parsed JSON. Errors name the place in the file."""

import contextlib
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np

from lib.errors import UserError, shown


def first_item(content: Any) -> tuple[int, Any]:
    """The first item that is neither a list nor null, and how many lists it is in; None if there is no such item."""
    if not isinstance(content, list):
        return 0, content
    for item in content:
        depth, found = first_item(item)
        if found is not None:
            return depth + 1, found
    return 0, None


def has(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and set(keys) <= content.keys()


def mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{where} must be a dict, found {shown(value)}.')
    return value


def sequence(value: Any, where: str) -> list[Any]:
    """A list; null is an empty one."""
    if value is not None and not isinstance(value, list):
        raise UserError(f'{where} must be a list, found {shown(value)}.')
    return value or []


def numbers(value: Any, where: str) -> np.ndarray:
    """A list of numbers, or of lists of numbers, as an array float32; null is NaN."""
    rows = [item if isinstance(item, list) else [item] for item in value] if isinstance(value, list) else []
    array = None
    if rows and set(map(type, chain.from_iterable(rows))) <= {int, float, type(None)}:  # NumPy would accept text
        with contextlib.suppress(ValueError, OverflowError, TypeError):  # ragged rows, a number of 400 digits
            array = np.array(value, np.float64)
    if array is None:
        raise UserError(f'{where} must be lists of numbers, found {shown(value)}.')
    return float32(array)


def triples(value: Any, where: str) -> np.ndarray:
    """x, y, score, x, y, score, ... or [x, y, score] of each joint, as (V, 3)."""
    array = numbers(value, where)
    if array.size % 3 or (array.ndim == 2 and array.shape[1] != 3):
        raise UserError(f'{where} must be x, y and score of each joint, found shape {array.shape}.')
    return array.reshape(-1, 3)


def float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore', invalid='ignore'):  # infinite or NaN, and so missing
        return array.astype(np.float32)


def identity(value: Any) -> str | None:
    """Who a detection is: a number from 0 on, or a name. None for everything else, which means untracked.

    AlphaPose writes 3, [3.0], and [[3.0], [5.0]] where it merged two boxes: the first number counts.
    """
    while isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53 or value % 1:
        return None
    return str(int(value))


def whole_number(content: Mapping[str, Any], *keys: str) -> int | None:
    """The first of the keys that holds a whole number from 0 on."""
    for key in keys:
        value = content.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
            return value
    return None
