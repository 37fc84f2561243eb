"""Reading the keypoint files that pose estimators write, as annotations in the PYSKL form.

Formats, recognised by their content:

    PYSKL pickle       all its annotations
    .npy, .npz         (T, V, 2 or 3) or (M, T, V, 2 or 3): pixels, the third number a score; or 25 Kinect joints in
                       metres. An .npz has it as `keypoint`, and may have `keypoint_score` and `img_shape` (h, w)
    MMPose             JSON of a video: a list of {'frame_id', 'instances': [{'keypoints', 'keypoint_scores'}]}, alone
                       or as 'instance_info'; of an image: the list of its instances
    OpenPose           a folder of <video>_000000000000_keypoints.json, one per frame, or one of them
    AlphaPose          JSON: a list of {'image_id', 'keypoints': [x, y, score, ...]}, or a dict by image ('cmu', 'open')

A folder may hold any of the JSON files of one image, their frame number the last number in the name. M persons,
P persons of one frame, T frames, V joints.
"""

import contextlib
import json
import re
from collections.abc import Collection, Mapping
from itertools import chain, compress, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.pickles import load_annotations
from lib.data.skeletons import LAYOUTS, convert
from lib.data.tracking import track
from lib.errors import UserError, shown, shown_text, user_file
from lib.files import read_arrays, require_file

MOST_BYTES = 2**27  # of a JSON file, for which Python takes ten times as much memory, at worst thirty times
MOST_FRAMES = 108_000  # an hour at 30 frames a second
MOST_IN_A_FRAME = 100  # persons
LARGEST_COORDINATE = 10**5  # px
FARTHEST = 100  # m; what Kinect sees is nearer
NORMALISED = 2  # the largest coordinate of those that are shares of the image

# The layouts of JSON files by their number of joints. Arrays of 25 joints may be Kinect's too.
_BY_NUMBER = {len(LAYOUTS[name]): name for name in ('coco17', 'openpose18', 'body25', 'halpe26', 'wholebody133')} | {
    136: 'halpe136'
}
_FRAME_NUMBER = re.compile(r'(.{0,200}?)(\d{1,18})(\D{0,50})')

_NOBODY = '{} holds no person in any frame. Leave it out.'

Person = tuple[int | None, np.ndarray]  # identity, where the file has one, and (V, 3): x, y, score


