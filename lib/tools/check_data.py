"""Check a PYSKL pickle before training on it: one screen of what it holds, and all that is wrong with it.

    python -m lib.tools.check_data data/action/ntu60_hrnet.pkl
    python -m lib.tools.check_data data/action/ntu60_hrnet.pkl --config configs/action/MB_train.yaml

FILE may be a folder of pickles. A fault stops training or spoils it, with --config training on that config; a warning
makes a result doubtful. Exit code: 0 without faults, 1 with faults, 2 where a file cannot be read.
"""

import argparse
import hashlib
import itertools
import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.cli import DONE, FAILED, USER_ERROR
from lib.config import read_config, resolve_config
from lib.data.clips import Clips
from lib.data.pickles import (
    check_annotation,
    is_without_persons,
    lost_names_hint,
    read_pickle,
    refuse_third_score,
    require_form,
)
from lib.data.skeletons import COCO17, PICKLE_SKELETONS, skeleton_of
from lib.data.store import pickles_of
from lib.errors import UserError, shown_text

SECTIONS = ('data', 'heatmap', 'model', 'optimizer', 'train')
PIECE = 2**22  # numbers that are looked at together
NTU_ID = re.compile(r'S\d{3}C\d{3}P(\d{3})R\d{3}A\d{3}')
LIKE_PERSONS = ('xview', 'xset')  # benchmarks that share persons on purpose
SWAPPED_OUTSIDE, SWAPPED_INSIDE = 0.25, 0.98  # least shares of a clip's joints outside the image, and inside it turned
HIGHEST_SCORE = 1.5  # HRNet's peaks may be a little over 1
MOST_CLASSES = 14  # that get a column each
MOST_NUMBERED = 1000  # of which those without clips are shown
MOST_LISTS, MOST_FINDINGS, MOST_LINES, WIDTH = 20, 14, 3, 118


@dataclass
class Finding:
    """what is wrong, in words; how to mend it; is_fault: whether it stops or spoils training."""

    what: str
    remedy: str
    is_fault: bool = False


@dataclass
class Survey:
    """What a set holds. Arrays have an item for each sound clip, (N,), unless said otherwise.

    layout: (V, C) of most clips, and `index` which annotations these are: the others are only counted, in `findings`.
    outside, turned: joints outside the image, and of these the ones inside it with width and height exchanged.
    height: (V,) mean of each joint's second coordinate. score: least and greatest, None where there are none.
    """

    split: dict[str, list[str]]
    names: list[str]
    layout: tuple[int, int]
    dtypes: str
    label: np.ndarray
    persons: np.ndarray
    frames: np.ndarray
    img_shape: np.ndarray
    joints: np.ndarray
    missing: np.ndarray
    not_finite: np.ndarray
    outside: np.ndarray
    turned: np.ndarray
    height: np.ndarray
    extreme: float
    score: tuple[float, float] | None
    digest: list[bytes]
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_3d(self) -> bool:
        return self.layout[1] == 3

    def clips_of(self, name: str) -> np.ndarray:
        """The clips of a list, in the order of the file."""
        wanted = set(self.split[name])
        return np.array([i for i, clip in enumerate(self.names) if clip in wanted], int)


# --- looking at everything -----------------------------------------------------------------------------------------


