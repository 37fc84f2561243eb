"""Generates a small action set in the form of PYSKL's NTU60 pickles, to try the whole project without NTU60.

    python -m lib.data.sample --out data/action
    python -m lib.data.sample --out data/action --files data/action/sample_files

The second command writes some of the clips once more, as users have theirs: a JSON file each, as MMPose writes it of a
video, and labels.csv, from which `python -m lib.tools.make_pickle` makes a pickle.

Articulated figures of 40 persons perform 14 actions of NTU60 in front of three cameras. The way from an idea to a clip:
an action gives keys (a few poses and when they occur) -> `interpolate` gives a pose for every frame -> `figure_joints`
gives joints in space (inverse kinematics puts hands and feet where the pose wants them) -> `Camera` gives pixels ->
`detect_2d` and `detect_3d` add what a pose estimator and a Kinect get wrong.

Axes are right-handed: x to the figure's left, y up, z forward. Lengths are metres, angles radians, times seconds.
Letters: M persons, T frames, K keys. A figure has 30 points: the 25 Kinect joints, then nose, eyes and ears.
"""

import argparse
import csv
import io
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib.data.classes import NTU60
from lib.data.skeletons import NTU25
from lib.files import write_text

FPS = 30
IMAGE_SHAPE = (1080, 1920)  # px, height and width
FOCAL_LENGTH = 1060.0  # px, about that of a Kinect v2
PERSONS = range(1, 41)
XSUB_TRAIN_PERSONS = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
XVIEW_TRAIN_CAMERAS = (2, 3)
CAMERA_ANGLES = {1: -np.pi / 4, 2: 0.0, 3: np.pi / 4}  # about the vertical axis, seen from the stage
NUM_SETUPS = 17
FILES_PERSONS, FILES_CAMERA = (1, 8, 17, 25, 3, 12, 21, 30), 2  # whose clips --files writes, of which view
ACTIONS_LEFT_OUT = 2  # by each person, in turn: keeps the set small

# Clip lengths in frames and how often each range occurs: below, within and above one to two times a clip_len of 48.
CLIP_LENGTHS = (((24, 47), 0.2), ((48, 95), 0.35), ((96, 200), 0.45))
MAX_HURRY = 1.7  # a clip too short for its action is played up to this much faster; what is left is cut off

NUM_KINECT_JOINTS = len(NTU25.joints)
NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = range(NUM_KINECT_JOINTS, NUM_KINECT_JOINTS + 5)
COCO_POINTS = [NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR, 4, 8, 5, 9, 6, 10, 12, 16, 13, 17, 14, 18]
MIRROR_ORDER = [*NTU25.flip_order, NOSE, RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR]


# ---------------------------------------------------------------------------------------- persons
@dataclass(frozen=True)
class Person:
    """A body and the manner in which it moves. Lengths in metres, angles in radians."""

    height: float
    arm: float  # shoulder to wrist
    leg: float  # hip to ankle
    trunk: float  # spine base to the shoulders' line
    shoulder: float  # half the width
    hip: float  # half the width
    stance: float  # how far each foot stands out, in leg lengths
    tempo: float
    amplitude: float
    left_handed: bool
    lean: float  # the usual posture
    nod: float
    hand_offset: np.ndarray  # (2, 3) where the hands hang, in arm lengths


def make_person(rng: np.random.Generator) -> Person:
    height = rng.uniform(1.52, 1.90)
    return Person(
        height=height,
        arm=height * rng.normal(0.320, 0.010),
        leg=height * rng.normal(0.490, 0.012),
        trunk=height * rng.normal(0.285, 0.008),
        shoulder=height * rng.normal(0.105, 0.006),
        hip=height * rng.normal(0.048, 0.003),
        stance=rng.uniform(0.03, 0.11),
        tempo=rng.uniform(0.8, 1.25),
        amplitude=rng.uniform(0.75, 1.2),
        left_handed=bool(rng.random() < 0.15),
        lean=rng.normal(0.03, 0.05),
        nod=rng.normal(0.08, 0.08),
        hand_offset=rng.normal(0, [0.04, 0.02, 0.05], (2, 3)),
    )


# ---------------------------------------------------------------------------------------- poses over time
# A pose is a value for each channel. `hand` and `foot` are those of the favoured side; a left-handed figure is mirrored
# as a whole at the end, so actions are written for the right hand.
#   hand, other_hand   wrist from between the shoulders, in the chest's frame: (outward, up, forward) in arm lengths
#   elbow, other_elbow 0: points down and back, 1: points outward
#   foot, other_foot   ankle from where it stands: (outward, up, forward) in leg lengths
#   pelvis             from where it is when standing: (left, up, forward) in leg lengths
#   lean, side, twist  of the chest: forward, to the right, to the left
#   nod, tilt, turn    of the head, the same on top of the chest's
#   travel, lift       metres by which the whole figure (walk) or figure and feet (jump) are moved forward and up
#   goal, goal_weight  a point in metres from where the figure starts (left, up, forward), and how far the hand obeys it
REST_HAND = (0.44, -1.0, 0.10)
STILL = (0.0, 0.0, 0.0)
REST = {
    'hand': REST_HAND, 'other_hand': REST_HAND, 'elbow': 0.0, 'other_elbow': 0.0,
    'foot': STILL, 'other_foot': STILL, 'pelvis': STILL,
    'lean': 0.0, 'side': 0.0, 'twist': 0.0, 'nod': 0.0, 'tilt': 0.0, 'turn': 0.0,
    'travel': 0.0, 'lift': 0.0, 'goal': STILL, 'goal_weight': 0.0,
}  # fmt: skip
SWAY = {  # standard deviation of the slow movement that never stops, in the channel's unit
    'hand': 0.015, 'other_hand': 0.015, 'pelvis': (0.015, 0.002, 0.010),
    'lean': 0.02, 'side': 0.015, 'twist': 0.04, 'nod': 0.05, 'tilt': 0.03, 'turn': 0.1,
}  # fmt: skip
SWAY_PERIOD = 0.8  # seconds