def read_keypoint_file(
    path: Path, layout: str | None = None, img_shape: tuple[int, int] | None = None, max_persons: int = 10
) -> list[dict[str, Any]]:
    """PYSKL annotations of a file or, of OpenPose, a folder: one, or all those of a PYSKL pickle.

    keypoint (M, T, V, C) is float32: 17 COCO joints in pixels with keypoint_score and img_shape, or 25 Kinect joints in
    metres. frame_dir is the name of the file, label 0. Frames are counted from the first one that is listed to the
    last; those between that are not listed have nobody. Joints that were not found are zero, with score 0. A pickle's
    clips stay as they are, unless `layout` says that their joints are in another order.

    layout: a name of LAYOUTS, where the number of joints does not tell it. img_shape: (h, w) in pixels, where the file
    does not tell it; without it the smallest image that holds all points. max_persons: the most present ones are kept.
    Except in a pickle's, there are two keys more: persons_left_out, how many were beyond that, and img_shape_known,
    False where it was guessed.

    Raises UserError that names the file, the place in it, what was found and what to do.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f'there is no layout {shown_text(layout)}; there are {", ".join(LAYOUTS)}.')
    if path.is_dir():
        return [_from_frames(_read_folder(path), path, layout, img_shape, max_persons)]
    require_file(path)
    with user_file(path), path.open('rb') as file:
        start = file.read(2**10).removeprefix(b'\xef\xbb\xbf').lstrip()
    if start[:1] == b'\x80' or path.suffix in ('.pkl', '.pickle'):
        return [_in_layout(annotation, layout, path) for annotation in load_annotations(path)['annotations']]
    if start[:6] == b'\x93NUMPY':
        return [_from_arrays({'keypoint': _read_npy(path)}, path, layout, img_shape, max_persons)]
    if start[:2] == b'PK':
        return [_from_arrays(read_arrays(path), path, layout, img_shape, max_persons)]
    if start[:1] in (b'[', b'{'):
        return [_from_frames(_frames_of(_read_json(path), str(path)), path, layout, img_shape, max_persons)]
    raise UserError(
        f'{path} is no keypoint file: neither JSON (of MMPose, OpenPose or AlphaPose) nor .npy, .npz or a PYSKL pickle.'
    )


# --- JSON: persons by frame ----------------------------------------------------------------------------------------


def _read_json(path: Path) -> Any:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(f'{path} has {size:,} bytes, of which no more than {MOST_BYTES:,} are read: cut it in parts.')
    try:
        with user_file(path):
            return json.loads(path.read_bytes().removeprefix(b'\xef\xbb\xbf'))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # no text, no JSON, too many digits, too deep
        raise UserError(
            f'{path} ({size:,} bytes) cannot be read as JSON ({shown_text(str(error))}). It is cut short or damaged: '
            'write or copy it again.'
        ) from None


def _read_folder(folder: Path) -> dict[int, list[Person]]:
    """The persons of each frame of a folder with a JSON file for each."""
    files = sorted(folder.glob('*.json'))
    if not files:
        raise UserError(f'{folder} holds no .json files. Name one as OpenPose writes it, with a file for each frame.')
    names = [file.name.removesuffix('.json').removesuffix('_keypoints') for file in files]
    frames = {}
    for number, file in zip(_frame_numbers(names, str(folder)), files, strict=True):
        content = _frames_of(_read_json(file), str(file))
        if len(content) != 1:
            raise UserError(f'{file} holds {len(content)} frames, and in a folder a file is one frame. Name it alone.')
        frames[number] = next(iter(content.values()))
    return frames


def _frame_numbers(names: Collection[str], where: str) -> list[int]:
    """The last number in each of different names. All else in the names of one video's frames is the same."""
    matches = []
    for name in names:
        matches.append(_FRAME_NUMBER.fullmatch(name))
        if matches[-1] is None:
            raise UserError(f'{where}: {shown_text(name)} has no frame number. Name frames as in video_000000000012.')
    videos = sorted({match[1] + match[3] for match in matches})
    if len(videos) > 1:
        raise UserError(
            f'{where} has frames of several videos ({", ".join(map(shown_text, videos[:3]))}). Give each a file '
            'or folder of its own.'
        )
    numbers = [int(match[2]) for match in matches]
    if len(set(numbers)) < len(numbers):
        raise UserError(f'{where} has two frames of the same number, written in two ways. Take one of them out.')
    return numbers


def _frames_of(content: Any, where: str) -> dict[int, list[Person]]:
    """The persons of each frame in a JSON file of any of the estimators; one of an image is frame 0."""
    if isinstance(content, dict) and 'instance_info' in content:
        content = content['instance_info']
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(content, dict) and _is_people(content):
        return {0: _people(content, where)}
    if isinstance(content, dict) and content and all(map(_is_people, content.values())):
        people = [_people(frame, f'{where}: image {shown_text(name)}') for name, frame in content.items()]
        return dict(zip(_frame_numbers(content, where), people, strict=True))
    if isinstance(first, dict) and 'image_id' in first:
        return _alphapose(content, where)
    if isinstance(first, dict) and 'instances' in first:
        return _mmpose_video(content, where)
    if content == [] or (isinstance(first, dict) and 'keypoints' in first):
        return {0: _instances(content, where)}
    found = content if isinstance(content, dict) else first if isinstance(first, dict) else None
    text = f'a {type(content).__name__}' if found is None else f'the keys {shown(list(found))}'
    raise UserError(
        f'{where} is in no known form: found {text}. Known are the JSON files of MMPose (predictions of a video or '
        'an image), OpenPose (--write_json) and AlphaPose.'
    )