def survey(path: Path) -> Survey:
    """Looks at all clips of a pickle, or of a folder of them, unsound ones included.

    Raises UserError where a file cannot be read as a set at all.
    """
    files = pickles_of(path)
    split: dict[str, list[str]] = {}
    annotations, faults, empty = [], defaultdict(list), []
    for file in files:
        more_split, more = require_form(read_pickle(file), file)
        for name, ids in more_split.items():
            split.setdefault(name, []).extend(ids)
        for i, annotation in enumerate(more):
            where = f'annotation {i}' if len(files) == 1 else f'{file.name}: annotation {i}'
            if is_without_persons(annotation):
                empty.append(str(annotation.get('frame_dir', where)))
                continue
            try:
                annotations.append(check_annotation(annotation, where))
                refuse_third_score(annotations[-1], where)
            except ValueError as error:
                faults[re.sub(r'\(.*?\)|\[.*?\]|\d+', '', str(error)[len(where) :])].append(str(error))
    findings = [
        Finding(
            f'{numbered(len(messages), "unsound annotation")}, so that the file is refused: {messages[0]}',
            'write sound values with what made the pickle, or take these annotations out',
            is_fault=True,
        )
        for messages in faults.values()
    ]
    if not annotations:
        raise UserError(f'{path} holds no sound annotation: {findings[0].what if findings else "no clip has a person"}')
    if empty:
        findings.append(
            Finding(f'nobody in {numbered(len(empty), "clip")}, left out: {listed(empty)}', 'nothing need be done')
        )
    layouts = Counter(annotation['keypoint'].shape[2:] for annotation in annotations)
    layout = layouts.most_common(1)[0][0]
    for other, count in layouts.items():
        if other != layout:
            first = next(a['frame_dir'] for a in annotations if a['keypoint'].shape[2:] == other)
            findings.append(
                Finding(
                    f'(joints, coordinates) = {other} in {count:,} of the clips ({shown_text(first)}), else {layout}',
                    'put them into a pickle of their own: a file holds one layout',
                    is_fault=True,
                )
            )
    return measured(split, [a for a in annotations if a['keypoint'].shape[2:] == layout], findings)


def measured(split: dict[str, list[str]], annotations: list[dict[str, Any]], findings: list[Finding]) -> Survey:
    """Measures sound annotations of one layout."""
    shapes = np.array([a['keypoint'].shape for a in annotations])
    img_shape = np.array([a.get('img_shape', (0, 0)) if shapes[0, 3] == 2 else (0, 0) for a in annotations])
    columns = ('missing', 'not_finite', 'outside', 'turned')
    counts = {name: np.zeros(len(annotations), int) for name in columns}
    height, present = np.zeros((2, shapes[0, 2]))
    scores, extreme = [], 0.0
    for piece in pieces(shapes.prod(axis=1)):
        found = Piece.of(annotations[piece], img_shape[piece])
        starts = np.cumsum([0, *shapes[piece][:-1, :2].prod(axis=1)])
        for name in columns:
            counts[name][piece] = np.add.reduceat(getattr(found, name).sum(axis=1), starts)
        height += found.height.sum(axis=0)
        present += (~found.missing).sum(axis=0)
        extreme = max(extreme, found.extreme)
        scores += found.scores
    return Survey(
        split,
        [a['frame_dir'] for a in annotations],
        tuple(shapes[0, 2:].tolist()),
        ' and '.join(sorted({str(a['keypoint'].dtype) for a in annotations})),
        label=np.array([a['label'] for a in annotations]),
        persons=shapes[:, 0],
        frames=shapes[:, 1],
        img_shape=img_shape,
        joints=shapes[:, :3].prod(axis=1),
        height=height / np.maximum(present, 1),
        extreme=extreme,
        score=(min(scores), max(scores)) if scores else None,
        digest=[content_of(a['keypoint']) for a in annotations],
        findings=findings,
        **counts,
    )


def pieces(sizes: np.ndarray) -> Iterator[slice]:
    """Slices of the clips, which hold PIECE numbers each or a single clip."""
    number = np.cumsum(sizes) // PIECE
    edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
    return itertools.starmap(slice, itertools.pairwise(edges))


@dataclass
class Piece:
    """Some clips' frames, R of all their persons. All but the last two: (R, V).

    missing: joints that are zeros, of score 0 or not finite. scores: least and greatest, or nothing. extreme: the
    greatest coordinate.
    """

    missing: np.ndarray
    not_finite: np.ndarray
    outside: np.ndarray
    turned: np.ndarray
    height: np.ndarray
    extreme: float
    scores: list[float]

    @classmethod
    def of(cls, annotations: list[dict[str, Any]], img_shape: np.ndarray) -> 'Piece':
        keypoint = np.concatenate([a['keypoint'].reshape(-1, *a['keypoint'].shape[2:]) for a in annotations])
        with np.errstate(over='ignore'):
            coordinates = keypoint.astype(np.float32).transpose(2, 0, 1).copy()  # (C, R, V)
        finite = np.isfinite(coordinates).all(axis=0)
        missing = ~finite | (coordinates == 0).all(axis=0)
        scores = []
        if any(a.get('keypoint_score') is not None for a in annotations):
            score = np.concatenate([_scores(a) for a in annotations]).astype(np.float32)
            sound = np.isfinite(score)
            finite &= sound
            missing |= ~sound | (score == 0)
            scores = [float(score.min(where=sound, initial=np.inf)), float(score.max(where=sound, initial=-np.inf))]
        coordinates = np.where(missing, 0, coordinates)
        outside = turned = np.zeros_like(missing)
        if len(coordinates) == 2:
            rows = [a['keypoint'].shape[0] * a['keypoint'].shape[1] for a in annotations]
            h, w = np.repeat(img_shape, rows, axis=0).astype(np.float32).T[..., None]
            x, y = coordinates
            outside = ~missing & ~((x >= 0) & (x <= w) & (y >= 0) & (y <= h))
            turned = outside & (x >= 0) & (x <= h) & (y >= 0) & (y <= w)
        extreme = float(np.abs(coordinates).max())
        return cls(missing, ~finite, outside, turned, coordinates[1], extreme, scores)


