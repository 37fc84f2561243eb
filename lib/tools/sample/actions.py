"""The 14 actions of the generated dataset as keyframes, and their performance by one or two figures."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lib.tools.sample.figures import (
    FPS,
    REST_HAND,
    STILL,
    Key,
    Keys,
    Person,
    figure_joints,
    make_pose,
    yaw,
)

MAX_HURRY = 1.7  # largest speed-up of an action that is longer than its clip; the rest is cut off


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


SEAT = (0.0, -0.50, -0.46)  # pelvis on an invisible chair
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
    """A kick with the preferred foot: shift of weight, leg back, strike at .78 s, leg down."""
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
    """Walks `distance` metres with alternating feet and a closing step."""
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
        if k < steps:  # the opposite arm swings forward
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
    favours_hand: bool = True  # mirrored for left-handed persons


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
HAND_VARIATION = 0.02  # arm lengths, standard deviation between repetitions


def repeat(
    move: Callable[[], tuple[Keys, ...]], repeats: int, seconds: float, rng: np.random.Generator
) -> tuple[list[Keys], float]:
    """Keyframes of each figure for up to `repeats` repetitions within `seconds`, and their duration."""
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
    """Clean points (M, T, 30, 3) in metres; the origin is the middle of the stage; a single figure faces forward."""
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
    # Face to face, at right angles to the direction of a single figure, on random sides.
    side = rng.choice([-1.0, 1.0])
    quarter = [yaw(side * np.pi / 2), yaw(-side * np.pi / 2)]
    return np.stack([(points[m] - (0, 0, distance / 2)) @ quarter[m].T for m in range(2)])
