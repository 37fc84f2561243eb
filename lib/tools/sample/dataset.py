"""The generated dataset: performances in front of three cameras, detection errors, splits, files."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.data.classes import NTU60
from lib.data.pickles import save_annotations
from lib.files import make_folder, write_text
from lib.tools.sample.actions import (
    ACTIONS,
    Action,
    perform,
)
from lib.tools.sample.figures import (
    LEFT_EAR,
    LEFT_EYE,
    NOSE,
    NUM_KINECT_JOINTS,
    RIGHT_EAR,
    RIGHT_EYE,
    make_person,
    smooth_noise,
    unit,
    yaw,
)

IMAGE_SHAPE = (1080, 1920)  # px, height and width
FOCAL_LENGTH = 1060.0  # px, about that of a Kinect v2
PERSONS = range(1, 41)
XSUB_TRAIN_PERSONS = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
XVIEW_TRAIN_CAMERAS = (2, 3)
CAMERA_ANGLES = {1: -np.pi / 4, 2: 0.0, 3: np.pi / 4}  # about the vertical axis, seen from the stage
NUM_SETUPS = 17
FILES_PERSONS, FILES_CAMERA = (1, 8, 17, 25, 3, 12, 21, 30), 2  # of the clips written by --files
ACTIONS_LEFT_OUT = 2  # per person, to keep the dataset small
# Clip lengths in frames and their shares: below, within and above one to two times a clip_len of 48.
CLIP_LENGTHS = (((24, 47), 0.2), ((48, 95), 0.35), ((96, 200), 0.45))
COCO_POINTS = [NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR, 4, 8, 5, 9, 6, 10, 12, 16, 13, 17, 14, 18]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera facing the stage, with Kinect's axes: x to the left of the image, y up, z forward."""

    angle: float
    distance: float  # m, from the stage's middle
    height: float  # m, above the floor
    aim: float  # m, height of the point it faces

    def view(self, points: np.ndarray) -> np.ndarray:
        """World (..., 3) to camera frame (..., 3), both in metres."""
        position = np.array([self.distance * np.sin(self.angle), self.height, self.distance * np.cos(self.angle)])
        forward = unit(np.array([0, self.aim, 0]) - position)
        left = unit(np.cross([0.0, 1.0, 0.0], forward))
        return (points - position) @ np.stack([left, np.cross(forward, left), forward]).T


def project(points: np.ndarray) -> np.ndarray:
    """Camera frame (..., 3) in metres to pixels (..., 2), x to the right and y down from the upper left corner."""
    height, width = IMAGE_SHAPE
    return (width / 2, height / 2) - FOCAL_LENGTH * points[..., :2] / points[..., 2:]


# ---------------------------------------------------------------------------------------- what sensors see
CAPSULES = (  # body parts that cause occlusion: two points and a radius in metres
    (0, 20, 0.13), (3, 3, 0.10), (12, 13, 0.07), (16, 17, 0.07), (13, 14, 0.05), (17, 18, 0.05),
    (5, 6, 0.04), (9, 10, 0.04),
)  # fmt: skip
BEHIND = 0.06  # m, minimum depth of a point behind a body part


def hidden(points: np.ndarray) -> np.ndarray:
    """Occlusion (M, T, 30), 0 to 1, of camera-frame points (M, T, 30, 3) by any person's body parts."""
    depth = points[..., 2].astype(np.float32)
    x, y = (points[..., axis].astype(np.float32) / depth for axis in (0, 1))  # on an image plane at 1 m
    result = np.zeros_like(depth)
    for figure in range(len(points)):
        for start, end, radius in CAPSULES:
            ax, ay, near = (a[figure, :, start, None] for a in (x, y, depth))
            bx, by, far = (a[figure, :, end, None] - b for a, b in ((x, ax), (y, ay), (depth, near)))
            along = ((x - ax) * bx + (y - ay) * by) / np.maximum(bx**2 + by**2, 1e-6)
            along = np.clip(along, 0, 1)
            part_depth = near + along * far
            gap = np.sqrt((x - ax - along * bx) ** 2 + (y - ay - along * by) ** 2) * part_depth
            covered = np.clip((1.2 * radius - gap) / (0.4 * radius), 0, 1)
            result = np.maximum(result, covered * np.clip((depth - part_depth - BEHIND) / 0.05, 0, 1))
    return result


