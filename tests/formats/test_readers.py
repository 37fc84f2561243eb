"""Variants of each format, and random changes to them, which are read or refused in one line."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data.pickles import check_annotation
from lib.data.skeletons import COCO17, LAYOUTS
from lib.errors import UserError
from lib.formats import read_keypoint_file
from lib.formats.frame_numbers import frame_numbers
from tests.formats.bodies import IMG_SHAPE, TWO, frames, in_layout, mmpose, numbered

ONE = TWO[:1]
SHARES = TWO / (1280, 720, 1)


def flat(pose: np.ndarray) -> list[float]:
    return [round(float(number), 6) for number in pose.ravel()]


# Persons change places: only the identities in the file tell them apart.
SWAPPING = np.concatenate([TWO[:, :3], TWO[::-1, 3:]], axis=1)


def alphapose(joints: np.ndarray, idx, names=lambda t: f'{t}.jpg') -> list[dict]:
    return [
        {'image_id': names(t), 'keypoints': flat(joints[m, t]), 'idx': idx(m, t)}
        for t in range(joints.shape[1])
        for m in range(len(joints))
    ]


def openpose(m: int, pose: np.ndarray) -> dict:
    return {'person_id': [m], 'pose_keypoints_2d': flat(in_layout(pose, 'openpose18'))}


def by_image(persons: list[list], kind: str = 'people') -> dict:
    """Frames of OpenPose in one file, as AlphaPose writes them."""
    return {f'{t}.jpg': {kind: people} for t, people in enumerate(persons)}


def ultralytics(m: int, pose: np.ndarray) -> dict:
    columns = dict(zip(('x', 'y', 'visible'), pose.T.tolist(), strict=True))
    return {'name': 'person', 'box': {'x1': 1}, 'keypoints': columns, 'track_id': m + 1}


def label_line(m: int, pose: np.ndarray) -> str:
    return ' '.join(map(str, [0, 0.5, 0.5, 0.1, 0.3, *flat(pose), m + 1]))


def landmarks(m: int, pose: np.ndarray) -> list[dict]:
    points = in_layout(pose, 'blazepose33')
    return [{'x': x, 'y': y, 'z': -0.1, 'visibility': v} for x, y, v in points.tolist()]


def coco(joints: np.ndarray, names=None, track: bool = True, file=lambda t: f'v_{t:06d}.jpg') -> dict:
    order = list(range(17)) if names is None else [COCO17.joints.index(name) for name in names]
    images = [{'id': 90 - t, 'file_name': file(t), 'height': 720, 'width': 1280} for t in range(joints.shape[1])]
    persons = [
        {'id': t, 'image_id': 90 - t, 'category_id': 1, 'keypoints': flat(joints[m, t, order] * (1, 1, 0) + (0, 0, 2))}
        | ({'attributes': {'track_id': m}} if track else {})
        for t in range(joints.shape[1])
        for m in range(len(joints))
    ]
    boxes = [{'id': 99, 'image_id': 90, 'category_id': 2, 'bbox': [0, 0, 1, 1]}]
    dogs = [{'id': 98 - t, 'image_id': 90 - t, 'category_id': 2, 'keypoints': [5, 5, 2] * 12} for t in range(2)] * 9
    categories = [
        {'id': 1, 'name': 'Person'} | ({} if names is None else {'keypoints': names}),
        {'id': 2, 'name': 'dog'},
    ]
    return {'images': images, 'annotations': dogs + persons + boxes, 'categories': categories}


def kinetics(joints: np.ndarray) -> dict:
    def skeleton(m: int, pose: np.ndarray) -> dict:
        points = in_layout(pose, 'openpose18')
        return {'pose': flat(points[:, :2]), 'score': flat(points[:, 2])}

    data = [{'frame_index': t + 1, 'skeleton': people} for t, people in enumerate(frames(joints, skeleton))]
    return {'data': data, 'label': 'abseiling', 'label_index': 4}


def table(joints: np.ndarray, header: str, row) -> str:
    """A CSV with row(t, m, v, x, y, score) for each BlazePose joint."""
    points = in_layout(joints, 'blazepose33')
    rows = [row(t, m, v, *map(float, points[m, t, v])) for m, t, v in np.ndindex(points.shape[:3])]
    return '\n'.join([header, *rows])


def wide(joints: np.ndarray, columns) -> str:
    points = in_layout(joints, 'blazepose33')[0]
    header = ','.join(f'{name}' for v in range(33) for name in columns(v))
    return '\n'.join([header, *(','.join(map(str, flat(pose))) for pose in points)])


NAMES = list(COCO17.joints[::-1])
SHAPE = {'img_shape': IMG_SHAPE}
META = {'keypoint_id2name': {str(i): name for i, name in enumerate(NAMES)}}
REVERSED = TWO[:, :, ::-1]


def variant(content: object, expected: np.ndarray = TWO, first: int = 0, **arguments) -> tuple:
    """Content (text is written unchanged), its joints and first frame, and arguments of read_keypoint_file."""
    return content, expected, first, arguments


def loop(key: str, start: int = 0, **more) -> list[dict]:
    """MediaPipe's landmarks of one person, as collected in a loop over frames."""
    return [{'frame': t + start, key: person, **more} for t, (person,) in enumerate(frames(SHARES[:1], landmarks))]


