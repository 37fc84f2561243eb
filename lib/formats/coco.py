"""COCO's keypoint annotations, as CVAT, Roboflow and COCO Annotator export them: {'images', 'annotations'}.

The third number of a joint is 0 (not labelled), 1 (hidden) or 2 (visible); 1 and 2 become score 1. Annotations
of other categories are skipped if there are some of a category named person. COCO's results are read by alphapose.py.
"""

from typing import Any

from lib.errors import UserError, shown
from lib.formats.clip import Clip, Person, number_frames
from lib.formats.values import entries, has, identity, triples, whole_number

NAME, FILES = 'COCO', 'JSON'


def recognises(content: Any) -> bool:
    return has(content, 'images', 'annotations')


def read(content: Any, where: str) -> Clip:
    names, sizes, categories = {}, set(), []
    for place, image in entries(content['images'], where, 'image'):
        number = _id(image.get('id'), f'{place}: id')
        names[number] = str(image.get('file_name') or number)
        sizes.add((whole_number(image, 'height'), whole_number(image, 'width')))
    persons: dict[str, list[Person]] = {name: [] for name in names.values()}
    annotated = [(place, a) for place, a in entries(content['annotations'], where, 'annotation') if a.get('keypoints')]
    person_ids = _person_ids(content.get('categories'))
    of_persons = [(place, a) for place, a in annotated if a.get('category_id') in person_ids]
    for place, annotation in of_persons or annotated:
        image = _id(annotation.get('image_id'), f'{place}: image_id')
        joints = triples(annotation['keypoints'], f'{place}: keypoints')
        persons.setdefault(names.get(image, str(image)), []).append(Person(joints, identity(_track(annotation))))
        categories.append(annotation.get('category_id'))
    size = sizes.pop() if len(sizes) == 1 else (None, None)
    joint_names = _joint_names(content.get('categories'), categories)
    clip = Clip(NAME, {}, joint_names=joint_names, img_shape=size if all(size) else None)
    return number_frames(clip, persons, where)


def _id(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f'{where} must be a number or a name, found {shown(value)}.')
    return value


def _track(annotation: dict[str, Any]) -> Any:
    attributes = annotation.get('attributes')
    for place in (annotation, attributes if isinstance(attributes, dict) else {}):
        for key in ('track_id', 'instance_id'):
            if place.get(key) is not None:
                return place[key]
    return None


def _person_ids(categories: Any) -> list[Any]:
    """Ids of the categories named person."""
    named = [c for c in categories if has(c, 'id', 'name')] if isinstance(categories, list) else []
    return [category['id'] for category in named if str(category['name']).strip().lower() == 'person']


def _joint_names(categories: Any, used: list[Any]) -> list[Any] | None:
    """Joint names of the most frequent category."""
    number = used and max(used, key=used.count)
    for category in categories if isinstance(categories, list) else []:
        if has(category, 'id', 'keypoints') and category['id'] == number and isinstance(category['keypoints'], list):
            return category['keypoints']
    return None
