"""Frame numbers of images from their names."""

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from lib.errors import UserError, shown_text

LARGEST_STEP = 12  # between frame numbers at irregular steps; time stamps in milliseconds have larger ones
MOST_FRAMES = 108_000  # an hour at 30 frames a second
SAME_NUMBER = '{} has two frames of the same number, written differently. Remove one of them.'
_DATE_AND_TIME = re.compile(r'(?<!\d)(?:19|20)\d\d[01]\d[0-3]\d\D{0,2}([01]\d|2[0-3])([0-5]\d){2}(?!\d)')
_ROBOFLOW = re.compile(r'[._](jpe?g|png|bmp|webp)\.rf\.\w+')  # a hash in the names of exported images


class Numbered(NamedTuple):
    """Frame numbers by name, and a note if frames are counted in the order of their names."""

    numbers: dict[str, int]
    note: str = ''


def frame_numbers(names: Collection[str], where: str) -> Numbered:
    """Frame numbers of images with different names: the first group of digits that varies between names.

    If it is not a frame number (a date and time, a fraction, numbers at large irregular steps, a number that recurs,
    varying text before it), frames are counted from 0 in the order of the names. Raises UserError for frames of several
    videos.
    """
    names = list(names)
    if len(names) == 1:
        digits = re.findall(r'\d{1,9}', _stem(names[0]))
        return Numbered({names[0]: int(digits[-1]) if digits else 0})
    tokens = {name: re.findall(r'\d+|\D+', _stem(name)) for name in names}
    is_fraction = False
    for column in zip(*tokens.values(), strict=False):
        if len(set(column)) == 1:
            is_fraction = column[0] == '.'
            continue
        if all(token.isdecimal() and len(token.lstrip('0')) < 10 for token in column) and not _are_times(names):
            numbers = [int(token) for token in column]
            steps = np.diff(sorted(numbers))
            if len(set(column)) == len(names) > len(set(numbers)):
                raise UserError(SAME_NUMBER.format(where))
            is_plain = len(set(numbers)) == len(names) and steps.sum() < MOST_FRAMES
            if is_plain and (steps.min() <= LARGEST_STEP or not ((steps % steps.min()).any() or is_fraction)):
                return Numbered(dict(zip(names, numbers, strict=True)))
        break
    _refuse_several_videos(names, where)
    ordered = sorted(names, key=_natural)
    return Numbered(
        {name: i for i, name in enumerate(ordered)},
        f'counted as frames of one video in the order of their names ({shown_text(ordered[0])} ... '
        f'{shown_text(ordered[-1])})',
    )


def _are_times(names: Collection[str]) -> bool:
    """Whether names contain dates and times that differ, as in IMG_20200102_100010.jpg."""
    times = [_DATE_AND_TIME.search(name) for name in names]
    return all(times) and len({match[0] for match in times}) > 1


def _refuse_several_videos(names: Collection[str], where: str) -> None:
    """Raises UserError if frames are numbered after different words."""
    videos: dict[str, set[str | None]] = {}  # numbers after each word in each folder
    for name in names:
        folder, _, last = _stem(name).replace('\\', '/').rpartition('/')
        match = re.fullmatch(r'(.*?)(?:(\d+)\D*)?', last, re.DOTALL)
        words = ''.join(filter(str.isalpha, match[1]))
        videos.setdefault(f'{folder}/{words}' if folder else words, set()).add(match[2])
    numbered = [numbers for numbers in videos.values() if numbers != {None}]
    counted = any(len(numbers) > 1 for numbers in numbered)
    if len(videos) > 1 and (counted or (len(numbered) > 1 and set.intersection(*numbered))):
        raise UserError(
            f'{where} has frames of several videos ({", ".join(map(shown_text, list(videos)[:3]))}). Use a file or '
            'folder per video.'
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers by value, fractions as in 10.25 < 10.5, shorter names first."""
    return [(int(t[:99]), t) if t.isdecimal() else (-1, t) for t in re.findall(r'(?<=\d)\.\d+|\d+|\D', _stem(name))]


def _stem(name: str) -> str:
    return re.sub(r'\.[A-Za-z]\w{0,4}$', '', _ROBOFLOW.sub('', name))