BLAZEPOSE = LAYOUTS['blazepose33']
H36M_SHARED = (~np.isin(np.arange(17), [1, 2, 3, 4]))[:, None]  # COCO joints that H36M has
LATER = (np.arange(6) > 1)[:, None, None]  # frames after the first two
VARIANTS = {
    'alphapose idx numbers': variant(alphapose(TWO, lambda m, t: m)),
    'alphapose idx text': variant(alphapose(TWO, lambda m, t: f'person {m}')),
    'alphapose idx nested': variant(alphapose(SWAPPING, lambda m, t: [[m + 0.0], [m + 5.0]]), SWAPPING),
    'alphapose idx merged once': variant(
        alphapose(SWAPPING, lambda m, t: [[9.0], [0.0]] if (m, t) == (0, 2) else [m + 0.0]), SWAPPING
    ),
    **{
        f'alphapose idx {value}': variant(alphapose(TWO, lambda m, t, value=value: value))
        for value in (None, 'x', [], [[]], -1, [-1.0], 0.5, float('nan'), True, {}, 0, [[0.0], [0.0]])
    },
    'alphapose idx in part': variant(alphapose(TWO, lambda m, t: m if t else None)),
    'alphapose names with sizes': variant(alphapose(TWO, lambda m, t: m, lambda t: f'v_{t + 3}_1280x720.jpg'), first=3),
    'alphapose names': variant(alphapose(TWO, lambda m, t: m, lambda t: f'{"abcdef"[t]}.jpg')),
    'alphapose numbers': variant(alphapose(TWO, lambda m, t: m, lambda t: t + 7), first=7),
    'alphapose halpe26': variant(alphapose(in_layout(TWO, 'halpe26'), lambda m, t: m)),
    'alphapose halpe136': variant(alphapose(in_layout(TWO, 'halpe136'), lambda m, t: m)),
    'openpose by image': variant(by_image(frames(SWAPPING, openpose)), SWAPPING),
    'openpose without person_id': variant(
        by_image([[], [], *frames(ONE[:, 2:], lambda m, pose: openpose(-1, pose))]), ONE * LATER
    ),
    'openpose bodies': variant(
        by_image(frames(TWO, lambda m, pose: {'joints': openpose(m, pose)['pose_keypoints_2d']}), 'bodies')
    ),
    'poseflow without persons in a frame': variant(
        {'0.jpg': [], **{f'{t + 1}.jpg': [{'keypoints': flat(TWO[0, t]), 'idx': 1}] for t in range(5)}},
        np.concatenate([np.zeros((1, 1, 17, 3)), ONE[:, :5]], axis=1),
    ),
    'tracked from frame 12': variant(
        {'7': {f'{t:04d}': {'keypoints': flat(ONE[0, t - 12])} for t in range(12, 18)}}, ONE, 12
    ),
    'mmpose video': variant(numbered(SWAPPING, 4), SWAPPING, 4),
    'mmpose video with gaps': variant(
        [{'frame_id': 100, 'instances': []}, *numbered(ONE[:, 2:], 102)], ONE * LATER, 100
    ),
    'mmpose names': variant({'meta_info': META, 'instance_info': numbered(REVERSED)}),
    'mmpose h36m by name': variant(
        {'meta_info': {'keypoint_names': list(LAYOUTS['h36m17'])}, 'instance_info': numbered(in_layout(TWO, 'h36m17'))},
        TWO * H36M_SHARED,
    ),
    'mmpose predictions of images': variant([{'predictions': f} for f in frames(TWO, mmpose)]),
    'mmpose batches': variant([{'predictions': frames(TWO, mmpose)[t : t + 4]} for t in (0, 4)]),
    'mmpose one batch': variant({'predictions': [[], [], *frames(ONE[:, 2:], mmpose)]}, ONE * LATER),
    'mmpose batches of lists': variant([frames(TWO, mmpose)[t : t + 3] for t in (0, 3)]),
    'mmpose 0.x': variant(frames(TWO, lambda m, pose: {'bbox': [0], 'keypoints': pose.tolist()})),
    'ultralytics texts': variant([json.dumps(f) for f in frames(TWO, ultralytics)]),
    'ultralytics a line each': variant('\n'.join(json.dumps(f) for f in frames(TWO, ultralytics))),
    'ultralytics shares': variant(frames(SHARES, ultralytics), **SHAPE),
    'ultralytics without persons': variant([[], [], *frames(ONE[:, 2:], ultralytics)], ONE * LATER),
    'ultralytics by image': variant(
        {f'frame_{t + 1:03d}.jpg': json.dumps(f) for t, f in enumerate(frames(TWO, ultralytics))}, first=1
    ),
    'mmpose by image': variant({f'frame_{t + 1:03d}.jpg': f for t, f in enumerate(frames(TWO, mmpose))}, first=1),
    'mediapipe with gaps': variant([None, [], *frames(SHARES[:1, 2:], landmarks)], ONE * LATER, **SHAPE),
    'mediapipe persons': variant(frames(SHARES, landmarks), **SHAPE),
    'mediapipe frames': variant(loop('pose_landmarks', 5), ONE, 5, **SHAPE),
    'mediapipe MessageToDict': variant(
        [
            {'pose_landmarks': {'landmark': entry['landmarks']}, 'pose_world_landmarks': {'landmark': [1]}}
            for entry in loop('landmarks')
        ],
        ONE,
        **SHAPE,
    ),
    'mediapipe by joint name': variant(
        [
            {'frame': entry['frame']} | dict(zip(BLAZEPOSE, entry['landmarks'], strict=True))
            for entry in loop('landmarks', 3)
        ],
        ONE,
        3,
        **SHAPE,
    ),
    'mediapipe by number': variant({str(e['frame']): e['landmarks'] for e in loop('landmarks')}, ONE, **SHAPE),
    'mediapipe in a loop': variant({'fps': 30, 'frames': loop('landmarks', 5, world_landmarks=[1])}, ONE, 5, **SHAPE),
    'mediapipe csv with persons': variant(
        table(SHARES, 'person;frame;landmark;x;y;z;visibility', lambda t, m, v, x, y, s: f'{m};{t};{v};{x};{y};0;{s}'),
        **SHAPE,
    ),
    'mediapipe csv of names': variant(
        table(SHARES[:1], 'Timestamp,Name,Y,X', lambda t, m, v, x, y, s: f'{t / 30},{BLAZEPOSE[v].upper()},{y},{x}'),
        ONE,
        **SHAPE,
    ),
    'mediapipe csv by columns': variant(wide(SHARES, lambda v: (f'x{v + 1}', f'y{v + 1}', f'v{v + 1}')), ONE, **SHAPE),
    'mediapipe csv by names': variant(
        wide(SHARES, lambda v: [f'{BLAZEPOSE[v]}_{column}' for column in ('x', 'y', 'visibility')]), ONE, **SHAPE
    ),
    'mediapipe csv of images': variant(
        table(SHARES[:1], 'image,landmark,x,y', lambda t, m, v, x, y, s: f'f_{t + 4}.jpg,{v},{x},{y}'), ONE, 4, **SHAPE
    ),
    'mediapipe csv without frames': variant(
        table(SHARES[:1], 'landmark,x,y', lambda t, m, v, x, y, s: f'{v},{x},{y}'), ONE, **SHAPE
    ),
    'coco tracked': variant(coco(TWO)),
    'coco players': variant(
        coco(TWO) | {'annotations': coco(TWO)['annotations'][18:], 'categories': [{'id': 0, 'name': 'person'}]}
    ),
    'coco untracked': variant(coco(TWO, track=False)),
    'coco names': variant(coco(TWO, NAMES)),
    'coco names of Roboflow': variant(coco(TWO, file=lambda t: f'v_{t:03d}_jpg.rf.{"0a1b2c"[t:] * 2}.jpg')),
    'coco results': variant(
        [{'image_id': t, 'category_id': 1, 'keypoints': flat(ONE[0, t]), 'score': 0.9} for t in range(6)], ONE
    ),
    'kinetics-skeleton': variant(kinetics(SHARES), first=1, **SHAPE),
    'array in json': variant(TWO.tolist()),
    'array of 132 numbers': variant(in_layout(ONE, 'blazepose33')[0][..., [0, 1, 2, 2]].reshape(6, 132).tolist(), ONE),
    'array of x, y, z and visibility': variant(in_layout(ONE, 'blazepose33')[0][..., [0, 1, 2, 2]].tolist(), ONE),
}


