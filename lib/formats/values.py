"""Checked values of parsed JSON. Errors name the place in the file."""

import contextlib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from lib.errors import UserError, shown


def first_item(content: Any) -> tuple[int, Any]:
    """Nesting depth and value of the first item that is neither a list nor null; (0, None) without such an item."""
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
    """A list; null is an empty list."""
    if value is not None and not isinstance(value, list):
        raise UserError(f'{where} must be a list, found {shown(value)}.')
    return value or []


def entries(value: Any, where: str, noun: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the content of each dict in a list; null is an empty list."""
    for i, item in enumerate(sequence(value, where)):
        place = f'{where}: {noun} {i}'
        yield place, mapping(item, place)


def name_or_number(value: Any, where: str) -> str | int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f'{where} must be a name or a number, found {shown(value)}.')
    return value


def array(value: Any) -> np.ndarray | None:
    """Nested lists of numbers as float64, null as NaN; None if they are ragged or hold anything else."""
    leaves = value
    while leaves and isinstance(leaves, list) and all(isinstance(item, list) for item in leaves):
        leaves = list(chain.from_iterable(leaves))
    if value and isinstance(leaves, list) and set(map(type, leaves)) <= {int, float, type(None)}:  # NumPy accepts text
        with contextlib.suppress(ValueError, OverflowError, TypeError):  # ragged, or a number of 400 digits
            return np.array(value, np.float64)
    return None


def numbers(value: Any, where: str) -> np.ndarray:
    """Nested lists of numbers as float32, null as NaN."""
    if (found := array(value)) is None:
        raise UserError(f'{where} must be lists of numbers, found {shown(value)}.')
    return float32(found)


def triples(value: Any, where: str) -> np.ndarray:
    """x, y, score, x, y, score, ... or [x, y, score] of each joint, as (V, 3)."""
    found = numbers(value, where)
    if found.size % 3 or found.shape[1:] not in ((), (3,)):
        raise UserError(f'{where} must be x, y and score of each joint, found shape {found.shape}.')
    return found.reshape(-1, 3)


def float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore', invalid='ignore'):  # infinite or NaN: missing
        return values.astype(np.float32)


def identity(value: Any) -> str | None:
    """Identity of a detection, a name or a whole number from 0; None for anything else: untracked.

    AlphaPose writes 3, [3.0], or [[3.0], [5.0]] for two merged boxes; the first number counts.
    """
    while isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53 or value % 1:
        return None
    return str(int(value))


def whole_number(content: Mapping[str, Any], *keys: str) -> int | None:
    """The first of the keys whose value is a whole number from 0."""
    for key in keys:
        value = content.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
            return value
    return None
