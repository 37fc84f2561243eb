"""Articulated figures: a body, its poses over time, and the joints of a pose.

Axes are right-handed: x to the figure's left, y up, z forward. Lengths in metres, angles in radians, times in seconds.
M persons, T frames, K keys. A figure has 30 points: the 25 Kinect joints, then nose, eyes and ears.
"""

from dataclasses import dataclass

import numpy as np

from lib.data.skeletons import NTU25

FPS = 30
NUM_KINECT_JOINTS = len(NTU25.joints)
NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = range(NUM_KINECT_JOINTS, NUM_KINECT_JOINTS + 5)
MIRROR_ORDER = [*NTU25.flip_order, NOSE, RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR]


# ---------------------------------------------------------------------------------------- persons
@dataclass(frozen=True)
class Person:
    """A body and its style of movement. Lengths in metres, angles in radians."""

    height: float
    arm: float  # shoulder to wrist
    leg: float  # hip to ankle
    trunk: float  # spine base to the shoulders' line
    shoulder: float  # half the width
    hip: float  # half the width
    stance: float  # distance of each foot from the hip's side, in leg lengths
    tempo: float
    amplitude: float
    left_handed: bool
    lean: float  # the usual posture
    nod: float
    hand_offset: np.ndarray  # (2, 3) rest position of the hands, in arm lengths


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
SWAY = {  # standard deviation of the constant slow movement, in the unit of the channel
    'hand': 0.015, 'other_hand': 0.015, 'pelvis': (0.015, 0.002, 0.010),
    'lean': 0.02, 'side': 0.015, 'twist': 0.04, 'nod': 0.05, 'tilt': 0.03, 'turn': 0.1,
}  # fmt: skip
SWAY_PERIOD = 0.8  # seconds

Key = tuple[float, float | tuple[float, float, float]]  # time and value of the channel
Keys = dict[str, list[Key]]
Pose = dict[str, np.ndarray]  # channel -> (T, 1) or (T, 3)


def interpolate(keys: list[Key], times: np.ndarray) -> np.ndarray:
    """Values (T, C) at `times` (T,): monotone cubic interpolation, at rest at turning points.

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
    """The pose at `times` (T,): keyframes plus the person's posture and sway."""
    pose = {name: interpolate(keys.get(name, [(0.0, rest)]), times) for name, rest in REST.items()}
    for name, size in SWAY.items():
        width = pose[name].shape[1]
        pose[name] = pose[name] + size * smooth_noise(rng, len(times), (width,), SWAY_PERIOD * FPS)
    for name, offset in zip(('hand', 'other_hand'), person.hand_offset, strict=True):
        hangs = np.clip(-0.6 - 1.6 * pose[name][:, 1:2], 0, 1)  # only hanging hands are offset
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
    """Rotations (T, 3, 3): forward by `pitch`, left by `yaw`, to the right side by `roll`, each (T, 1)."""
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
    """Middle and end joint, each (T, 3), of a limb of two bones from `root` towards `target`, within its reach.

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
    """Points (T, 30, 3) of the figure, in metres from its start on the floor. Bone lengths are constant."""
    height = person.height
    hips = rotation(0.6 * pose['lean'], 0.35 * pose['twist'], 0.3 * pose['side'])
    waist = rotation(0.85 * pose['lean'], 0.6 * pose['twist'], 0.6 * pose['side'])
    chest = rotation(pose['lean'], pose['twist'], pose['side'])
    # The neck compensates part of a deep bend, so that the eyes stay on the action.
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
    points[:, 12:16] = leg_joints(person, pose, 'other_foot', base, hips, ankles)
    points[:, 16:20] = leg_joints(person, pose, 'foot', base, hips, ankles)
    points[:, [4, 5, 6, 7, 21, 22]] = arm_joints(person, pose, 'other_hand', 1, shoulders, chest)
    points[:, [8, 9, 10, 11, 23, 24]] = arm_joints(person, pose, 'hand', -1, shoulders, chest)
    return points[:, MIRROR_ORDER] * (-1, 1, 1) if person.left_handed else points


def stand(person: Person, pose: Pose, foot: str, sign: int) -> np.ndarray:
    """Position (T, 3) of an ankle. sign: 1 on the left, -1 on the right."""
    standing = np.array([sign * (person.hip + person.stance * person.leg), ANKLE_HEIGHT * person.height, 0])
    return standing + pose[foot] * person.leg * (sign, 1, 1) + pose['lift'] * (0, 1, 0)


def needed_drop(
    person: Person, pose: Pose, base: np.ndarray, hips: np.ndarray, ankles: dict[str, np.ndarray]
) -> np.ndarray:
    """Descent (T,) of the pelvis in metres that keeps standing feet within reach."""
    drops = []
    for foot, sign in (('foot', -1), ('other_foot', 1)):
        hip, ankle = base + hips @ (sign * person.hip, 0, 0), ankles[foot]
        across = ((hip - ankle)[:, [0, 2]] ** 2).sum(-1)
        highest = ankle[:, 1] + np.sqrt(np.maximum((0.996 * person.leg) ** 2 - across, 0.01))
        stands = 1 - np.clip(pose[foot][:, 1] / 0.12, 0, 1)
        drops.append(np.maximum(hip[:, 1] - highest, 0) * stands)
    return np.maximum(*drops)


def leg_joints(
    person: Person, pose: Pose, foot: str, base: np.ndarray, hips: np.ndarray, ankles: dict[str, np.ndarray]
) -> np.ndarray:
    """Hip, knee, ankle and toes (T, 4, 3)."""
    sign, ankle = 1 if foot == 'other_foot' else -1, ankles[foot]
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


def yaw(angle: float) -> np.ndarray:
    """Rotation (3, 3) to the left about the vertical axis."""
    return np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