@pytest.mark.parametrize('name', VARIANTS)
def test_variants_are_read_accurately(name, tmp_path):
    content, expected, first, arguments = VARIANTS[name]
    path = tmp_path / 'clip.file'
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    [found] = read_keypoint_file(path, **arguments)
    assert found['keypoint'].shape == expected[..., :2].shape
    x = np.where(found['keypoint_score'] > 0, found['keypoint'][..., 0], np.nan)
    order = np.argsort(np.nanmean(x, axis=(1, 2)), kind='stable')  # from left to right
    there = expected[..., 2:] > 0
    np.testing.assert_allclose(found['keypoint'][order], expected[..., :2] * there, atol=0.01)
    np.testing.assert_array_equal(found['keypoint_score'][order] > 0, there[..., 0])
    assert found['keypoint'].dtype == found['keypoint_score'].dtype == np.float32
    assert (found['first_frame'], found['frame_dir'], found['persons_left_out']) == (first, 'clip', 0)
    assert found['label'] == (4 if name == 'kinetics-skeleton' else 0)
    assert found['img_shape_known'] is (found['img_shape'] == IMG_SHAPE)
    assert check_annotation(found, 'it')['img_shape'] == found['original_shape']


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])  # PowerShell's > writes UTF-16
def test_text_with_a_byte_order_mark_is_read(encoding, tmp_path):
    for name in ('ultralytics a line each', 'mmpose video', 'mediapipe csv of images'):
        content, expected, _, arguments = VARIANTS[name]
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / 'x').write_text(text, encoding)
        assert read_keypoint_file(tmp_path / 'x', **arguments)[0]['keypoint'].shape == expected[..., :2].shape