def _is_people(content: Any) -> bool:
    return isinstance(content, dict) and bool(content.keys() & {'people', 'bodies'})


def _people(content: Mapping[str, Any], where: str) -> list[Person]:
    """The persons of OpenPose's frame, or of AlphaPose's in the same form or that of its predecessor."""
    persons = []
    for i, person in enumerate(_list(content, 'people' if 'people' in content else 'bodies', where)):
        place = f'{where}: person {i}'
        keys = [key for key in ('pose_keypoints_2d', 'pose_keypoints', 'joints') if key in _dict(person, place)]
        if not keys:
            raise UserError(f'{place} lacks pose_keypoints_2d; found the keys {shown(list(person))}.')
        if person[keys[0]] != []:  # of whom only a face or a hand was found
            persons.append((_identity(person.get('person_id'), place), _triples(person[keys[0]], place)))
    return persons


def _alphapose(content: list[Any], where: str) -> dict[int, list[Person]]:
    places = [f'{where}: entry {i}' for i in range(len(content))]
    for entry, place in zip(content, places, strict=True):
        image = _dict(entry, place).get('image_id')
        if isinstance(image, bool) or not isinstance(image, int | str):
            raise UserError(f'{place}: image_id must be a name or a number, found {shown(image)}.')
    names = [str(entry['image_id']) for entry in content]
    images = dict.fromkeys(names)
    numbers = dict(zip(images, _frame_numbers(images, where), strict=True))
    frames: dict[int, list[Person]] = {number: [] for number in numbers.values()}
    for name, entry, place in zip(names, content, places, strict=True):
        place += f' (image {shown_text(name)})'
        frames[numbers[name]].append((_identity(entry.get('idx'), place), _triples(entry.get('keypoints'), place)))
    return frames


def _mmpose_video(content: list[Any], where: str) -> dict[int, list[Person]]:
    frames: dict[int, list[Person]] = {}
    for i, entry in enumerate(content):
        number = _dict(entry, f'{where}: entry {i}').get('frame_id')
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 10**18 or number in frames:
            raise UserError(
                f'{where}: entry {i}: frame_id must be a whole number, each frame its own, found {shown(number)}.'
            )
        place = f'{where}: frame {number}'
        frames[number] = _instances(_list(entry, 'instances', place), place)
    return frames


def _instances(content: list[Any], where: str) -> list[Person]:
    """The persons of MMPose's frame."""
    persons = []
    for i, instance in enumerate(content):
        place = f'{where}: person {i}'
        points = _numbers(_dict(instance, place).get('keypoints'), f'{place}: keypoints')
        score = _numbers(instance.get('keypoint_scores'), f'{place}: keypoint_scores')
        if points.ndim != 2 or points.shape[1] != 2 or score.shape != points.shape[:1]:
            raise UserError(
                f'{place}: keypoints must be an [x, y] for each joint and keypoint_scores a number for each, found '
                f'shapes {points.shape} and {score.shape}.'
            )
        joints = np.concatenate([points, score[:, None]], axis=1)
        persons.append((_identity(instance.get('track_id'), place), joints))
    return persons


def _dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{where} must be a dict, found {shown(value)}.')
    return value