Key = tuple[float, float | tuple[float, float, float]]  # when, and the channel's value
Keys = dict[str, list[Key]]
Pose = dict[str, np.ndarray]  # channel -> (T, 1) or (T, 3)


def interpolate(keys: list[Key], times: np.ndarray) -> np.ndarray:
    """Values (T, C) at `times` (T,): a monotone cubic, which rests at turning points and glides through other keys.

    Before the first key and after the last the value stands still. (Fritsch and Butland's slopes.)
    """
    knots = np.array([time for time, _ in keys])
    values = np.array([value for _, value in keys], float).reshape(len(keys), -1)
    if len(keys) == 1:
        return np.broadcast_to(values, (len(times), values.shape[1]))
    step = np.diff(knots)[:, None]
    slope = np.diff(values, axis=0) / step
    product, total = slope[:-1] * slope[1:], slope[:-1] + slope[1:]
    tangent = np.zeros_like(values)
    np.divide(2 * product, total, out=tangent[1:-1], where=product > 0)

    times = np.clip(times, knots[0], knots[-1])
    i = np.clip(np.searchsorted(knots, times, side='right') - 1, 0, len(knots) - 2)
    u = ((times - knots[i])[:, None]) / step[i]
    start = values[i] * (1 + 2 * u) * (1 - u) ** 2 + tangent[i] * step[i] * u * (1 - u) ** 2
    return start + values[i + 1] * u**2 * (3 - 2 * u) + tangent[i + 1] * step[i] * u**2 * (u - 1)


def smooth_noise(rng: np.random.Generator, num_frames: int, shape: tuple[int, ...], period: float) -> np.ndarray:
    """Noise (num_frames, *shape) of mean 0 and variance 1 that changes over about `period` frames."""
    spacing = period / 2
    knots = np.arange(-2 * period, num_frames + 2 * period, spacing)
    weights = np.exp(-0.5 * ((np.arange(num_frames)[:, None] - knots) / spacing) ** 2)
    weights /= np.sqrt((weights**2).sum(1, keepdims=True))
    return np.tensordot(weights, rng.normal(size=(len(knots), *shape)), 1)


def make_pose(person: Person, keys: Keys, times: np.ndarray, rng: np.random.Generator) -> Pose:
    """The keys' movement at `times` (T,), with the person's posture and sway added."""
    pose = {name: interpolate(keys.get(name, [(0.0, rest)]), times) for name, rest in REST.items()}
    for name, size in SWAY.items():
        width = pose[name].shape[1]
        pose[name] = pose[name] + size * smooth_noise(rng, len(times), (width,), SWAY_PERIOD * FPS)
    for name, offset in zip(('hand', 'other_hand'), person.hand_offset, strict=True):
        hangs = np.clip(-0.6 - 1.6 * pose[name][:, 1:2], 0, 1)  # a hand that does something goes where it is needed
        pose[name] = pose[name] + hangs * offset
    pose['lean'] = pose['lean'] + person.lean
    pose['nod'] = pose['nod'] + person.nod
    return pose


# ---------------------------------------------------------------------------------------- poses to joints
ANKLE_HEIGHT = 0.045  # of the body's height
FACE = {  # points of the face from the head's middle, in body heights: (left, up, forward)
    NOSE: (0, -0.005, 0.058), LEFT_EYE: (0.018, 0.014, 0.046), RIGHT_EYE: (-0.018, 0.014, 0.046),
    LEFT_EAR: (0.042, 0.002, 0.0), RIGHT_EAR: (-0.042, 0.002, 0.0),
}  # fmt: skip