SPELLINGS = {
    'LHip': lambda side, part: side[:1].upper() + part.title(),
    'lhip': lambda side, part: side[:1] + part,
    'lefthip': lambda side, part: side + part,
    'HIP_LEFT': lambda side, part: f'{part}_{side}'.upper(),
    'L. Hip': lambda side, part: f'{side[:1]}. {part}'.title(),
    'hipL': lambda side, part: part + side[:1].upper(),
}


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_spellings_of_joint_names(spelling, tmp_path):
    content = coco(TWO, NAMES)
    content['categories'][0]['keypoints'] = [
        SPELLINGS[spelling](side, part) for side, _, part in (name.rpartition('_') for name in NAMES)
    ]
    (tmp_path / 'x.json').write_text(json.dumps(content))
    [found] = read_keypoint_file(tmp_path / 'x.json')
    np.testing.assert_allclose(found['keypoint'], TWO[..., :2], atol=0.01)


@pytest.mark.parametrize('names', [[f'kpt-{i}' for i in range(17)], NAMES[:5], NAMES[:5] * 3 + ['a', 'b']])
def test_unknown_joint_names_need_a_layout(names, tmp_path):
    """The order of the joints is unknown, though there are 17."""
    content = coco(TWO)
    content['categories'][0]['keypoints'] = names
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=f'{names[0]}.*--layout'):
        read_keypoint_file(tmp_path / 'x.json')
    assert read_keypoint_file(tmp_path / 'x.json', 'coco17')[0]['keypoint'].shape == (2, 6, 17, 2)


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('numbers_after', [0, 1])
@pytest.mark.parametrize('box', [None, 0, 1, 2])
def test_label_folders_of_ultralytics(size, numbers_after, box, tmp_path):
    """With and without scores, tracks and boxes; frames without persons have only a box, an empty file or no file."""
    for t in (1, 2, 5):
        lines = [label_line(m, SHARES[m, t, :, :size]) for m in range(2)]
        lines = lines if numbers_after else [line.rsplit(' ', 1)[0] for line in lines]
        if box is not None:
            lines.insert(box, '0 .5 .5 .1 .2')
            (tmp_path / 'clip_13.txt').write_text('1 .5 .5 .1 .2 .9 3')
        (tmp_path / f'clip_{t + 10}.txt').write_text('\n'.join(lines) + '\n')
    (tmp_path / 'clip_14.txt').write_text('')
    (tmp_path / '.DS_Store').write_bytes(b'\0')
    [found] = read_keypoint_file(tmp_path, img_shape=IMG_SHAPE)
    np.testing.assert_allclose(found['keypoint'][:, [0, 1, 4]], TWO[:, [1, 2, 5], :, :2], atol=0.01)
    assert not found['keypoint'][:, [2, 3]].any()
    assert found['first_frame'] == 11