def _list(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise UserError(f'{where}: {key} must be a list, found {shown(content.get(key))}.')
    return content[key]


def _identity(value: Any, where: str) -> int | None:
    """A number from 0 on, or None where the estimator told nobody from another: [-1], null or nothing."""
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or abs(value) >= 2**53:
        raise UserError(f'{where}: its identity must be a whole number, found {shown(value)}.')
    return int(value) if value >= 0 else None


def _triples(value: Any, where: str) -> np.ndarray:
    """x, y, score, x, y, score, ... as (V, 3)."""
    numbers = _numbers(value, f'{where}: keypoints')
    if numbers.ndim != 1 or len(numbers) % 3:
        raise UserError(f'{where}: keypoints must be x, y and score of each joint, found shape {numbers.shape}.')
    return numbers.reshape(-1, 3)


def _numbers(value: Any, where: str) -> np.ndarray:
    """A list of numbers, or of lists of numbers, as an array float32."""
    rows = [item if isinstance(item, list) else [item] for item in value] if isinstance(value, list) else []
    array = None
    if set(map(type, chain.from_iterable(rows))) in ({int}, {float}, {int, float}):  # NumPy would take text and null
        with contextlib.suppress(ValueError, OverflowError):  # rows of different lengths, a number of 400 digits
            array = np.array(value, np.float64)
    if array is None:
        raise UserError(f'{where} must be lists of numbers, found {shown(value)}.')
    return _float32(array)


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over='ignore', invalid='ignore'):  # infinite or NaN, and so missing
        return array.astype(np.float32)


# --- from persons by frame, or from arrays, to an annotation -------------------------------------------------------


def _from_frames(
    frames: Mapping[int, list[Person]],
    path: Path,
    layout: str | None,
    img_shape: tuple[int, int] | None,
    max_persons: int,
) -> dict[str, Any]:
    first, num_frames = min(frames), max(frames) - min(frames) + 1
    if num_frames > MOST_FRAMES:
        raise UserError(
            f'{path} goes from frame {first} to {max(frames)}, and no more than {MOST_FRAMES:,} are read. Cut the '
            'video in parts, or mend the frame numbers.'
        )
    rows = [(number - first, *person) for number in sorted(frames) for person in frames[number]]
    crowded = next((number for number, persons in frames.items() if len(persons) > MOST_IN_A_FRAME), None)
    if crowded is not None:
        raise UserError(
            f'{path}: frame {crowded} has {len(frames[crowded]):,} persons, and no more than {MOST_IN_A_FRAME} are '
            'read. Take out those whom the estimator was not sure of.'
        )
    if not rows:
        raise UserError(_NOBODY.format(path))
    num_joints = len(rows[0][2])
    for frame, _, joints in rows:
        if len(joints) != num_joints:
            raise UserError(
                f'{path}: frame {frame + first} has a person of {len(joints)} joints, others have {num_joints}.'
            )
    layout = layout or _BY_NUMBER.get(num_joints)
    _require_joints(num_joints, layout, path)
    joints = _cleaned(convert(np.stack([joints for *_, joints in rows]), layout, 'coco17'), path)  # (P, 17, 3)
    there = joints[..., 2].any(axis=1)
    if not there.any():
        raise UserError(_NOBODY.format(path))
    joints, rows = joints[there], list(compress(rows, there))
    frame, identity = np.array([row[0] for row in rows]), [row[1] for row in rows]
    # No identities, or none that tell: AlphaPose without tracking calls everybody 0.
    if None in identity or len(set(zip(frame.tolist(), identity, strict=True))) < len(rows):
        ends = np.searchsorted(frame, np.arange(num_frames + 1))
        parts = [joints[start:end] for start, end in pairwise(ends)]
        tracks = track([(part[..., :2], part[..., 2]) for part in parts], max_persons)
        return _annotation(path, tracks.keypoint, tracks.score, img_shape, tracks.left_out)
    names, person = np.unique(identity, return_inverse=True)
    order = np.argsort(-np.bincount(person, joints[..., 2].sum(axis=1)), kind='stable')[:max_persons]
    over_time = np.zeros((len(order), num_frames, *joints.shape[1:]), np.float32)
    for m, number in enumerate(order):
        over_time[m, frame[person == number]] = joints[person == number]
    return _annotation(path, over_time[..., :2], over_time[..., 2], img_shape, len(names) - len(order))


def _read_npy(path: Path) -> np.ndarray:
    try:
        with user_file(path):
            return np.load(path, mmap_mode='r', allow_pickle=False)  # mapped: takes no more than the file has
    except UserError:
        raise
    except Exception as error:  # a broken header may raise anything
        raise UserError(
            f'{path} cannot be read as an array of numbers ({shown_text(str(error))}). Write it with np.save.'
        ) from None