def _scores(annotation: dict[str, Any]) -> np.ndarray:
    score, shape = annotation.get('keypoint_score'), annotation['keypoint'].shape
    return np.ones((shape[0] * shape[1], shape[2])) if score is None else score.reshape(-1, shape[2])


def content_of(keypoint: np.ndarray) -> bytes:
    """A digest that equal arrays, and in all likelihood no others, share."""
    digest = hashlib.blake2b(repr(keypoint.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(keypoint).view(np.uint8).data)
    return digest.digest()


# --- what is wrong -------------------------------------------------------------------------------------------------


def examine(found: Survey) -> list[Finding]:
    """All that is wrong with a set, whatever it is used for."""
    lists = of_pairs(found, pairs(found.split))
    return [*found.findings, *lists, *of_clips(found), *of_lists(found), *of_coordinates(found)]


def of_coordinates(found: Survey) -> Iterator[Finding]:
    num_joints = found.layout[0]
    try:
        skeleton_of(num_joints)
    except ValueError as error:
        yield Finding(str(error), 'convert the joints to a known skeleton, or add theirs to skeletons.py', True)
    if guess_of(found).endswith('?'):
        yield Finding(
            f'the {num_joints} joints are not in the order of {PICKLE_SKELETONS[num_joints].name}: heads are not above '
            'hips, or these not above ankles',
            'reorder the joints (2D: y points down, 3D: up; make_pickle --layout does it), or limbs will be wrong',
        )
    if not found.is_3d and 0 < found.extreme <= 2:
        yield Finding(
            f'the greatest coordinate is {found.extreme:.3g}: these are no pixels',
            'multiply them by width and height of the image',
            True,
        )
    if count := int(found.not_finite.sum()):
        yield Finding(
            f'{numbered(count, "joint")} not finite (NaN), in {clips_text(found, found.not_finite > 0)}',
            'nothing need be done: they count as missing',
        )
    if (found.missing == found.joints).any():
        yield Finding(
            f'no joint at all in {clips_text(found, found.missing == found.joints)}',
            'take them out of the lists: nothing can be learnt from them',
        )
    there = np.maximum(found.joints - found.missing, 1)
    swapped = found.outside > SWAPPED_OUTSIDE * there
    swapped &= there - found.outside + found.turned > SWAPPED_INSIDE * there
    if swapped.any():
        shapes = {tuple(shape) for shape in found.img_shape[swapped].tolist()}
        alike = sum(tuple(shape) in shapes for shape in found.img_shape.tolist())
        yield Finding(
            f'img_shape is (w, h) instead of (h, w) in {clips_text(found, swapped)}, whose joints fit only the turned '
            f'image, and perhaps in all {alike:,} of this shape',
            'exchange the two numbers of img_shape there: it is (height, width)',
            True,
        )
    if (out := found.outside[~swapped].sum()) > 0.1 * there[~swapped].sum():
        yield Finding(
            f'{out / there[~swapped].sum():.1%} of the joints lie outside the image',
            'compare img_shape with the video that the keypoints come from',
        )
    if found.score and (found.score[0] < 0 or found.score[1] > HIGHEST_SCORE):
        yield Finding(
            f'scores go from {found.score[0]:.3g} to {found.score[1]:.3g}',
            'scale them to 0 ... 1: a joint is drawn as bright as its score',
        )


def of_clips(found: Survey) -> Iterator[Finding]:
    twice = Counter(found.names)
    if repeated := [name for name, count in twice.items() if count > 1]:
        yield Finding(
            f'{numbered(len(repeated), "frame_dir")} of several annotations each: {listed(repeated)}',
            'give each annotation a name of its own: a list takes all of one name',
        )
    same = defaultdict(list)
    for i, digest in enumerate(found.digest):
        if found.missing[i] < found.joints[i]:
            same[digest].append(i)
    copies = [clips for clips in same.values() if len(clips) > 1]
    if copies:
        names = [' = '.join(shown_text(found.names[i]) for i in clips[:2]) for clips in copies]
        count = sum(len(set(found.label[clips])) > 1 for clips in copies)
        differing = f', {count:,} of them under different labels' if count else ''
        yield Finding(
            f'{numbered(len(copies), "group")} of clips with equal keypoints{differing}: {listed(names)}',
            'keep one of each: copies on both sides of a split make the result too good',
        )
    classes = np.unique(found.label)
    if count := int(classes[-1]) + 1 - len(classes):
        before = np.concatenate([[-1], classes[:-1]])
        gaps = [span(before[i] + 1, classes[i] - 1) for i in np.flatnonzero(classes - before > 1)]
        yield Finding(
            f'labels go to {classes[-1]}, but {count:,} of them have no clip: {listed(gaps, 8)}',
            'nothing, where these classes were left out on purpose; else number labels from 0 without gaps',
        )


def of_lists(found: Survey) -> Iterator[Finding]:
    known = set(found.names)
    lost = {name: [i for i in dict.fromkeys(ids) if i not in known] for name, ids in found.split.items()}
    void = [name for name, ids in found.split.items() if len(lost[name]) == len(set(ids))]
    if void:
        hint = lost_names_hint({name: found.split[name] for name in void}, found.names)
        yield Finding(
            f'no clip with an annotation in {"split" if len(void) == 1 else "splits"} {listed(void, 8)}'
            + (f'; {hint}' if hint else ''),
            'write the same names in split and as frame_dir' if hint else 'add annotations, or remove the empty split',
            True,
        )
    lost = {name: ids for name, ids in lost.items() if name not in void}
    if any(lost.values()):
        counts = ', '.join(f'{name} {len(ids):,}' for name, ids in lost.items() if ids)
        first = next(ids for ids in lost.values() if ids)
        yield Finding(
            f'clips of lists without a sound annotation, which are left out: {counts} ({listed(first)})',
            'add their annotations, or take them off the lists',
        )
    repeated = {name: len(ids) - len(set(ids)) for name, ids in found.split.items() if len(ids) > len(set(ids))}
    if repeated:
        counts = ', '.join(f'{name} {count:,}' for name, count in repeated.items())
        yield Finding(f'clips that stand in a list again: {counts}', 'nothing need be done: each is taken once')
    used = set().union(*found.split.values())
    if idle := [name for name in found.names if name not in used]:
        yield Finding(
            f'{len(idle):,} annotations are in no list: {listed(idle)}', 'add them to a list, or they are never used'
        )


def of_pairs(found: Survey, lists: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """What (training list, the list that tests it) have in common and must not, or the reverse."""
    clips, persons, unseen = [], [], []
    for train, val in lists:
        where = f'{shown_text(train)} and {shown_text(val)}'
        if shared := set(found.split[train]) & set(found.split[val]):
            clips.append(f'{where} {len(shared):,} ({listed(sorted(shared), 2)})')
        both = persons_of(found.split[train]) & persons_of(found.split[val])
        if both and not shared and not train.startswith(LIKE_PERSONS):
            persons.append(f'{where} {len(both)} ({listed(sorted(both))})')
        labels = [found.label[found.clips_of(name)] for name in (train, val)]
        if len(lacking := np.setdiff1d(labels[1], labels[0])):
            unseen.append(f'{where} {listed(spans(lacking), 8)}')
    if clips:
        yield Finding(
            f'clips both in {joined(clips)}',
            'take them off the training list: the model would be tested on what it has learnt',
        )
    if persons:
        yield Finding(
            f'persons both in {joined(persons)}',
            'nothing, if the benchmark is meant so; else keep each person on one side',
        )
    if unseen:
        yield Finding(
            f'classes that are tested but not trained, in {joined(unseen)}',
            'move clips of them to the training list, or take them out: they cannot be learnt',
        )


def for_config(found: Survey, path: str) -> list[Finding]:
    """What keeps a set from being trained on by a config. Raises UserError for an unsound config."""
    config = read_config(path, SECTIONS)
    data = resolve_config({'data': config.get('data', {})}, {'data': Clips}, (), path).data
    model, heatmap = config.get('model', {}), config.get('heatmap', {})
    return [*lists_for(found, data, model), *joints_for(found, data, model, heatmap), *lengths_for(data, model)]


def lists_for(found: Survey, data: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[Finding]:
    benchmark = data['benchmark']
    lists = [f'{benchmark}_train', f'{benchmark}_val'] if isinstance(benchmark, str) else benchmark
    present = [name for name in lists if name in found.split]
    if absent := [name for name in lists if name not in found.split]:
        yield Finding(
            f'no list {" and ".join(map(shown_text, absent))} (data.benchmark {benchmark}); there are '
            f'{listed(list(found.split), 12)}',
            'set data.benchmark to one of these, as xsub, or to two of them, as [train1, test1]',
            True,
        )
    clips = {name: found.clips_of(name) for name in present}
    for name in present:
        if len(clips[name]) <= (name == lists[0]):
            yield Finding(f'list {name} has {len(clips[name])} sound clips: too few', 'name another benchmark', True)
    if len(present) == 2 and tuple(present) not in pairs(found.split):
        yield from of_pairs(found, [tuple(present)])
    used = np.concatenate([found.label[c] for c in clips.values()]) if clips else np.zeros(0, int)
    num_classes = model.get('num_classes')
    if isinstance(num_classes, int) and len(used):
        if used.max() >= num_classes:
            over = np.concatenate([c[found.label[c] >= num_classes] for c in clips.values()])
            mask = np.isin(np.arange(len(found.names)), over)
            yield Finding(
                f'labels go to {used.max()}, but model.num_classes is {num_classes}: {clips_text(found, mask)}',
                f'set model.num_classes to {used.max() + 1}',
                True,
            )
        elif used.max() + 1 < num_classes:
            yield Finding(
                f'labels go to {used.max()}, so that some of model.num_classes {num_classes} are never met',
                f'set model.num_classes to {used.max() + 1}, unless you mean to load weights of {num_classes} classes',
            )


def joints_for(
    found: Survey, data: Mapping[str, Any], model: Mapping[str, Any], heatmap: Mapping[str, Any]
) -> Iterator[Finding]:
    kind, (num_joints, _) = data['input'], found.layout
    form = f'{"3D" if found.is_3d else "2D"} keypoints of {num_joints} joints'
    if kind == 'keypoint_2d' and (found.is_3d or num_joints != len(COCO17.joints)):
        yield Finding(
            f'{form}, but data.input keypoint_2d takes 2D ones of COCO-17', 'name the 2D pickle (_hrnet)', True
        )
    elif kind == 'keypoint_3d' and not found.is_3d:
        yield Finding(f'{form}, but data.input is keypoint_3d', 'name the 3D pickle (_3danno)', True)
    elif num_joints in PICKLE_SKELETONS:
        limbs = len(PICKLE_SKELETONS[num_joints].limbs)
        drawn = {'joint': num_joints, 'limb': limbs, 'both': num_joints + limbs}
        given = drawn.get(heatmap.get('kind', 'joint'), num_joints) if kind == 'heatmap' else num_joints
        if model.get('num_joints', given) != given:
            yield Finding(
                f'the model would be given {given} joints or limbs, but model.num_joints is {model["num_joints"]}',
                f'set model.num_joints to {given}, or name another pickle',
                True,
            )


def lengths_for(data: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[Finding]:
    clip_len = data['clip_len']
    for key in ('maxlen', 'num_frames', 'clip_len'):
        most = model.get(key)
        if isinstance(most, int) and (clip_len > most or (key == 'clip_len' and clip_len != most)):
            yield Finding(f'data.clip_len is {clip_len}, but model.{key} {most}', f'set both to {clip_len}', True)


def guess_of(found: Survey) -> str:
    """The skeleton by joint count and posture; with a question mark where they disagree."""
    num_joints, _ = found.layout
    if num_joints not in PICKLE_SKELETONS:
        return f'unknown skeleton of {num_joints} joints'
    skeleton = PICKLE_SKELETONS[num_joints]
    head, hips, ankles = (
        np.mean([found.height[i] for i, name in enumerate(skeleton.joints) if name.endswith(part)])
        for part in (('nose', 'eye', 'ear', 'head'), 'hip', 'ankle')
    )
    down = -1 if found.is_3d else 1  # pixels count downwards
    return skeleton.name if head * down <= hips * down <= ankles * down else f'{skeleton.name}?'


def pairs(lists: Iterable[str]) -> list[tuple[str, str]]:
    """Training lists, each with the list that tests it, by their names."""
    lists = dict.fromkeys(lists)
    partners = [(name, name.replace('train', test)) for name in lists for test in ('val', 'test') if 'train' in name]
    return [pair for pair in partners if pair[1] in lists][:MOST_LISTS]


def persons_of(ids: Sequence[str]) -> set[str]:
    """The persons P001 of NTU's ids; none where a name has another form."""
    matches = [NTU_ID.fullmatch(name) for name in ids]
    return {f'P{match[1]}' for match in matches} if all(matches) else set()


# --- telling it ----------------------------------------------------------------------------------------------------


def listed(names: Sequence[str], most: int = 3) -> str:
    return ', '.join(map(shown_text, names[:most])) + (', ...' if len(names) > most else '')


def clips_text(found: Survey, mask: np.ndarray) -> str:
    clips = np.flatnonzero(mask)
    return f'{numbered(len(clips), "clip")} ({listed([found.names[i] for i in clips[:3]], 2)})'


def span(first: int, last: int) -> str:
    return f'{first}' if first == last else f'{first}-{last}'


def spans(numbers: np.ndarray) -> list[str]:
    """Rising numbers as 1, 4-7, 9."""
    groups = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [span(group[0], group[-1]) for group in groups]


def joined(texts: Sequence[str], most: int = 4) -> str:
    return '; '.join(texts[:most]) + (f'; {len(texts) - most} more' if len(texts) > most else '')


def screen(path: Path, found: Survey, findings: Sequence[Finding], clip_len: int | None = None) -> str:
    """The whole report. clip_len: frames that a config asks of a clip."""
    size = sum(file.stat().st_size for file in (path.glob('*.pkl') if path.is_dir() else [path]))
    lines = [f'{path}: {len(found.names):,} clips, {size / 1e6:,.1f} MB', *facts(found, clip_len), '']
    lines += [*lists_table(found), '']
    faults = [finding for finding in findings if finding.is_fault]
    warnings = [finding for finding in findings if not finding.is_fault]
    for finding in (faults + warnings)[:MOST_FINDINGS]:
        what = f'{"FAULT" if finding.is_fault else "warning":<9}{finding.what}'
        wrapped = textwrap.wrap(what, WIDTH, subsequent_indent=' ' * 9, max_lines=MOST_LINES, placeholder=' ...')
        lines += [*wrapped, f'{"":9}-> {finding.remedy}']
    if len(findings) > MOST_FINDINGS:
        lines.append(f'         and {len(findings) - MOST_FINDINGS} more')
    if findings:
        lines.append('')
    return '\n'.join([*lines, f'{numbered(len(faults), "fault")}, {numbered(len(warnings), "warning")}'])


def numbered(count: int, noun: str) -> str:
    return f'{count:,} {noun}' if count == 1 else f'{count:,} {noun}s'


def facts(found: Survey, clip_len: int | None) -> Iterator[str]:
    def fact(name: str, value: str) -> str:
        return f'{name:<9}  {value}'

    units = 'metres' if found.is_3d else 'pixels'
    yield fact('layout', f'{guess_of(found)}, {"x, y, z" if found.is_3d else "x, y"} in {units}, {found.dtypes}')
    counts = Counter(found.persons.tolist())
    yield fact('persons', ', '.join(f'{count} in {number:,} clips' for count, number in sorted(counts.items())[:6]))
    short = '' if clip_len is None else f'; {(found.frames < clip_len).mean():.1%} of the clips under {clip_len}'
    yield fact('frames', f'{found.frames.min()} to {found.frames.max()}, median {np.median(found.frames):g}{short}')
    if not found.is_3d:
        shapes = Counter(map(tuple, found.img_shape.tolist())).most_common()
        text = ', '.join(f'{h} x {w} in {number:,} clips' for (h, w), number in shapes[:3])
        yield fact('images', text + (f' and {len(shapes) - 3} more sizes' if len(shapes) > 3 else ''))
    scores = 'none: 1 for each joint that is there' if found.score is None else '{:.3f} to {:.3f}'.format(*found.score)
    yield fact('scores', scores)
    total, missing = found.joints.sum(), found.missing.sum()
    outside = '' if found.is_3d else f', {found.outside.sum() / max(total - missing, 1):.2%} of the others outside'
    yield fact('joints', f'{total:,}, {missing / total:.2%} missing{outside}, {found.not_finite.sum():,} not finite')


def lists_table(found: Survey) -> list[str]:
    """A line for each list: its clips and their classes, few ones with a column each."""
    classes = np.unique(found.label)
    columns = [f'class {classes[0]}', *map(str, classes[1:])] if len(classes) <= MOST_CLASSES else ['fewest', 'most']
    rows = [['list', 'clips', 'persons', 'classes', *columns]]
    for name in list(found.split)[:MOST_LISTS]:
        clips = found.clips_of(name)
        rows.append([shown_text(name), f'{len(clips):,}', f'{len(persons_of(found.split[name])) or "-"}'])
        rows[-1] += class_cells(found.label[clips], classes)
    rows.append(['all', f'{len(found.names):,}', f'{len(persons_of(found.names)) or "-"}'])
    rows[-1] += class_cells(found.label, classes)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join(f'{c:{"<" if i == 0 else ">"}{widths[i]}}' for i, c in enumerate(row)).rstrip() for row in rows]
    if len(found.split) > MOST_LISTS:
        lines.append(f'and {len(found.split) - MOST_LISTS} more lists')
    return lines if len(classes) <= MOST_CLASSES else [*lines, '', *classes_block(found, classes)]


def class_cells(label: np.ndarray, classes: np.ndarray) -> list[str]:
    counts = Counter(label.tolist())
    if len(classes) <= MOST_CLASSES:
        return [str(len(counts)), *(f'{counts[c]:,}' for c in classes.tolist())]
    ordered = counts.most_common()
    ends = [f'{number:,} (class {c})' for c, number in (ordered[-1], ordered[0])] if ordered else ['-', '-']
    return [str(len(counts)), *ends]


def classes_block(found: Survey, classes: np.ndarray) -> list[str]:
    """Clips of each class, ten or more to a line: in the first pair of lists, train+val, else in all."""
    pair = next(iter(pairs(found.split)), None)
    lists = [found.label] if pair is None else [found.label[found.clips_of(name)] for name in pair]
    shown = np.arange(classes[-1] + 1) if classes[-1] < MOST_NUMBERED else classes
    counts = np.array([np.diff(np.searchsorted(np.sort(label), [*shown, shown[-1] + 1])) for label in lists]).T
    cells = ['+'.join(map(str, row)) for row in counts.tolist()]
    width = max(map(len, cells))
    a_line = next((n for n in (20, 10, 5) if n * (width + 2) + 10 <= WIDTH), 1)
    starts = [i for i in range(0, len(cells), a_line) if counts[i : i + a_line].any()]
    lines = [
        f'{shown[start]:>6} ...  ' + '  '.join(f'{c:>{width}}' for c in cells[start : start + a_line])
        for start in starts
    ]
    most = 12
    heading = f'clips of each class, {"+".join(pair)}:' if pair else 'clips of each class:'
    return [heading, *lines[:most], *([f'and {len(lines) - most} more lines'] if len(lines) > most else [])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.check_data'
    )
    parser.add_argument('file', type=Path, metavar='FILE', help='PYSKL pickle, or a folder of them')
    parser.add_argument('--config', metavar='FILE', help='YAML config that is to be trained on it')
    args = parser.parse_args(arguments)
    try:
        clip_len = read_config(args.config, SECTIONS).get('data', {}).get('clip_len') if args.config else None
        found = survey(args.file)
        findings = examine(found) + (for_config(found, args.config) if args.config else [])
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    print(screen(args.file, found, findings, clip_len))
    return FAILED if any(finding.is_fault for finding in findings) else DONE


if __name__ == '__main__':
    sys.exit(main())