def rotation(pitch: np.ndarray, yaw: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """(T, 3, 3): forward by `pitch`, to the left by `yaw`, onto the right side by `roll`; each (T, 1)."""
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(a[:, 0]), np.sin(a[:, 0])) for a in (pitch, yaw, roll))
    rows = [
        [cy * cz + sy * sx * sz, sy * sx * cz - cy * sz, sy * cx],
        [cx * sz, cx * cz, -sx],
        [cy * sx * sz - sy * cz, sy * sz + cy * sx * cz, cy * cx],
    ]
    return np.array(rows).transpose(2, 0, 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def bend_limb(
    root: np.ndarray, target: np.ndarray, upper: float, lower: float, aside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Middle and end joint, each (T, 3), of a limb of two bones from `root` towards `target`, as far as it reaches.

    aside: (T, 3), the direction into which the middle joint gives way.
    """
    direction = unit(target - root)
    distance = np.linalg.norm(target - root, axis=-1, keepdims=True)
    distance = np.clip(distance, 0.35 * lower, 0.998 * (upper + lower))
    along = (upper**2 + distance**2 - lower**2) / (2 * distance)
    aside = unit(aside - (aside * direction).sum(-1, keepdims=True) * direction)
    middle = root + along * direction + np.sqrt(np.maximum(upper**2 - along**2, 0)) * aside
    return middle, root + distance * direction


def figure_joints(person: Person, pose: Pose) -> np.ndarray:
    """Points (T, 30, 3) of the figure, in metres from where it starts on the floor. Bone lengths never change."""
    height = person.height
    hips = rotation(0.6 * pose['lean'], 0.35 * pose['twist'], 0.3 * pose['side'])
    waist = rotation(0.85 * pose['lean'], 0.6 * pose['twist'], 0.6 * pose['side'])
    chest = rotation(pose['lean'], pose['twist'], pose['side'])
    # The neck takes back part of a deep bend, so that the eyes keep to the action.
    head = rotation(0.7 * pose['lean'] + pose['nod'], 0.6 * pose['twist'] + pose['turn'], pose['side'] + pose['tilt'])

    ankles = {'foot': stand(person, pose, 'foot', -1), 'other_foot': stand(person, pose, 'other_foot', 1)}
    base = pose['pelvis'] * person.leg + (0, ANKLE_HEIGHT * height + 0.993 * person.leg, 0)
    base = base + pose['lift'] * (0, 1, 0) + pose['travel'] * (0, 0, 1)
    base[:, 1] -= needed_drop(person, pose, base, hips, ankles)
    spine_mid = base + hips @ (0, 0.52 * person.trunk, 0)
    shoulders = spine_mid + waist @ (0, 0.48 * person.trunk, 0)
    neck = shoulders + chest @ (0, 0.045 * height, 0.005 * height)
    skull = neck + head @ (0, 0.080 * height, 0.010 * height)

    points = np.empty((len(base), NUM_KINECT_JOINTS + len(FACE), 3))
    points[:, [0, 1, 20, 2, 3]] = np.stack([base, spine_mid, shoulders, neck, skull], 1)
    for point, offset in FACE.items():
        points[:, point] = skull + head @ (height * np.array(offset))
    points[:, 12:16] = leg_joints(person, pose, 'other_foot', 1, base, hips, ankles['other_foot'])
    points[:, 16:20] = leg_joints(person, pose, 'foot', -1, base, hips, ankles['foot'])
    points[:, [4, 5, 6, 7, 21, 22]] = arm_joints(person, pose, 'other_hand', 1, shoulders, chest)
    points[:, [8, 9, 10, 11, 23, 24]] = arm_joints(person, pose, 'hand', -1, shoulders, chest)
    return points[:, MIRROR_ORDER] * (-1, 1, 1) if person.left_handed else points


def stand(person: Person, pose: Pose, foot: str, sign: int) -> np.ndarray:
    """Where the ankle (T, 3) of a foot is; sign: 1 on the left, -1 on the right."""
    standing = np.array([sign * (person.hip + person.stance * person.leg), ANKLE_HEIGHT * person.height, 0])
    return standing + pose[foot] * person.leg * (sign, 1, 1) + pose['lift'] * (0, 1, 0)


def needed_drop(
    person: Person, pose: Pose, base: np.ndarray, hips: np.ndarray, ankles: dict[str, np.ndarray]
) -> np.ndarray:
    """Metres (T,) by which the pelvis must sink for both standing feet to be within reach; raised feet do not count."""
    drops = []
    for foot, sign in (('foot', -1), ('other_foot', 1)):
        hip, ankle = base + hips @ (sign * person.hip, 0, 0), ankles[foot]
        across = ((hip - ankle)[:, [0, 2]] ** 2).sum(-1)
        highest = ankle[:, 1] + np.sqrt(np.maximum((0.996 * person.leg) ** 2 - across, 0.01))
        stands = 1 - np.clip(pose[foot][:, 1] / 0.12, 0, 1)
        drops.append(np.maximum(hip[:, 1] - highest, 0) * stands)
    return np.maximum(*drops)


def leg_joints(
    person: Person, pose: Pose, foot: str, sign: int, base: np.ndarray, hips: np.ndarray, ankle: np.ndarray
) -> np.ndarray:
    """Hip, knee, ankle and toes (T, 4, 3)."""
    hip, hinge = base + hips @ (sign * person.hip, 0, 0), hips @ (1, 0, -0.25 * sign)  # knees turn out a little
    knee, ankle = bend_limb(hip, ankle, 0.5 * person.leg, 0.5 * person.leg, np.cross(unit(ankle - hip), hinge))
    shin = unit(ankle - knee)
    flat, hanging = unit(np.array([0.25 * sign, -0.45, 1.0])), unit(np.cross(shin, hinge)) + 0.5 * shin
    raised = np.clip((pose[foot][:, 1:2] * person.leg + pose['lift']) / 0.15, 0, 1)
    toes = ankle + 0.085 * person.height * unit(flat * (1 - raised) + hanging * raised)
    return np.stack([hip, knee, ankle, toes], 1)


def arm_joints(
    person: Person, pose: Pose, name: str, sign: int, shoulders: np.ndarray, chest: np.ndarray
) -> np.ndarray:
    """Shoulder, elbow, wrist, hand, hand tip and thumb (T, 6, 3)."""
    shoulder = shoulders + chest @ (sign * person.shoulder, -0.015 * person.height, 0)
    target = shoulders + np.einsum('tij,tj->ti', chest, pose[name] * (sign, 1, 1)) * person.arm
    if name == 'hand':
        target = target + pose['goal_weight'] * (pose['goal'] - target)
    hanging, outward = chest @ (0.35 * sign, -1, -0.5), chest @ (sign, -0.2, 0)
    aside = hanging + pose[name.replace('hand', 'elbow')] * (outward - hanging)
    elbow, wrist = bend_limb(shoulder, target, 0.53 * person.arm, 0.47 * person.arm, aside)
    forearm, inward = unit(wrist - elbow), chest @ (-sign, 0.3, 0.3)
    inward = unit(inward - (inward * forearm).sum(-1, keepdims=True) * forearm)
    hand = wrist + 0.045 * person.height * forearm
    tip, thumb = hand + 0.045 * person.height * forearm, hand + 0.03 * person.height * inward
    return np.stack([shoulder, elbow, wrist, hand, tip, thumb], 1)


# ---------------------------------------------------------------------------------------- actions of one person
# Each takes the person and a generator and returns one repetition, starting at 0 s and ending as it began (except
# sitting down and standing up).
def drink(me: Person, rng: np.random.Generator) -> Keys:
    sip = rng.uniform(0.5, 1.2)
    return {
        'hand': [
            (0, REST_HAND), (0.35, (0.36, -0.55, 0.45)), (0.8, (0.20, 0.10, 0.37)), (1.0, (0.18, 0.18, 0.32)),
            (1.0 + sip, (0.17, 0.24, 0.31)), (1.3 + sip, (0.20, 0.08, 0.40)), (2.0 + sip, REST_HAND),
        ],
        'elbow': [(0, 0), (0.8, 0.25), (1.0 + sip, 0.4), (2.0 + sip, 0)],
        'nod': [(0, 0), (0.7, 0.08), (1.0, -0.22), (1.0 + sip, -0.35), (1.5 + sip, 0)],
        'lean': [(0, 0), (1.0, -0.05), (1.0 + sip, -0.07), (1.6 + sip, 0)],
    }  # fmt: skip


def pick_up(me: Person, rng: np.random.Generator) -> Keys:
    down, knees = rng.uniform(1.15, 1.5), rng.uniform(0.25, 0.5)
    low, reach = (0.0, -knees, -0.22), (0.25, -0.50, 0.85)
    floor = (rng.uniform(-0.25, 0.05), 0.14, rng.uniform(0.3, 0.45))
    return {
        'goal': [(0, floor)],
        'goal_weight': [(0, 0), (0.4, 0), (0.95, 1), (1.15, 1), (1.5, 0)],
        'pelvis': [(0, STILL), (0.9, low), (1.15, low), (2.0, STILL)],
        'lean': [(0, 0), (0.9, down), (1.15, down), (2.0, -0.03), (2.2, 0)],
        'side': [(0, 0), (0.9, 0.12), (1.15, 0.12), (1.9, 0)],
        'nod': [(0, 0), (0.4, 0.3), (1.2, 0.1), (2.0, 0)],
        'hand': [(0, REST_HAND), (0.5, (0.36, -0.8, 0.45)), (0.9, reach), (1.15, reach), (1.7, (0.3, -0.6, 0.55)),
                 (2.3, REST_HAND)],
        'other_hand': [(0, REST_HAND), (0.9, (0.38, -0.72, 0.45)), (1.15, (0.38, -0.72, 0.45)), (2.0, REST_HAND)],
    }  # fmt: skip


def throw(me: Person, rng: np.random.Generator) -> Keys:
    a, stride = me.amplitude, rng.uniform(0.2, 0.4)
    return {
        'hand': [
            (0, REST_HAND), (0.3, (0.42, -0.45, 0.3)), (0.65, (0.68, 0.25 * a, -0.4)), (0.78, (0.6, 0.5 * a, -0.1)),
            (0.87, (0.35, 0.5 * a, 0.6)), (0.95, (0.15, 0.1, 0.95)), (1.12, (-0.1, -0.5, 0.7)), (1.8, REST_HAND),
        ],
        'elbow': [(0, 0), (0.6, 0.8), (0.85, 0.8), (1.1, 0.2), (1.6, 0)],
        'other_hand': [(0, REST_HAND), (0.62, (0.35, -0.25, 0.75)), (0.95, (0.5, -0.7, -0.15)), (1.8, REST_HAND)],
        'twist': [(0, 0), (0.62, -0.55 * a), (0.95, 0.45 * a), (1.1, 0.5 * a), (1.8, 0)],
        'turn': [(0, 0), (0.6, 0.35), (0.95, -0.2), (1.6, 0)],
        'lean': [(0, 0), (0.6, -0.18), (0.98, 0.3), (1.15, 0.32), (1.8, 0)],
        'pelvis': [(0, STILL), (0.5, (-0.04, -0.03, -0.06)), (0.95, (0.03, -0.06, stride / 2)),
                   (1.2, (0.03, -0.06, stride / 2)), (1.9, STILL)],
        'other_foot': [(0, STILL), (0.35, STILL), (0.55, (0, 0.10, stride / 2)), (0.75, (0, 0, stride)),
                       (1.3, (0, 0, stride)), (1.6, (0, 0.06, stride / 2)), (1.85, STILL)],
    }  # fmt: skip


SEAT = (0.0, -0.50, -0.46)  # the pelvis on a chair that is not drawn
LAP_HAND = (0.30, -0.80, 0.42)


def sit_down(me: Person, rng: np.random.Generator) -> Keys:
    bow, seat = rng.uniform(0.5, 0.8), (0.0, SEAT[1] * rng.uniform(0.9, 1.05), SEAT[2])
    return {
        'pelvis': [(0, STILL), (0.35, (0, -0.06, -0.08)), (1.25, seat), (1.4, seat)],
        'lean': [(0, 0), (0.75, bow), (1.1, bow), (1.75, -0.05)],
        'turn': [(0, 0), (0.25, rng.uniform(-0.5, 0.5)), (0.8, 0)],
        'nod': [(0, 0), (0.4, 0.25), (1.5, 0)],
        'hand': [(0, REST_HAND), (0.7, (0.45, -0.8, 0.25)), (1.5, LAP_HAND)],
        'other_hand': [(0, REST_HAND), (0.7, (0.45, -0.8, 0.25)), (1.5, LAP_HAND)],
    }


def stand_up(me: Person, rng: np.random.Generator) -> Keys:
    bow, seat = rng.uniform(0.55, 0.85), (0.0, SEAT[1] * rng.uniform(0.9, 1.05), SEAT[2])
    return {
        'pelvis': [(0, seat), (0.45, seat), (0.8, (0, -0.36, -0.25)), (1.4, STILL)],
        'lean': [(0, -0.05), (0.5, bow), (0.7, bow), (1.4, 0.0), (1.55, -0.04), (1.8, 0)],
        'nod': [(0, 0), (0.4, 0.2), (0.9, -0.1), (1.5, 0)],
        'hand': [(0, LAP_HAND), (0.5, LAP_HAND), (1.0, (0.45, -0.8, 0.3)), (1.5, REST_HAND)],
        'other_hand': [(0, LAP_HAND), (0.5, LAP_HAND), (1.0, (0.45, -0.8, 0.3)), (1.5, REST_HAND)],
    }


def clap(me: Person, rng: np.random.Generator) -> Keys:
    height, wide, beat = rng.uniform(-0.5, -0.15), 0.14 + 0.24 * me.amplitude, rng.uniform(0.32, 0.42)
    claps = int(rng.integers(3, 7))
    hands = [(0.0, REST_HAND)]
    for k in range(claps):
        hands += [(0.6 + k * beat, (wide, height - 0.03, 0.58)), (0.6 + (k + 0.45) * beat, (0.14, height, 0.64))]
    hands += [(0.6 + claps * beat, (wide, height - 0.05, 0.55)), (1.2 + claps * beat, REST_HAND)]
    return {'hand': hands, 'other_hand': hands, 'nod': [(0, 0), (0.7, 0.08), (hands[-2][0], 0.08), (hands[-1][0], 0)]}


def wave(me: Person, rng: np.random.Generator) -> Keys:
    up, swing, beat = rng.uniform(0.35, 0.7), 0.26 * me.amplitude, rng.uniform(0.22, 0.34)
    waves = int(rng.integers(2, 6))
    hand = [(0.0, REST_HAND), (0.3, (0.62, -0.4, 0.35))]
    for k in range(waves):
        hand.append((0.6 + 2 * k * beat, (0.72 + swing, up - 0.1, 0.25)))
        hand.append((0.6 + (2 * k + 1) * beat, (0.72 - swing, up, 0.25)))
    end = 0.6 + 2 * waves * beat
    hand += [(end + 0.1, (0.62, up - 0.2, 0.3)), (end + 0.7, REST_HAND)]
    return {
        'hand': hand,
        'elbow': [(0, 0), (0.6, 0.4), (end, 0.4), (end + 0.6, 0)],
        'side': [(0, 0), (0.6, -0.05), (end, -0.05), (end + 0.6, 0)],
        'tilt': [(0, 0), (0.6, 0.06), (end, 0.06), (end + 0.6, 0)],
    }


def kick_keys(me: Person, rise: float, reach: float) -> Keys:
    """A kick with the favoured foot: weight over, leg back, strike at .78 s, and back to the ground."""
    return {
        'foot': [
            (0, STILL), (0.2, (0, 0.02, -0.02)), (0.5, (0.02, 0.16, -0.34)), (0.66, (0.0, 0.10, 0.1)),
            (0.78, (-0.04, rise, reach)), (0.86, (-0.05, rise + 0.04, reach)), (1.15, (0, 0.15, 0.15)), (1.4, STILL),
        ],
        'pelvis': [(0, STILL), (0.3, (0.10, -0.01, 0)), (0.5, (0.11, -0.03, -0.04)), (0.78, (0.11, -0.02, 0.08)),
                   (1.1, (0.10, -0.01, 0.0)), (1.5, STILL)],
        'lean': [(0, 0), (0.45, 0.15), (0.8, -0.28), (1.4, 0)],
        'side': [(0, 0), (0.3, -0.06), (1.1, -0.06), (1.5, 0)],
        'twist': [(0, 0), (0.5, -0.3), (0.8, 0.35), (1.4, 0)],
        'nod': [(0, 0), (0.4, 0.2), (0.9, 0.2), (1.4, 0)],
        'hand': [(0, REST_HAND), (0.5, (0.5, -0.75, 0.4)), (0.8, (0.68, -0.6, -0.3)), (1.5, REST_HAND)],
        'other_hand': [(0, REST_HAND), (0.5, (0.75, -0.55, -0.15)), (0.8, (0.5, -0.5, 0.5)), (1.5, REST_HAND)],
    }  # fmt: skip


def kick(me: Person, rng: np.random.Generator) -> Keys:
    return kick_keys(me, rise=rng.uniform(0.15, 0.45) * me.amplitude, reach=rng.uniform(0.6, 0.8))


def jump(me: Person, rng: np.random.Generator) -> Keys:
    rise = rng.uniform(0.14, 0.3) * me.amplitude
    crouch, flight = rng.uniform(0.2, 0.32), 2 * np.sqrt(2 * rise / 9.81)
    off, landed = 0.65, 0.65 + flight
    parabola = [(off + u * flight, 4 * rise * u * (1 - u)) for u in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)]
    swing_up = (0.42, rng.uniform(-0.3, 0.7), 0.62)
    hands = [(0, REST_HAND), (0.42, (0.5, -0.75, -0.45)), (off + 0.1, swing_up), (landed, (0.6, -0.45, 0.4)),
             (landed + 0.6, REST_HAND)]  # fmt: skip
    return {
        'lift': parabola,
        'pelvis': [(0, STILL), (0.45, (0, -crouch, -0.08)), (off, (0, 0.01, 0.02)), (landed, (0, -0.02, 0)),
                   (landed + 0.16, (0, -0.7 * crouch, -0.05)), (landed + 0.6, STILL)],
        'lean': [(0, 0), (0.45, 0.5), (off, 0.05), (landed, 0.1), (landed + 0.18, 0.35), (landed + 0.6, 0)],
        'nod': [(0, 0), (0.4, -0.15), (off + 0.1, -0.15), (landed + 0.1, 0.1), (landed + 0.6, 0)],
        'hand': hands,
        'other_hand': hands,
    }  # fmt: skip


def salute(me: Person, rng: np.random.Generator) -> Keys:
    held, brow = rng.uniform(0.6, 1.4), (0.37, rng.uniform(0.26, 0.36), 0.17)
    return {
        'hand': [(0, REST_HAND), (0.25, (0.55, -0.4, 0.4)), (0.6, brow), (0.6 + held, brow),
                 (0.8 + held, (0.5, -0.3, 0.4)), (1.2 + held, REST_HAND)],
        'elbow': [(0, 0), (0.5, 1), (0.6 + held, 1), (1.1 + held, 0)],
        'lean': [(0, 0), (0.4, -0.06), (0.6 + held, -0.06), (1.2 + held, 0)],
        'nod': [(0, 0), (0.4, -0.08), (0.6 + held, -0.08), (1.2 + held, 0)],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------- actions of two persons
# Each takes both persons, the distance at which they start, face to face, and a generator; returns the keys of both.
def punch(me: Person, other: Person, distance: float, rng: np.random.Generator) -> tuple[Keys, Keys]:
    slap = rng.random() < 0.5
    wind_up = (0.95, -0.05, 0.2) if slap else (0.48, -0.25, 0.1)
    struck = (0.0, other.height * (0.93 if slap else rng.uniform(0.75, 0.92)), distance - 0.17)
    through = (0.35, struck[1], distance - 0.3) if slap else (0.02, struck[1], distance - 0.2)
    away = rng.choice([-1.0, 1.0])
    attack = {
        'hand': [(0, REST_HAND), (0.45, wind_up), (0.6, wind_up), (0.75, (0.2, 0.05, 0.9)), (0.95, (0.3, -0.3, 0.5)),
                 (1.5, REST_HAND)],
        'goal': [(0, struck), (0.74, struck), (0.84, through)],
        'goal_weight': [(0, 0), (0.6, 0), (0.74, 1), (0.8, 1), (1.05, 0)],
        'elbow': [(0, 0), (0.5, 0.7 if slap else 0.4), (0.75, 0.5), (1.3, 0)],
        'other_hand': [(0, REST_HAND), (0.5, (0.3, -0.35, 0.45)), (0.78, (0.4, -0.5, 0.2)), (1.4, REST_HAND)],
        'twist': [(0, 0), (0.52, -0.55), (0.76, 0.5), (0.9, 0.45), (1.4, 0)],
        'turn': [(0, 0), (0.52, 0.3), (0.76, -0.25), (1.3, 0)],
        'lean': [(0, 0), (0.5, -0.08), (0.77, 0.22), (0.95, 0.2), (1.5, 0)],
        'pelvis': [(0, STILL), (0.5, (-0.03, -0.02, -0.05)), (0.77, (0.03, -0.05, 0.12)), (1.0, (0.02, -0.04, 0.1)),
                   (1.6, STILL)],
        'other_foot': [(0, STILL), (0.35, STILL), (0.48, (0, 0.07, 0.12)), (0.62, (0, 0, 0.25)), (1.2, (0, 0, 0.25)),
                       (1.4, (0, 0.05, 0.12)), (1.6, STILL)],
    }  # fmt: skip
    recoil = {
        'lean': [(0, 0), (0.72, 0), (0.9, -0.28), (1.1, -0.22), (1.7, 0)],
        'turn': [(0, 0), (0.74, 0), (0.88, away * (0.8 if slap else 0.3)), (1.7, 0)],
        'nod': [(0, 0), (0.74, 0), (0.88, -0.3), (1.3, 0.1), (1.7, 0)],
        'twist': [(0, 0), (0.74, 0), (0.92, 0.3 * away), (1.7, 0)],
        'pelvis': [(0, STILL), (0.74, STILL), (1.0, (0, -0.04, -0.10)), (1.7, STILL)],
        'foot': [(0, STILL), (0.8, STILL), (0.92, (0, 0.06, -0.12)), (1.02, (0, 0, -0.22)), (1.5, (0, 0, -0.22)),
                 (1.65, (0, 0.05, -0.1)), (1.8, STILL)],
        'hand': [(0, REST_HAND), (0.8, REST_HAND), (1.15, (0.25, -0.05, 0.45)), (1.3, (0.25, -0.05, 0.45)),
                 (1.9, REST_HAND)],
        'other_hand': [(0, REST_HAND), (0.8, REST_HAND), (1.1, (0.5, -0.5, 0.4)), (1.9, REST_HAND)],
    }  # fmt: skip
    return attack, recoil


def kick_other(me: Person, other: Person, distance: float, rng: np.random.Generator) -> tuple[Keys, Keys]:
    attack = kick_keys(me, rise=rng.uniform(0.3, 0.55), reach=min((distance - 0.2) / me.leg, 0.9))
    guard = (0.22, -0.75, 0.5)
    recoil = {
        'pelvis': [(0, STILL), (0.68, STILL), (0.95, (0, -0.08, -0.2)), (1.15, (0, -0.08, -0.2)), (1.9, STILL)],
        'lean': [(0, 0), (0.68, 0), (0.95, 0.45), (1.15, 0.4), (1.8, 0)],
        'nod': [(0, 0), (0.6, 0.15), (1.0, 0.3), (1.7, 0)],
        'hand': [(0, REST_HAND), (0.65, REST_HAND), (0.95, guard), (1.2, guard), (1.9, REST_HAND)],
        'other_hand': [(0, REST_HAND), (0.65, REST_HAND), (0.95, guard), (1.2, guard), (1.9, REST_HAND)],
        'foot': [(0, STILL), (0.74, STILL), (0.86, (0, 0.06, -0.15)), (0.98, (0, 0, -0.3)), (1.5, (0, 0, -0.3)),
                 (1.68, (0, 0.06, -0.15)), (1.85, STILL)],
    }  # fmt: skip
    return attack, recoil


def shake_hands(me: Person, other: Person, distance: float, rng: np.random.Generator) -> tuple[Keys, Keys]:
    shakes, beat, size = int(rng.integers(2, 6)), rng.uniform(0.28, 0.4), rng.uniform(0.02, 0.06)
    height = 0.29 * (me.height + other.height)
    end = 0.7 + shakes * beat
    meet = [(0.7 + k * beat / 2, height + size * (-1) ** k) for k in range(2 * shakes + 1)]

    def keys(nod: float) -> Keys:
        return {
            'hand': [(0, REST_HAND), (0.7, (0.25, -0.6, 0.65)), (end, (0.25, -0.6, 0.65)), (end + 0.7, REST_HAND)],
            'goal': [(time, (0.0, y, distance / 2 - 0.07)) for time, y in meet],
            'goal_weight': [(0, 0), (0.15, 0), (0.7, 1), (end, 1), (end + 0.5, 0)],
            'lean': [(0, 0), (0.6, 0.12), (end, 0.12), (end + 0.7, 0)],
            'twist': [(0, 0), (0.6, 0.2), (end, 0.2), (end + 0.7, 0)],
            'turn': [(0, 0), (0.6, -0.1), (end, -0.1), (end + 0.7, 0)],
            'nod': [(0, 0), (0.7, nod), (1.1, 0)],
            'pelvis': [(0, STILL), (0.6, (0, -0.01, 0.04)), (end, (0, -0.01, 0.04)), (end + 0.7, STILL)],
        }

    return keys(rng.uniform(0, 0.3)), keys(rng.uniform(0, 0.3))


def walk_keys(me: Person, distance: float, delay: float, rng: np.random.Generator) -> Keys:
    """`distance` metres forward; the feet alternate, and a last step brings them together."""
    steps = max(2, round(distance / (0.33 * me.height * me.amplitude**0.3)))
    beat, stride, swing = rng.uniform(0.48, 0.6), distance / steps / me.leg, 0.28 * me.amplitude
    feet: dict[str, list[Key]] = {'foot': [(delay, STILL)], 'other_foot': [(delay, STILL)]}
    travel: list[Key] = [(delay, 0.0)]
    hands: dict[str, list[Key]] = {'hand': [(delay, REST_HAND)], 'other_hand': [(delay, REST_HAND)]}
    twist: list[Key] = [(delay, 0.0)]
    for k in range(steps + 1):
        swings, stands = ('foot', 'other_foot') if k % 2 == 0 else ('other_foot', 'foot')
        start, end = delay + k * beat, delay + (k + 1) * beat
        before, after = feet[swings][-1][1][2], min(k + 1, steps) * stride
        feet[swings].append((start + 0.06, (0, 0, before)))
        feet[swings].append(((start + end) / 2, (0, 0.09, (before + after) / 2)))
        feet[swings].append((end - 0.03, (0, 0, after)))
        feet[stands].append((end - 0.03, feet[stands][-1][1]))
        travel.append((end, distance * min(k + 0.55, steps) / steps if k < steps else distance))
        if k < steps:  # the arm opposite to the swinging leg comes forward
            arm, other_arm = ('other_hand', 'hand') if swings == 'foot' else ('hand', 'other_hand')
            hands[arm].append((end, (0.42, -0.94, 0.10 + swing)))
            hands[other_arm].append((end, (0.44, -0.94, 0.10 - swing)))
            twist.append((end, 0.12 if swings == 'foot' else -0.12))
    last = delay + (steps + 1.3) * beat
    for track in hands.values():
        track.append((last, REST_HAND))
    lean = [(delay, 0.0), (delay + beat, 0.05), (last - beat, 0.03), (last, 0.0)]
    return {**feet, **hands, 'travel': travel, 'twist': [*twist, (last, 0.0)], 'lean': lean}


def walk_towards(me: Person, other: Person, distance: float, rng: np.random.Generator) -> tuple[Keys, Keys]:
    way = (distance - rng.uniform(0.8, 1.2)) / 2
    return walk_keys(me, way, rng.uniform(0, 0.3), rng), walk_keys(other, way, rng.uniform(0, 0.3), rng)


@dataclass(frozen=True)
class Action:
    """number: NTU's A###. move: one of the functions above. distance: between two persons at the start, metres."""

    number: int
    move: Callable
    max_repeats: int = 3
    distance: tuple[float, float] | None = None
    favours_hand: bool = True  # left-handed persons do it the other way round


ACTIONS = (
    Action(1, drink, max_repeats=2),
    Action(6, pick_up, max_repeats=2),
    Action(7, throw),
    Action(8, sit_down, max_repeats=1),
    Action(9, stand_up, max_repeats=1),
    Action(10, clap),
    Action(23, wave),
    Action(24, kick),
    Action(27, jump),
    Action(38, salute, max_repeats=2),
    Action(50, punch, distance=(0.75, 0.95)),
    Action(51, kick_other, distance=(0.85, 1.05)),
    Action(58, shake_hands, max_repeats=2, distance=(0.85, 1.05), favours_hand=False),
    Action(59, walk_towards, max_repeats=1, distance=(2.6, 3.6)),
)


# ---------------------------------------------------------------------------------------- performances
PAUSE = (0.15, 0.9)  # seconds between two repetitions
HAND_VARIATION = 0.02  # arm lengths, standard deviation from one repetition to the next


def repeat(
    move: Callable[[], tuple[Keys, ...]], repeats: int, seconds: float, rng: np.random.Generator
) -> tuple[list[Keys], float]:
    """Keys of each figure for up to `repeats` repetitions, as many as `seconds` can hold, and how long they take."""
    figures: list[Keys] = []
    length = 0.0
    for repetition in range(repeats):
        moves = move()
        duration = max(key[0] for keys in moves for track in keys.values() for key in track)
        if repetition and length + duration > seconds:
            break
        figures = figures or [{} for _ in moves]
        for figure, keys in zip(figures, moves, strict=True):
            for name, track in keys.items():
                spread = HAND_VARIATION if name in ('hand', 'other_hand') else 0.0
                shifted = [(length + time, value + spread * rng.normal(size=np.shape(value))) for time, value in track]
                figure.setdefault(name, []).extend(shifted)
        length += duration + rng.uniform(*PAUSE)
    return figures, length


def perform(action: Action, cast: list[Person], num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Clean points (M, T, 30, 3) in metres; the stage's middle is at 0 and a single figure faces forward."""
    if not action.favours_hand:
        cast = [replace(person, left_handed=False) for person in cast]
    distance = 0.0 if action.distance is None else rng.uniform(*action.distance)

    def move() -> tuple[Keys, ...]:
        return (action.move(cast[0], rng),) if action.distance is None else action.move(*cast, distance, rng)

    tempo, seconds = cast[0].tempo, num_frames / FPS
    figures, length = repeat(move, 1 + int(rng.integers(action.max_repeats)), seconds * tempo, rng)
    tempo *= np.clip(length / tempo / seconds, 1, MAX_HURRY)
    begin = rng.uniform(0, max(seconds - length / tempo, 0.0))
    times = (np.arange(num_frames) / FPS - begin) * tempo

    points = np.stack([figure_joints(cast[m], make_pose(cast[m], keys, times, rng)) for m, keys in enumerate(figures)])
    if len(points) == 1:
        return points + rng.normal(0, 0.2, 3) * (1, 0, 1)
    # Face to face, side-on to where a single figure looks; who stands on which side is chance.
    side = rng.choice([-1.0, 1.0])
    quarter = [yaw(side * np.pi / 2), yaw(-side * np.pi / 2)]
    return np.stack([(points[m] - (0, 0, distance / 2)) @ quarter[m].T for m in range(2)])


def yaw(angle: float) -> np.ndarray:
    """(3, 3): a turn to the left about the vertical axis."""
    return np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the stage; its frame is Kinect's: x to the image's left, y up, z away from it."""

    angle: float
    distance: float  # m, from the stage's middle
    height: float  # m, above the floor
    aim: float  # m, height of the point on the stage that it looks at

    def view(self, points: np.ndarray) -> np.ndarray:
        """World (..., 3) to camera frame (..., 3), both in metres."""
        position = np.array([self.distance * np.sin(self.angle), self.height, self.distance * np.cos(self.angle)])
        forward = unit(np.array([0, self.aim, 0]) - position)
        left = unit(np.cross([0.0, 1.0, 0.0], forward))
        return (points - position) @ np.stack([left, np.cross(forward, left), forward]).T


def project(points: np.ndarray) -> np.ndarray:
    """Camera frame (..., 3) in metres to pixels (..., 2), x to the right and y down from the image's upper left."""
    height, width = IMAGE_SHAPE
    return (width / 2, height / 2) - FOCAL_LENGTH * points[..., :2] / points[..., 2:]


# ---------------------------------------------------------------------------------------- what sensors see
CAPSULES = (  # body parts that hide what is behind them: two points and a radius in metres
    (0, 20, 0.13), (3, 3, 0.10), (12, 13, 0.07), (16, 17, 0.07), (13, 14, 0.05), (17, 18, 0.05),
    (5, 6, 0.04), (9, 10, 0.04),
)  # fmt: skip
BEHIND = 0.06  # m, from here on a point counts as behind a body part


def hidden(points: np.ndarray) -> np.ndarray:
    """How far each point (M, T, 30, 3) of a camera's frame is hidden by a body part of anyone: (M, T, 30), 0 to 1."""
    depth = points[..., 2].astype(np.float32)
    x, y = (points[..., axis].astype(np.float32) / depth for axis in (0, 1))  # as on an image plane 1 m away
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
    """Bool (M, T, ...): with `chance` each series along T has one gap of 2 to 10 frames, never in the first frame."""
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
    """The three cameras of one setup: same height and distance, NTU's angles give or take a few degrees."""
    rng = np.random.default_rng([seed, 1, setup])
    distance, height, aim = rng.uniform(3.0, 4.3), rng.uniform(1.1, 2.1), rng.uniform(0.75, 0.95)
    return {
        number: Camera(angle + rng.normal(0, 0.06), distance + rng.normal(0, 0.1), height + rng.normal(0, 0.05), aim)
        for number, angle in CAMERA_ANGLES.items()
    }


def record(person: int, action: Action, seed: int) -> Iterable[tuple[dict, dict]]:
    """The 2D and the 3D annotation of each camera's view of one performance. Depends on its arguments alone."""
    rng = np.random.default_rng([seed, 2, person, action.number])
    cast = [make_person(np.random.default_rng([seed, 3, person]))]
    if action.distance is not None:  # the partner is nobody of the 40, so no body stands on both sides of a split
        cast.append(make_person(rng))
    num_frames, replication = draw_length(rng), int(rng.integers(1, 3))
    setup = 1 + (person - 1) * NUM_SETUPS // len(PERSONS)

    # Replication 1 is acted towards the left camera, 2 towards the right one.
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
    """NTU60's cross-subject and cross-view lists of the clips (frame_dir, person, camera)."""
    return {
        'xsub_train': [name for name, person, _ in clips if person in XSUB_TRAIN_PERSONS],
        'xsub_val': [name for name, person, _ in clips if person not in XSUB_TRAIN_PERSONS],
        'xview_train': [name for name, _, camera in clips if camera in XVIEW_TRAIN_CAMERAS],
        'xview_val': [name for name, _, camera in clips if camera not in XVIEW_TRAIN_CAMERAS],
    }


def make_sample(seed: int = 0, persons: Iterable[int] = PERSONS) -> tuple[dict, dict]:
    """Contents of the 2D and of the 3D pickle: {'split': {name: [frame_dir]}, 'annotations': [dict]}.

    persons: of 1 to 40; a person's clips are the same whoever else is asked for.
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
    """Writes both pickles into the folder `out`, each in one stroke; returns what each file holds.

    Raises UserError where the folder cannot be made or written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass  # a folder that cannot be written is found before the work
    written = {}
    for name, content in zip(('sample_hrnet.pkl', 'sample_3danno.pkl'), make_sample(seed, persons), strict=True):
        temporary = out / f'.{name}.{os.getpid()}'
        try:
            with temporary.open('wb') as file:
                pickle.dump(content, file, protocol=4)
            os.replace(temporary, out / name)
        finally:
            temporary.unlink(missing_ok=True)
        written[out / name] = content
    return written


def mmpose_video(clip: dict) -> list[dict]:
    """A 2D annotation as MMPose's JSON of a video has it: the persons of each frame, not told one from another.

    Pixels have one decimal, scores three. Persons of whom no joint was found in a frame are not in it.
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
    """Writes clips of a 2D pickle's content as MMPose's JSON files, and labels.csv; returns how many.

    Of some persons of either xsub list, from one camera. Raises UserError where the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
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


def main() -> int:
    parser = argparse.ArgumentParser(description='Generate the sample set, two pickles in the form of NTU60.')
    parser.add_argument('--out', type=Path, required=True, help='folder for sample_hrnet.pkl and sample_3danno.pkl')
    parser.add_argument(
        '--files',
        type=Path,
        metavar='FOLDER',
        help='for clips as MMPose writes them and labels.csv, too (default: none)',
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f'--seed {args.seed}: must not be negative')
    try:
        written = write_sample(args.out, args.seed)
        files = write_files(args.files, written[args.out / 'sample_hrnet.pkl']) if args.files else 0
    except OSError as error:
        print(f'cannot write to {error.filename or args.out}: {error.strerror or error}', file=sys.stderr)
        return 2
    for path, content in written.items():
        labels = {annotation['label'] for annotation in content['annotations']}
        counts = ', '.join(f'{name} {len(names)}' for name, names in content['split'].items())
        size = path.stat().st_size / 1e6
        print(f'{path}: {len(content["annotations"])} clips of {len(labels)} classes, {size:.1f} MB ({counts})')
    if args.files:
        size = sum(file.stat().st_size for file in args.files.iterdir()) / 1e6
        print(f'{args.files}: {files} of the clips as files of MMPose, {size:.1f} MB, and labels.csv')
    return 0


if __name__ == '__main__':
    sys.exit(main())