@pytest.mark.parametrize('content', ['{}', '[]', '{"a": []}'])
def test_a_file_with_empty_content_is_refused(tmp_path, content):
    path = tmp_path / 'clip.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=rf'{re.escape(str(path))} (has no person|is in no supported format)'):
        read_keypoint_file(path)


def test_empty_files_at_the_start_of_a_folder_are_frames_without_persons(tmp_path):
    (tmp_path / 'v_4.json').write_text('[]')
    for t in (5, 6):
        (tmp_path / f'v_{t}.json').write_text(json.dumps([ultralytics(0, ONE[0, t])] if t < 6 else []))
    [found] = read_keypoint_file(tmp_path)
    np.testing.assert_array_equal(found['keypoint_score'].any(axis=(0, 2)), [False, True, False])
    assert (found['first_frame'], found['source']) == (4, 'Ultralytics (coco17)')


def test_other_files_in_a_folder_of_frames_are_skipped(tmp_path, caplog):
    for t in range(3):
        (tmp_path / f'v_{t}.txt').write_text(label_line(0, SHARES[0, t]))
    (tmp_path / 'classes.txt').write_text('person\n')
    [found] = read_keypoint_file(tmp_path, img_shape=IMG_SHAPE)
    np.testing.assert_allclose(found['keypoint'], ONE[:, :3, :, :2], atol=0.01)
    assert 'classes.txt is not a frame and is skipped' in caplog.text
    (tmp_path / 'v_3.txt').write_text('person\n')  # perhaps a damaged frame
    with pytest.raises(UserError, match=r'v_3\.txt is in no supported format.* move it'):
        read_keypoint_file(tmp_path, img_shape=IMG_SHAPE)
    for file in tmp_path.glob('v_*'):
        file.unlink()
    with pytest.raises(UserError, match=r'classes\.txt is in no supported format'):
        read_keypoint_file(tmp_path)