def _from_arrays(
    arrays: Mapping[str, np.ndarray],
    path: Path,
    layout: str | None,
    img_shape: tuple[int, int] | None,
    max_persons: int,
) -> dict[str, Any]:
    if 'keypoint' not in arrays:
        raise UserError(f'{path} lacks the array keypoint; found {shown(list(arrays))}.')
    keypoint, score = arrays['keypoint'], arrays.get('keypoint_score')
    if keypoint.ndim == 3:
        keypoint = keypoint[None]
        score = None if score is None else score[None]
    if keypoint.dtype.kind not in 'iuf' or keypoint.ndim != 4 or 0 in keypoint.shape or keypoint.shape[3] not in (2, 3):
        raise UserError(
            f'{path}: keypoint must be numbers of shape (frames, joints, 2 or 3) or (persons, frames, joints, 2 or 3), '
            f'found {keypoint.dtype} of {arrays["keypoint"].shape}.'
        )
    if score is not None and (score.dtype.kind not in 'iuf' or score.shape != keypoint.shape[:3]):
        raise UserError(
            f'{path}: keypoint_score must be a number for each joint, found {score.dtype} of '
            f'{arrays["keypoint_score"].shape} beside keypoint of {arrays["keypoint"].shape}.'
        )
    if keypoint.shape[1] > MOST_FRAMES:
        raise UserError(f'{path} has {keypoint.shape[1]:,} frames, and no more than {MOST_FRAMES:,} are read: cut it.')
    num_joints, size = keypoint.shape[2:]
    if layout is None and num_joints == len(LAYOUTS['ntu25']):
        raise UserError(
            f'{path}: an array of 25 joints may hold those of OpenPose or of Kinect. Say which: --layout body25 '
            '(pixels) or --layout ntu25 (metres).'
        )
    layout = layout or _BY_NUMBER.get(num_joints)
    _require_joints(num_joints, layout, path)
    keypoint = _float32(keypoint)
    if layout == 'ntu25' and size == 3:
        return _annotation_3d(path, keypoint, max_persons)
    if size == 3 and score is not None:
        raise UserError(f'{path}: keypoint has a third number, the score, and there is keypoint_score: leave one out.')
    if size == 2:
        score = (keypoint != 0).any(axis=3) if score is None else score
        keypoint = np.concatenate([keypoint, _float32(score[..., None])], axis=3)
    elif not (np.isnan(keypoint[..., 2]) | ((keypoint[..., 2] > -0.5) & (keypoint[..., 2] < 2))).all():
        raise UserError(
            f'{path}: the third number of 2D joints is a score between 0 and 1, found '
            f"{np.nanmin(keypoint[..., 2]):.6g} to {np.nanmax(keypoint[..., 2]):.6g}. 3D is read of Kinect's 25 joints."
        )
    joints = _cleaned(convert(keypoint, layout, 'coco17'), path)
    order, left_out = _most_present(joints[..., 2].sum(axis=(1, 2)), max_persons, path)
    joints, shape = joints[order], arrays.get('img_shape')
    if shape is not None:
        if shape.shape != (2,) or shape.dtype.kind not in 'iu' or shape.min() < 1 or shape.max() > LARGEST_COORDINATE:
            raise UserError(f'{path}: img_shape must be height and width in pixels, found {shown(shape.tolist())}.')
        img_shape = tuple(shape.tolist())
    return _annotation(path, joints[..., :2], joints[..., 2], img_shape, left_out)


