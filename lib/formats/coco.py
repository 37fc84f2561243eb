"""COCO's keypoint annotations, as CVAT, Roboflow and COCO Annotator export them: {'images', 'annotations'}.

The third number of a joint is 0 (not labelled), 1 (hidden) or 2 (visible); both 1 and 2 are score 1. COCO's results are
read by alphapose.py.
"""

from collections import Counter
from typing import Any

from lib.errors import UserError, shown
from lib.formats.clip import Clip, Person
from lib.formats.frame_numbers import frame_numbers
from lib.formats.values import has, identity, mapping, sequence, triples, whole_number

NAME, FILES = 'COCO', 'JSON'


def recognises(content: Any) -> bool:
    return has(content, 'images', 'annotations')


def read(content: Any, where: str) -> Clip:
    images = {}
    for i, image in enumerate(sequence(content['images'], f'{where}: images')):
        number = mapping(image, f'{where}: image {i}').get('id')
        images[_id(number, f'{where}: image {i}: id')] = image
    persons: dict[Any, list[Person]] = {number: [] for number in images}
    categories = []
    for i, annotation in enumerate(sequence(content['annotations'], f'{where}: annotations')):
        place = f'{where}: annotation {i}'
        keypoints = mapping(annotation, place).get('keypoints')
        if not keypoints:  # a box
            continue
        image = _id(annotation.get('image_id'), f'{place}: image_id')
        attributes = annotation.get('attributes')
        track = next((annotation[key] for key in ('track_id', 'instance_id') if key in annotation), None)
        track = attributes.get('track_id') if track is None and isinstance(attributes, dict) else track
        joints = triples(keypoints, f'{place}: keypoints')
        persons.setdefault(image, []).append(Person(joints, identity(track)))
        categories.append(annotation.get('category_id'))
    names = {number: str(images.get(number, {}).get('file_name') or number) for number in persons}
    numbers, note = frame_numbers(names.values(), where)
    frames: dict[int, list[Person]] = {}
    for number, people in persons.items():
        frames.setdefault(numbers[names[number]], []).extend(people)
    sizes = Counter((whole_number(i, 'height'), whole_number(i, 'width')) for i in images.values())
    size = sizes.most_common(1)[0][0] if len(sizes) == 1 else None
    joint_names = _joint_names(content.get('categories'), categories)
    return Clip(NAME, frames, joint_names=joint_names, img_shape=size if size and all(size) else None, note=note)


def _id(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f'{where} must be a number or a name, found {shown(value)}.')
    return value


def _joint_names(categories: Any, used: list[Any]) -> list[Any] | None:
    """The names that the category of most persons gives its joints."""
    number = used and max(used, key=used.count)
    for category in categories if isinstance(categories, list) else []:
        if has(category, 'id', 'keypoints') and category['id'] == number and isinstance(category['keypoints'], list):
            return category['keypoints']
    return None
