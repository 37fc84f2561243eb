"""AlphaPose, its tracker PoseFlow, and COCO's results, which have the same form.

[{'image_id': '12.jpg', 'keypoints': [x, y, score, ...], 'idx': 3}]    AlphaPose; idx may be [3.0] or [[3.0], [5.0]]
{'12.jpg': [{'keypoints': [...], 'idx': 3}]}                           PoseFlow
{'3': {'0012': {'keypoints': [...], 'scores': 2.1}}}                   alphapose_tracked_person: person, then frame
"""

from collections.abc import Iterable
from typing import Any

from lib.errors import UserError, shown, shown_text
from lib.formats.clip import Clip, Person
from lib.formats.frame_numbers import frame_numbers
from lib.formats.values import first_item, has, identity, mapping, sequence, triples

NAME, FILES = 'AlphaPose', 'JSON'


def recognises(content: Any) -> bool:
    depth, item = first_item(content)
    if depth == 1:
        return has(item, 'image_id', 'keypoints')
    if not isinstance(content, dict):
        return False
    item = next((value for value in content.values() if value), None)  # images without persons are empty
    if isinstance(item, list):
        return has(item[0], 'keypoints') and first_item(item[0]['keypoints'])[0] == 1
    return isinstance(item, dict) and has(next(iter(item.values())), 'keypoints')


def read(content: Any, where: str) -> Clip:
    if isinstance(content, list):
        return _clip(NAME, _entries(content, where), where)
    first = next(value for value in content.values() if value)
    if isinstance(first, list):
        entries = (
            (image, person.get('idx'), person, f'{where}: image {shown_text(image)}, person {i}')
            for image, people in content.items()
            for i, person in enumerate(_people(people, f'{where}: image {shown_text(image)}'))
        )
        return _clip('PoseFlow', entries, where, content)
    entries = (
        (frame, person, mapping(pose, place), place)
        for person, poses in content.items()
        for frame, pose in mapping(poses, f'{where}: person {shown_text(person)}').items()
        for place in [f'{where}: person {shown_text(person)}, frame {shown_text(frame)}']
    )
    return _clip('AlphaPose, tracked', entries, where)


def _people(people: Any, where: str) -> list[dict[str, Any]]:
    return [mapping(person, f'{where}, person {i}') for i, person in enumerate(sequence(people, where))]


def _entries(content: list[Any], where: str) -> Iterable[tuple[str, Any, dict[str, Any], str]]:
    for i, entry in enumerate(content):
        place = f'{where}: entry {i}'
        image = mapping(entry, place).get('image_id')
        if isinstance(image, bool) or not isinstance(image, int | str):
            raise UserError(f'{place}: image_id must be a name or a number, found {shown(image)}.')
        person = entry.get('idx', entry.get('track_id'))
        yield str(image), person, entry, f'{place} (image {shown_text(str(image))})'


def _clip(
    source: str, entries: Iterable[tuple[str, Any, dict[str, Any], str]], where: str, images: Iterable[str] = ()
) -> Clip:
    """images: those that may have no entry."""
    by_image: dict[str, list[Person]] = {image: [] for image in images}
    for image, person, pose, place in entries:
        joints = triples(pose.get('keypoints'), f'{place}: keypoints')
        by_image.setdefault(image, []).append(Person(joints, identity(person)))
    numbers, note = frame_numbers(by_image, where)
    return Clip(source, {numbers[image]: persons for image, persons in by_image.items()}, note=note)