def _in_layout(annotation: dict[str, Any], layout: str | None, path: Path) -> dict[str, Any]:
    """A pickle's annotation with its joints in the order that models take."""
    keypoint, score = annotation['keypoint'], annotation.get('keypoint_score')
    target = 'coco17' if keypoint.shape[3] == 2 else 'ntu25'
    if layout is None or layout == target:
        return annotation
    _require_joints(keypoint.shape[2], layout, path)
    if target == 'ntu25':
        raise UserError(f'{path}: 3D joints must be those of Kinect (ntu25), found {layout}.')
    score = (keypoint != 0).any(axis=3) if score is None else score
    joints = convert(np.concatenate([keypoint, score[..., None].astype(keypoint.dtype)], axis=3), layout, target)
    return annotation | {'keypoint': joints[..., :2], 'keypoint_score': joints[..., 2]}


def _require_joints(num_joints: int, layout: str | None, path: Path) -> None:
    known = ', '.join(f'{name} ({len(joints)})' for name, joints in LAYOUTS.items())
    if layout is None:
        raise UserError(f'{path} has {num_joints} joints, which tells no layout. Name it by --layout: {known}.')
    if len(LAYOUTS[layout]) != num_joints:
        raise UserError(f'{path} has {num_joints} joints, which are not those of {layout}. Layouts are {known}.')


def _cleaned(joints: np.ndarray, path: Path) -> np.ndarray:
    """Joints (..., V, 3) float32 with scores of at most 1, and zeros where one was not found."""
    found = np.isfinite(joints).all(axis=-1) & (joints[..., 2] > 0)
    joints = np.where(found[..., None], joints, np.float32(0))
    largest = np.abs(joints[..., :2]).max()
    if largest > LARGEST_COORDINATE:
        raise UserError(f'{path} has a coordinate of {largest:.6g}, which is none in pixels.')
    if found.any() and largest <= NORMALISED:
        raise UserError(
            f'{path}: all coordinates are between {joints[..., :2].min():.3g} and {joints[..., :2].max():.3g}. Pixels '
            'are needed: multiply by the width and height of the image.'
        )
    joints[..., 2] = joints[..., 2].clip(max=1)
    return joints


def _most_present(presence: np.ndarray, max_persons: int, path: Path) -> tuple[np.ndarray, int]:
    """Which persons to keep, in order, of a number for each (M,), 0 for nobody; and how many are left out."""
    order = np.argsort(-presence, kind='stable')[: np.count_nonzero(presence)]
    if not len(order):
        raise UserError(_NOBODY.format(path))
    return order[:max_persons], max(len(order) - max_persons, 0)


def _annotation(
    path: Path, keypoint: np.ndarray, score: np.ndarray, img_shape: tuple[int, int] | None, left_out: int
) -> dict[str, Any]:
    shape = img_shape or _least_image(keypoint[score > 0])
    return {
        'frame_dir': path.resolve().name if path.is_dir() else path.stem,
        'label': 0,
        'total_frames': keypoint.shape[1],
        'img_shape': shape,
        'original_shape': shape,
        'keypoint': np.ascontiguousarray(keypoint, np.float32),
        'keypoint_score': np.ascontiguousarray(score, np.float32),
        'persons_left_out': left_out,
        'img_shape_known': img_shape is not None,
    }


def _annotation_3d(path: Path, keypoint: np.ndarray, max_persons: int) -> dict[str, Any]:
    keypoint = np.where(np.isfinite(keypoint).all(axis=3, keepdims=True), keypoint, np.float32(0))
    if np.abs(keypoint).max() > FARTHEST:
        raise UserError(f"{path} has a coordinate of {np.abs(keypoint).max():.6g}. Kinect's joints must be in metres.")
    order, left_out = _most_present((keypoint != 0).any(axis=3).sum(axis=(1, 2)), max_persons, path)
    return {
        'frame_dir': path.stem,
        'label': 0,
        'total_frames': keypoint.shape[1],
        'keypoint': keypoint[order],
        'persons_left_out': left_out,
        'img_shape_known': True,
    }


def _least_image(points: np.ndarray) -> tuple[int, int]:
    """(h, w) of the smallest image that holds all points (P, 2). Heatmaps do not depend on it."""
    width, height = np.maximum(points.max(axis=0), 0).astype(int) + 1
    return int(height), int(width)