def test_joints_at_the_origin_are_missing(tmp_path):
    """Ultralytics sets uncertain joints to (0, 0) and keeps their score."""
    joints = ONE.copy()
    joints[0, 2, 5, :2] = 0
    (tmp_path / 'x.json').write_text(json.dumps(frames(joints, ultralytics)))
    [found] = read_keypoint_file(tmp_path / 'x.json')
    assert np.argwhere(found['keypoint_score'] == 0).tolist() == [[0, 2, 5]]


@pytest.mark.parametrize('shared', ['mid_hip', None])
def test_halves_of_a_body_are_joined(shared, tmp_path):
    """The halves share a joint, or have joints at the same position."""
    whole = in_layout(ONE, 'body25')[0]
    low = np.array([name.endswith(('hip', 'knee', 'ankle')) for name in LAYOUTS['body25']])
    middle = LAYOUTS['body25'].index('mid_hip')
    for t in range(6):
        upper, lower = whole[t] * ~low[:, None], whole[t] * low[:, None]
        if shared:
            upper[middle] = whole[t, middle]
        else:
            lower[middle] = 0
            upper[1] = lower[LAYOUTS['body25'].index('left_hip')]  # the neck, missing in COCO
        people = [{'pose_keypoints_2d': flat(half)} for half in (upper, lower)]
        (tmp_path / f'v_{t}_keypoints.json').write_text(json.dumps({'people': people}))
    [found] = read_keypoint_file(tmp_path)
    np.testing.assert_allclose(found['keypoint'], ONE[..., :2], atol=0.01)


@pytest.mark.parametrize('layout', ['h36m17', 'body25b', 'ntu25'])
@pytest.mark.parametrize('turn', [0, 90])
def test_a_clearly_better_layout_is_named(layout, turn, tmp_path):
    """Persons lying down are read in the given layout."""
    turned = TWO.copy()
    if turn:
        turned[..., :2] = TWO[..., 1::-1]
    joints = in_layout(turned, layout)
    for name, is_read in ((layout, False), ('coco17', True)):
        points = joints if name == layout else turned
        (tmp_path / 'x.json').write_text(json.dumps(alphapose(points, lambda m, t: m)))
        if is_read:
            assert read_keypoint_file(tmp_path / 'x.json')[0]['keypoint'].shape == (2, 6, 17, 2)
        elif not turn:
            with pytest.raises(UserError, match=f'--layout .*{layout}'):
                read_keypoint_file(tmp_path / 'x.json')
        assert read_keypoint_file(tmp_path / 'x.json', name)[0]['keypoint'].shape == (2, 6, 17, 2)


NUMBERED = {  # names: numbers, or part of the message
    'v_3.jpg v_4.jpg v_7.jpg': [3, 4, 7],
    '9.jpg 10.jpg 11.jpg': [9, 10, 11],
    'a_0001_v2.jpg a_0002_v3.jpg a_0004_v2.jpg': [1, 2, 4],
    '10_00_58.5.png 10_00_59.25.png 10_01_00.0.png': [0, 1, 2],
    't_0033.jpg t_0066.jpg t_0100.jpg': [0, 1, 2],
    'frame30.jpg frame60.jpg frame120.jpg frame150.jpg': [30, 60, 120, 150],
    'frame0.jpg frame100.jpg': [0, 100],
    't=0.0000.jpg t=0.0333.jpg t=0.0666.jpg t=0.0999.jpg': [0, 1, 2, 3],
    'clip_0_0 clip_0_1 clip_1_0 clip_1_1': [0, 1, 2, 3],
    'T10.png T10.25.png T10.5.png': [0, 1, 2],
    'IMG_20200102_100058.jpg IMG_20200102_100059.jpg IMG_20200102_100100.jpg': [0, 1, 2],
    'IMG_20200102_100058_BURST003.jpg IMG_20200102_100058_BURST004.jpg': [3, 4],
    '1583242342.1.jpg 1583242342.25.jpg 1583242343.0.jpg': [0, 1, 2],
    'v1/001.jpg v1/002.jpg v2/001.jpg v2/002.jpg': 'several videos',
    'b.jpg a.jpg c.jpg': [1, 0, 2],
    'v_1.jpg v_2.jpg w_1.jpg': 'several videos',
    'v_1 v_2 camera': 'several videos',
    '1.jpg 01.jpg': 'same number',
    'a\nb x': [0, 1],
}