def gone(rng: np.random.Generator, shape: tuple[int, ...], chance: float) -> np.ndarray:
    """Bool (M, T, ...): a gap of 2 to 10 frames along T with probability `chance`, not in the first frame."""
    num_frames = shape[1]
    series = (shape[0], 1, *shape[2:])
    begin = rng.integers(1, num_frames, series)
    end = begin + rng.integers(2, 11, series) * (rng.random(series) < chance)
    frame = np.arange(num_frames).reshape(1, -1, *[1] * (len(shape) - 2))
    return (begin <= frame) & (frame < end)


def detect_2d(points: np.ndarray, covered: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Camera-frame points (M, T, 30, 3) as a pose estimator reports them: pixels (M, T, 17, 2), scores (M, T, 17).

    covered: (M, T, 30) from `hidden`.
    """
    pixels, covered = project(points[:, :, COCO_POINTS]), covered[:, :, COCO_POINTS]
    num_persons, num_frames = pixels.shape[:2]
    size = np.ptp(pixels[..., 1], axis=2)[..., None]  # px, the person's height in the image
    drift = smooth_noise(rng, num_frames, (num_persons, 17, 2), 12).swapaxes(0, 1)
    error = 0.005 * drift + 0.003 * rng.normal(size=pixels.shape)
    pixels = pixels + error * size[..., None] * (1 + 4 * covered[..., None])

    drift = smooth_noise(rng, num_frames, (num_persons, 17), 10).swapaxes(0, 1)
    scores = 0.93 - 0.43 * covered + (0.02 + 0.08 * covered) * drift + 0.015 * rng.normal(size=covered.shape)
    spike = rng.random(scores.shape) < 0.002 + 0.01 * covered
    pixels = pixels + spike[..., None] * 0.12 * size[..., None] * rng.normal(size=pixels.shape)
    scores = np.where(spike, rng.uniform(0.1, 0.45, scores.shape), scores).clip(0.05, 0.99)

    missing = gone(rng, scores.shape, 0.01) | gone(rng, (num_persons, num_frames, 1), 0.05)
    return np.where(missing[..., None], 0, pixels), np.where(missing, 0, scores)


def detect_3d(points: np.ndarray, covered: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Camera-frame points (M, T, 30, 3) as a Kinect reports them: joints (M, T, 25, 3) in metres."""
    joints, covered = points[:, :, :NUM_KINECT_JOINTS], covered[:, :, :NUM_KINECT_JOINTS, None]
    num_persons, num_frames = joints.shape[:2]
    drift = smooth_noise(rng, num_frames, (num_persons, NUM_KINECT_JOINTS, 3), 15).swapaxes(0, 1)
    joints = joints + (0.008 * drift + 0.003 * rng.normal(size=joints.shape)) * (1 + 4 * covered)
    return np.where(gone(rng, (num_persons, num_frames, 1), 0.02)[..., None], 0, joints)


# ---------------------------------------------------------------------------------------- the set
def draw_length(rng: np.random.Generator) -> int:
    ranges, chances = zip(*CLIP_LENGTHS, strict=True)
    low, high = ranges[rng.choice(len(ranges), p=chances)]
    return int(rng.integers(low, high + 1))


def make_cameras(setup: int, seed: int) -> dict[int, Camera]:
    """The three cameras of one setup: same height and distance, about NTU's angles."""
    rng = np.random.default_rng([seed, 1, setup])
    distance, height, aim = rng.uniform(3.0, 4.3), rng.uniform(1.1, 2.1), rng.uniform(0.75, 0.95)
    return {
        number: Camera(angle + rng.normal(0, 0.06), distance + rng.normal(0, 0.1), height + rng.normal(0, 0.05), aim)
        for number, angle in CAMERA_ANGLES.items()
    }


def record(person: int, action: Action, seed: int) -> Iterable[tuple[dict, dict]]:
    """The 2D and the 3D annotation of each camera's view of one performance. A function of its arguments."""
    rng = np.random.default_rng([seed, 2, person, action.number])
    cast = [make_person(np.random.default_rng([seed, 3, person]))]
    if action.distance is not None:  # a partner beyond the 40 persons, so that no body is in both splits
        cast.append(make_person(rng))
    num_frames, replication = draw_length(rng), int(rng.integers(1, 3))
    setup = 1 + (person - 1) * NUM_SETUPS // len(PERSONS)

    # Replication 1 faces the left camera, replication 2 the right one.
    heading = CAMERA_ANGLES[1 if replication == 1 else 3] + rng.normal(0, 0.15)
    world = perform(action, cast, num_frames, rng) @ yaw(heading).T
    for camera_number, camera in make_cameras(setup, seed).items():
        points = camera.view(world)[rng.permutation(len(cast))]
        covered = hidden(points)
        pixels, scores = detect_2d(points, covered, rng)
        clip = {
            'frame_dir': f'S{setup:03d}C{camera_number:03d}P{person:03d}R{replication:03d}A{action.number:03d}',
            'label': action.number - 1,
            'total_frames': num_frames,
        }
        shapes = {'img_shape': IMAGE_SHAPE, 'original_shape': IMAGE_SHAPE}
        keypoint = {'keypoint': pixels.astype(np.float16), 'keypoint_score': scores.astype(np.float16)}
        yield {**clip, **shapes, **keypoint}, {**clip, 'keypoint': detect_3d(points, covered, rng).astype(np.float16)}


def make_splits(clips: list[tuple[str, int, int]]) -> dict[str, list[str]]:
    """NTU60's cross-subject and cross-view splits of clips (frame_dir, person, camera)."""
    return {
        'xsub_train': [name for name, person, _ in clips if person in XSUB_TRAIN_PERSONS],
        'xsub_val': [name for name, person, _ in clips if person not in XSUB_TRAIN_PERSONS],
        'xview_train': [name for name, _, camera in clips if camera in XVIEW_TRAIN_CAMERAS],
        'xview_val': [name for name, _, camera in clips if camera not in XVIEW_TRAIN_CAMERAS],
    }


def make_sample(seed: int = 0, persons: Iterable[int] = PERSONS) -> tuple[dict, dict]:
    """Contents of the 2D and of the 3D pickle: {'split': {name: [frame_dir]}, 'annotations': [dict]}.

    persons: of 1 to 40; a person's clips do not depend on the others.
    """
    pairs, clips = [], []
    for person in persons:
        for index, action in enumerate(ACTIONS):
            if (index + person * ACTIONS_LEFT_OUT) % len(ACTIONS) < ACTIONS_LEFT_OUT:
                continue
            for pair in record(person, action, seed):
                name = pair[0]['frame_dir']
                pairs.append(pair)
                clips.append((name, person, int(name[5:8])))
    two, three = ([pair[i] for pair in pairs] for i in range(2))
    return {'split': make_splits(clips), 'annotations': two}, {'split': make_splits(clips), 'annotations': three}


def write_sample(out: Path, seed: int = 0, persons: Iterable[int] = PERSONS) -> dict[Path, dict]:
    """Writes both pickles into the folder `out`; returns the content of each file. Raises UserError if that fails."""
    make_folder(out)
    written = {}
    for name, content in zip(('sample_hrnet.pkl', 'sample_3danno.pkl'), make_sample(seed, persons), strict=True):
        save_annotations(out / name, **content)
        written[out / name] = content
    return written


def mmpose_video(clip: dict) -> list[dict]:
    """A 2D annotation as MMPose's JSON of a video: the persons of each frame, without identities.

    Pixels have one decimal, scores three. Persons without a joint in a frame are left out of it.
    """
    keypoint = clip['keypoint'].astype(float).round(1)  # (M, T, V, 2)
    score = clip['keypoint_score'].astype(float).round(3)
    frames = []
    for t in range(clip['total_frames']):
        instances = []
        for points, scores in zip(keypoint[:, t], score[:, t], strict=True):
            found = points[scores > 0]
            if len(found):
                box = [*found.min(axis=0).tolist(), *found.max(axis=0).tolist()]
                seen = {'bbox': [box], 'bbox_score': round(float(scores.max()), 3)}
                instances.append({'keypoints': points.tolist(), 'keypoint_scores': scores.tolist(), **seen})
        frames.append({'frame_id': t, 'instances': instances})
    return frames


def write_files(folder: Path, content: dict) -> int:
    """Writes clips of some persons, seen by one camera, as MMPose's JSON files, and labels.csv; returns their number.

    content: of the 2D pickle. Raises UserError if the folder cannot be written.
    """
    make_folder(folder)
    train, rows = set(content['split']['xsub_train']), []
    for clip in content['annotations']:
        name = clip['frame_dir']
        if int(name[9:12]) in FILES_PERSONS and int(name[5:8]) == FILES_CAMERA:
            write_text(folder / f'{name}.json', json.dumps(mmpose_video(clip), separators=(',', ':')))
            rows.append((f'{name}.json', NTU60[clip['label']], 'train' if name in train else 'val'))
    table = io.StringIO(newline='')
    csv.writer(table, lineterminator='\n').writerows([('file', 'label', 'split'), *rows])
    write_text(folder / 'labels.csv', table.getvalue())
    return len(rows)
