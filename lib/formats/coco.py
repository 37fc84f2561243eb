"""COCO's keypoint annotations, as CVAT, Roboflow and COCO Annotator export them: {'images', 'annotations'}.

The third number of a joint is 0 (not labelled), 1 (hidden) or 2 (visible); 1 and 2 become score 1. Annotations
of other categories are skipped if there are some of a category named person. COCO's results are read by alphapose.py.
"""

from collections import Counter
from collections.abc import Hashable
from typing import Any

from lib.formats.clip import Clip, Person, number_frames
from lib.formats.values import entries, has, identity, name_or_number, triples, whole_number

NAME, FILES = 'COCO', 'JSON'


def recognises(content: Any) -> bool:
    return has(content, 'images', 'annotations')


def read(content: Any, where: str) -> Clip:
    names, sizes = {}, set()
    for place, image in entries(content['images'], where, 'image'):
        number = name_or_number(image.get('id'), f'{place}: id')
        names[number] = str(image.get('file_name') or number)
        sizes.add((whole_number(image, 'height'), whole_number(image, 'width')))
    persons: dict[str, list[Person]] = {name: [] for name in names.values()}
    annotated = [(place, a) for place, a in entries(content['annotations'], where, 'annotation') if a.get('keypoints')]
    categories = content.get('categories')
    categories = [c for c in categories if has(c, 'id')] if isinstance(categories, list) else []
    person_ids = [category['id'] for category in categories if str(category.get('name')).strip().lower() == 'person']
    annotated = [(place, a) for place, a in annotated if a.get('category_id') in person_ids] or annotated
    for place, annotation in annotated:
        image = name_or_number(annotation.get('image_id'), f'{place}: image_id')
        joints = triples(annotation['keypoints'], f'{place}: keypoints')
        persons.setdefault(names.get(image, str(image)), []).append(Person(joints, identity(_track(annotation))))
    size = sizes.pop() if len(sizes) == 1 else (None, None)
    joint_names = _joint_names(categories, [annotation.get('category_id') for _, annotation in annotated])
    clip = Clip(NAME, {}, joint_names=joint_names, img_shape=size if all(size) else None)
    return number_frames(clip, persons, where)


def _track(annotation: dict[str, Any]) -> Any:
    attributes = annotation.get('attributes')
    for place in (annotation, attributes if isinstance(attributes, dict) else {}):
        for key in ('track_id', 'instance_id'):
            if place.get(key) is not None:
                return place[key]
    return None


def _joint_names(categories: list[dict[str, Any]], used: list[Any]) -> list[Any] | None:
    """Joint names of the category with the most frequent of the ids used."""
    counts = Counter(number for number in used if isinstance(number, Hashable))
    for number, _ in counts.most_common(1):
        for category in categories:
            if category['id'] == number and isinstance(category.get('keypoints'), list):
                return category['keypoints']
    return None