@pytest.mark.parametrize('names', NUMBERED)
def test_frame_numbers(names):
    expected = NUMBERED[names]
    if isinstance(expected, str):
        with pytest.raises(UserError, match=f'here .*{expected}'):
            frame_numbers(names.split(' '), 'here')
    else:
        numbers, note = frame_numbers(names.split(' '), 'here')
        assert [numbers[name] for name in names.split(' ')] == expected
        assert ('counted as frames of one video' in note) is (sorted(expected) == list(range(len(expected))))


@pytest.mark.parametrize('step', [1, 2, 100])
def test_untracked_persons_of_every_nth_frame_are_tracked(step, tmp_path):
    content = alphapose(TWO, lambda m, t: None, lambda t: f'frame{(t + 1) * step}.jpg')
    (tmp_path / 'x.json').write_text(json.dumps(content))
    [found] = read_keypoint_file(tmp_path / 'x.json')
    assert (found['keypoint'].shape, found['first_frame']) == ((2, 5 * step + 1, 17, 2), step)
    np.testing.assert_allclose(found['keypoint'][:, ::step], TWO[..., :2], atol=0.01)
    assert found['keypoint_score'].any(axis=(0, 2)).sum() == 6


# --- random changes -----------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)
JSON_VARIANTS = [content for content, *_ in VARIANTS.values() if not isinstance(content, str)]
TEXT_VARIANTS = [content for content, *_ in VARIANTS.values() if isinstance(content, str)]


def places(content: object) -> list[tuple[object, object]]:
    """(container, key) of all nested items."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in items for place in [(content, key), *places(value)]]


def read_or_refused(path: Path) -> None:
    for arguments in ({}, SHAPE):
        try:
            for annotation in read_keypoint_file(path, **arguments):
                assert np.isfinite(annotation['keypoint']).all()
                assert annotation['keypoint'].shape[1] == annotation['total_frames'] > 0
        except UserError as error:
            message = str(error)
        else:
            continue
        assert '\n' not in message
        assert path.name in message


@given(
    variant=st.integers(0, len(JSON_VARIANTS) - 1),
    changes=st.lists(st.tuples(st.floats(0, 1), SCALARS, st.booleans()), max_size=3),
)
def test_changed_json_is_read_or_refused_in_one_line(variant, changes, tmp_path):
    content = copy.deepcopy(JSON_VARIANTS[variant])
    for share, value, is_removed in changes:
        inside = places(content)
        if inside:
            container, key = inside[int(share * (len(inside) - 1))]
            container[key] = value
            if is_removed:
                del container[key]
    (tmp_path / 'x.json').write_text(json.dumps(content))
    read_or_refused(tmp_path / 'x.json')


@given(data=st.data())
def test_changed_text_is_read_or_refused_in_one_line(data, tmp_path):
    skeleton = (Path(__file__).parent / 'cases' / 'ntu_skeleton_raw' / 'S001C001P001R001A008.skeleton').read_text()
    label = '\n'.join(label_line(m, SHARES[m, 0]) for m in range(2))
    parts = re.split(r'(\W)', data.draw(st.sampled_from([*TEXT_VARIANTS, skeleton, label])))
    for _ in range(data.draw(st.integers(0, 3))):
        parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(st.text(max_size=3) | st.integers().map(str))
    (tmp_path / 'x.txt').write_text(''.join(parts))
    read_or_refused(tmp_path / 'x.txt')
