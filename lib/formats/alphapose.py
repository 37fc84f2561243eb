"""AlphaPose, its tracker PoseFlow, and COCO's results, which have the same form.

[{'image_id': '12.jpg', 'keypoints': [x, y, score, ...], 'idx': 3}]    AlphaPose; idx may be [3.0] or [[3.0], [5.0]]
{'12.jpg': [{'keypoints': [...], 'idx': 3}]}                           PoseFlow
{'3': {'0012': {'keypoints': [...], 'scores': 2.1}}}                   alphapose_tracked_person: person, then frame
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from lib.errors import shown_text
from lib.formats.clip import Clip, Person, number_frames
from lib.formats.values import entries, first_item, has, identity, mapping, name_or_number, triples

NAME, FILES = 'AlphaPose', 'JSON'
_Pose = tuple[str, Any, dict[str, Any], str]  # image, person, entry, place


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
        return _clip(NAME, _results(content, where), where)
    first = next(value for value in content.values() if value)
    if isinstance(first, list):
        return _clip('PoseFlow', _by_image(content, where), where, content)
    return _clip('AlphaPose, tracked', _by_person(content, where), where)


def _results(content: list[Any], where: str) -> Iterator[_Pose]:
    for place, entry in entries(content, where, 'entry'):
        image = str(name_or_number(entry.get('image_id'), f'{place}: image_id'))
        yield image, entry.get('idx', entry.get('track_id')), entry, f'{place} (image {shown_text(image)})'


def _by_image(content: dict[str, Any], where: str) -> Iterator[_Pose]:
    for image, people in content.items():
        for place, entry in entries(people, f'{where}: image {shown_text(image)}', 'person'):
            yield image, entry.get('idx'), entry, place


def _by_person(content: dict[str, Any], where: str) -> Iterator[_Pose]:
    for person, poses in content.items():
        for frame, pose in mapping(poses, f'{where}: person {shown_text(person)}').items():
            place = f'{where}: person {shown_text(person)}, frame {shown_text(frame)}'
            yield frame, person, mapping(pose, place), place


def _clip(source: str, poses: Iterable[_Pose], where: str, images: Iterable[str] = ()) -> Clip:
    """images: those that may have no pose. Of merged identities, the one most frequent in other poses counts."""
    by_image: dict[str, list[Person]] = {image: [] for image in images}
    poses = [(image, _identities(person), pose, place) for image, person, pose, place in poses]
    alone = Counter(found[0] for _, found, _, _ in poses if len(found) == 1 and found[0])
    for image, found, pose, place in poses:
        joints = triples(pose.get('keypoints'), f'{place}: keypoints')
        by_image.setdefault(image, []).append(Person(joints, max(found, key=lambda person: alone[person])))
    return number_frames(Clip(source, {}), by_image, where)


def _identities(value: Any) -> list[str | None]:
    return [identity(item) for item in value] if value and isinstance(value, list) else [identity(value)]
