"""Check a PYSKL pickle before training on it.

    python -m lib.tools.check_data data/action/ntu60_hrnet.pkl --config configs/action/MB_train.yaml

Prints the content of FILE, a pickle or a folder of pickles, and all errors in it. A fault prevents or impairs training
(with --config: training with this config); a warning makes results doubtful. Exit code: 0 without faults, 1 with
faults, 2 if the file or the config cannot be read.
"""

import argparse
import hashlib
import logging
import re
import sys
import tempfile
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.cli import DONE, FAILED, add_set
from lib.data.batches import make_clips
from lib.data.pickles import (
    check_annotation,
    is_without_persons,
    lost_names_hint,
    read_pickle,
    refuse_third_score,
    require_form,
)
from lib.data.skeletons import PICKLE_SKELETONS, skeleton_of
from lib.data.store import pickles_of
from lib.errors import UserError, numbered, shown_text
from lib.models import load_config
from lib.tools.checkpoints import build_model
from lib.tools.running import hidden_messages, listed, log, make_parser, progress, run_tool

SWAPPED_OUTSIDE = 0.25  # minimum share of joints outside the image if img_shape is swapped
SWAPPED_INSIDE = 0.98  # minimum share of joints inside the transposed image
HIGHEST_SCORE = 1.5  # peaks of HRNet may exceed 1
MOST_LINES, WIDTH = 3, 118  # of a printed finding


@dataclass(frozen=True)
class Finding:
    """An error in the data and its remedy. is_fault: whether it prevents or impairs training."""

    text: str
    remedy: str = ''
    is_fault: bool = False


@dataclass(frozen=True)
class Clip:
    """Statistics of an annotation.

    missing, not_finite, outside: numbers of joints; transposed: of those outside the image, the number inside the
    transposed image. height: (V,) mean y of each joint, NaN if it is always missing. extreme: largest absolute
    coordinate. scores: minimum and maximum, empty without scores.
    """

    name: str
    label: int
    shape: tuple[int, ...]
    img_shape: tuple[int, int] | None
    missing: int
    not_finite: int
    outside: int
    transposed: int
    height: np.ndarray
    extreme: float
    scores: tuple[float, ...]
    digest: bytes

    @property
    def joints(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def is_swapped(self) -> bool:
        """Whether the joints fit only the transposed image."""
        present = self.joints - self.missing
        inside = present - self.outside + self.transposed
        return self.outside > SWAPPED_OUTSIDE * present and inside > SWAPPED_INSIDE * present


@dataclass
class Dataset:
    """The splits of a pickle, and its valid clips, all of the layout (V, C)."""

    split: dict[str, list[str]]
    clips: list[Clip]
    layout: tuple[int, int]

    @property
    def is_3d(self) -> bool:
        return self.layout[1] == 3

    def clips_of(self, split: str) -> list[Clip]:
        names = set(self.split[split])
        return [clip for clip in self.clips if clip.name in names]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'check_data')
    parser.add_argument('file', type=Path, metavar='FILE', help='PYSKL pickle, or a folder of them')
    parser.add_argument('--config', type=Path, metavar='FILE', help='YAML config to train with')
    add_set(parser)
    return run_tool(check, parser, argv)


def check(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.set) if args.config else None
    dataset, findings = read_dataset(args.file)
    is_readable = not any(finding.is_fault for finding in findings)  # otherwise Clips raises the same errors
    findings += [*check_coordinates(dataset), *check_clips(dataset), *check_splits(dataset)]
    pairs = pairs_of(dataset.split)
    if config and is_readable:
        benchmark = config.data.benchmark
        pair = (f'{benchmark}_train', f'{benchmark}_val') if isinstance(benchmark, str) else tuple(benchmark)
        known = dataset.split and zip(('train', 'val'), pair, strict=True)  # empty splits are findings already
        modes = [mode for mode, name in known if name not in dataset.split or dataset.clips_of(name)]
        findings += check_config(args.file, config, dataset.layout[0], modes)
        pairs += [pair] if pair not in pairs and set(pair) <= dataset.split.keys() else []
    findings += check_pairs(dataset, pairs)
    for line in report(args.file, dataset, findings):
        log.info('%s', line)
    return FAILED if any(finding.is_fault for finding in findings) else DONE


def read_dataset(path: Path) -> tuple[Dataset, list[Finding]]:
    """The valid clips of a pickle or a folder of pickles, and the errors in the others.

    Raises UserError if a file is not a dataset.
    """
    files, split = pickles_of(path), {}
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
            except UserError as error:
                faults[re.sub(r'\(.*?\)|\[.*?\]|\d+', '', str(error)[len(where) :])].append(str(error))
    findings = [
        Finding(
            f'{numbered(len(messages), "invalid annotation")}, training refuses the file: {messages[0]}',
            'correct or remove them',
            is_fault=True,
        )
        for messages in faults.values()
    ]
    if not annotations:
        raise UserError(f'{path} holds no valid annotation: {findings[0].text if findings else "no clip has a person"}')
    if empty:
        text = f'{numbered(len(empty), "clip")} without persons, left out: {listed(empty)}'
        findings.append(Finding(text, 'none needed'))
    layouts = Counter(annotation['keypoint'].shape[2:] for annotation in annotations)
    layout = layouts.most_common(1)[0][0]
    for other in layouts.keys() - {layout}:
        first = next(a['frame_dir'] for a in annotations if a['keypoint'].shape[2:] == other)
        text = f'(joints, coordinates) is {other} in {layouts[other]:,} clips ({shown_text(first)}), otherwise {layout}'
        findings.append(Finding(text, 'write one pickle per layout', is_fault=True))
    annotations = [a for a in annotations if a['keypoint'].shape[2:] == layout]
    return Dataset(split, [measure(annotation) for annotation in progress(annotations)], layout), findings


def measure(annotation: dict[str, Any]) -> Clip:
    keypoint, score = annotation['keypoint'], annotation.get('keypoint_score')
    digest = hashlib.blake2b(np.ascontiguousarray(keypoint).view(np.uint8).data, digest_size=16)
    digest.update(repr(keypoint.shape).encode())
    with np.errstate(over='ignore'):
        coordinates = np.moveaxis(keypoint.astype(np.float32), 3, 0)  # (C,M,T,V)
    finite = np.isfinite(coordinates).all(axis=0)
    missing, scores = ~finite | ~coordinates.any(axis=0), ()
    if score is not None:
        score = score.astype(np.float32)
        sound = np.isfinite(score)
        finite &= sound
        missing |= ~sound | (score == 0)
        scores = float(score.min(where=sound, initial=np.inf)), float(score.max(where=sound, initial=-np.inf))
    coordinates = np.where(missing, 0, coordinates)
    img_shape, outside, transposed = None, 0, 0
    if len(coordinates) == 2:
        img_shape, (x, y) = annotation['img_shape'], coordinates
        height, width = img_shape
        is_outside = ~missing & ((x < 0) | (x > width) | (y < 0) | (y > height))
        outside = int(is_outside.sum())
        transposed = int((is_outside & (x >= 0) & (x <= height) & (y >= 0) & (y <= width)).sum())
    with np.errstate(invalid='ignore'):
        height = coordinates[1].sum(axis=(0, 1)) / (~missing).sum(axis=(0, 1))
    return Clip(
        name=annotation['frame_dir'],
        label=annotation['label'],
        shape=keypoint.shape,
        img_shape=img_shape,
        missing=int(missing.sum()),
        not_finite=int((~finite).sum()),
        outside=outside,
        transposed=transposed,
        height=height,
        extreme=float(np.abs(coordinates).max()),
        scores=scores,
        digest=digest.digest(),
    )


def check_coordinates(dataset: Dataset) -> Iterator[Finding]:
    clips, (num_joints, _) = dataset.clips, dataset.layout
    try:
        skeleton_of(num_joints)
    except UserError as error:
        yield Finding(str(error), 'convert the joints to a known skeleton, or add it to skeletons.py', True)
    if not is_upright(dataset):
        yield Finding(
            f'the {num_joints} joints are not in the order of {PICKLE_SKELETONS[num_joints].name}: heads are not above '
            'hips, or hips not above ankles',
            'reorder the joints, for example by make_pickle --layout (y points down in 2D, up in 3D)',
        )
    extreme = max(clip.extreme for clip in clips)
    if not dataset.is_3d and 0 < extreme <= 2:
        text = f'the largest coordinate is {extreme:.3g}: coordinates are not in pixels'
        yield Finding(text, 'multiply them by the width and height of the image', True)
    if some := [clip for clip in clips if clip.not_finite]:
        text = f'{numbered(sum(clip.not_finite for clip in some), "joint")} not finite (NaN), in {clips_text(some)}'
        yield Finding(text, 'none needed: they count as missing')
    if some := [clip for clip in clips if clip.missing == clip.joints]:
        yield Finding(f'no joints in {clips_text(some)}', 'remove them from the splits')
    swapped = [clip for clip in clips if clip.is_swapped]
    if swapped:
        shapes = {clip.img_shape for clip in swapped}
        alike = sum(clip.img_shape in shapes for clip in clips)
        text = f'img_shape is (w, h) instead of (h, w) in {clips_text(swapped)}, perhaps in all {alike:,} of this shape'
        yield Finding(text, 'swap the two numbers', True)
    others = [clip for clip in clips if not clip.is_swapped]
    outside, present = sum(clip.outside for clip in others), sum(clip.joints - clip.missing for clip in others)
    if outside > 0.1 * present:
        text = f'{outside / present:.1%} of the joints are outside the image'
        yield Finding(text, 'compare img_shape with the size of the video')
    scores = [score for clip in clips for score in clip.scores]
    if scores and (min(scores) < 0 or max(scores) > HIGHEST_SCORE):
        text = f'scores range from {min(scores):.3g} to {max(scores):.3g}'
        yield Finding(text, 'scale them to 0 ... 1: they are the peaks of the heatmaps')


def check_clips(dataset: Dataset) -> Iterator[Finding]:
    counts = Counter(clip.name for clip in dataset.clips)
    if repeated := [name for name, count in counts.items() if count > 1]:
        text = f'{numbered(len(repeated), "frame_dir")} used by several annotations: {listed(repeated)}'
        yield Finding(text, 'use unique names: a split includes all annotations of a name')
    equal = defaultdict(list)
    for clip in dataset.clips:
        if clip.missing < clip.joints:
            equal[clip.digest].append(clip)
    copies = [group for group in equal.values() if len(group) > 1]
    if copies:
        count = sum(len({clip.label for clip in group}) > 1 for group in copies)
        differing = f', {count:,} of them with different labels' if count else ''
        examples = listed([' = '.join(clip.name for clip in group[:2]) for group in copies])
        yield Finding(
            f'{numbered(len(copies), "group")} of clips with equal keypoints{differing}: {examples}',
            'keep one of each: copies in both splits inflate the accuracy',
        )
    labels = {clip.label for clip in dataset.clips}
    if count := max(labels) + 1 - len(labels):
        gaps = (str(label) for label in range(max(labels)) if label not in labels)
        text = f'labels go up to {max(labels)}, but {count:,} have no clip: {listed(list(islice(gaps, 9)), 8)}'
        yield Finding(text, 'number labels without gaps, unless these classes were left out on purpose')


def check_splits(dataset: Dataset) -> Iterator[Finding]:
    names, missing = {clip.name for clip in dataset.clips}, {}
    if not dataset.split:
        yield Finding('there are no splits', "add them: {'train': [frame_dir, ...], 'val': [...]}", True)
        return
    for split, ids in dataset.split.items():
        if names.intersection(ids):
            missing[split] = [name for name in dict.fromkeys(ids) if name not in names]
            continue
        text = f'split {shown_text(split)} is empty'
        text += f': none of its {len(ids):,} names has an annotation ({listed(ids, 2)})' if ids else ''
        hint = lost_names_hint({split: ids}, names)
        yield Finding(text, f'use the same names: {hint}' if hint else 'add clips, or remove the split', True)
    if any(missing.values()):
        counts = ', '.join(f'{split} {len(ids):,}' for split, ids in missing.items() if ids)
        text = f'names in splits without a valid annotation are skipped: {counts}'
        examples = listed([name for ids in missing.values() for name in ids])
        yield Finding(f'{text} ({examples})', 'add annotations, or remove the names')
    used = set().union(*dataset.split.values())
    if unused := [clip for clip in dataset.clips if clip.name not in used]:
        yield Finding(f'{clips_text(unused)} in no split', 'add them to a split, otherwise they are never used')


def check_pairs(dataset: Dataset, pairs: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Clips in both splits of a pair (train, val), and classes only in val."""
    for train, val in pairs:
        where = f'{shown_text(train)} and {shown_text(val)}'
        if shared := set(dataset.split[train]) & set(dataset.split[val]):
            text = f'{numbered(len(shared), "clip")} both in {where} ({listed(sorted(shared), 2)})'
            yield Finding(text, 'remove them from the training split')
        learnt, tested = ({clip.label for clip in dataset.clips_of(split)} for split in (train, val))
        if learnt and (unseen := sorted(tested - learnt)):
            text = f'classes only in {shown_text(val)}, not in {shown_text(train)}: {listed(list(map(str, unseen)), 8)}'
            yield Finding(text, 'add clips of these classes to the training split')


def check_config(path: Path, config: EasyDict, num_joints: int, modes: Sequence[str]) -> list[Finding]:
    """The errors raised by the model and by Clips for this dataset. modes: some of train and val."""
    errors = []
    tries = [partial(make_clips, config, mode) for mode in modes]
    tries.append(partial(build_model, config, num_joints))
    hidden = hidden_messages('lib.data.store', logging.WARNING)  # they are findings already
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action='ignore'), hidden:
        config.data.update(ann_file=str(path), store_dir=folder)
        for build in tries:
            try:
                build()
            except UserError as error:
                errors.append(str(error))
    return [Finding(error, is_fault=True) for error in dict.fromkeys(errors)]


def is_upright(dataset: Dataset) -> bool:
    """Whether heads are above hips and hips above ankles on average. True for unknown skeletons."""
    num_joints = dataset.layout[0]
    if num_joints not in PICKLE_SKELETONS:
        return True
    joints = PICKLE_SKELETONS[num_joints].joints
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # joints that are always missing
        height = np.nanmean([clip.height for clip in dataset.clips], axis=0)
        head, hips, ankles = (
            np.nanmean([height[i] for i in range(num_joints) if joints[i].endswith(part)])
            for part in (('nose', 'eye', 'ear', 'head'), 'hip', 'ankle')
        )
    down = -1 if dataset.is_3d else 1  # y points down in pixels
    return not (head * down > hips * down or hips * down > ankles * down)


def pairs_of(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of training and validation splits, by their names."""
    splits = list(splits)
    partners = [(name, name.replace('train', test)) for name in splits for test in ('val', 'test') if 'train' in name]
    return [pair for pair in partners if pair[1] in splits]


def clips_text(clips: Sequence[Clip]) -> str:
    return f'{numbered(len(clips), "clip")} ({listed([clip.name for clip in clips[:3]], 2)})'


def report(path: Path, dataset: Dataset, findings: Sequence[Finding]) -> Iterator[str]:
    """Lines to print."""
    yield f'{path}: {numbered(len(dataset.clips), "clip")}'
    for name, text in facts(dataset):
        yield f'{name:<9}  {text}'
    yield ''
    yield from split_table(dataset)
    yield ''
    findings = sorted(findings, key=lambda finding: not finding.is_fault)
    for finding in findings:
        text = f'{"FAULT" if finding.is_fault else "warning":<9}{finding.text}'
        yield from textwrap.wrap(text, WIDTH, subsequent_indent=' ' * 9, max_lines=MOST_LINES, placeholder=' ...')
        if finding.remedy:
            yield f'{"":9}-> {finding.remedy}'
    faults = sum(finding.is_fault for finding in findings)
    yield f'{numbered(faults, "fault")}, {numbered(len(findings) - faults, "warning")}'


def facts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    clips, num_joints = dataset.clips, dataset.layout[0]
    skeleton = PICKLE_SKELETONS[num_joints].name if num_joints in PICKLE_SKELETONS else f'unknown, {num_joints} joints'
    yield 'layout', f'{skeleton}, {"x, y, z in metres" if dataset.is_3d else "x, y in pixels"}'
    persons, frames = Counter(clip.shape[0] for clip in clips), [clip.shape[1] for clip in clips]
    yield 'persons', ', '.join(f'{count} in {number:,} clips' for count, number in sorted(persons.items())[:6])
    shortest, longest = min(frames), max(frames)
    span = f'{shortest}' if shortest == longest else f'{shortest}-{longest}'
    yield 'frames', f'{span}, median {np.median(frames):g}'
    if not dataset.is_3d:
        shapes = Counter(clip.img_shape for clip in clips).most_common(4)
        yield 'images', listed([f'{h} x {w} in {number:,} clips' for (h, w), number in shapes])
    scores = [score for clip in clips for score in clip.scores]
    yield 'scores', f'{min(scores):.3f} to {max(scores):.3f}' if scores else 'none'
    missing, total = sum(clip.missing for clip in clips), sum(clip.joints for clip in clips)
    yield 'joints', f'{total:,}, {missing / total:.2%} missing'


def split_table(dataset: Dataset) -> Iterator[str]:
    rows = [('split', 'clips', 'classes', 'fewest', 'most')]
    groups = {shown_text(name): dataset.clips_of(name) for name in dataset.split}
    for name, clips in (groups | {'all': dataset.clips}).items():
        counts = Counter(clip.label for clip in clips).most_common()
        ends = [f'{number:,} (class {label})' for label, number in (counts[-1], counts[0])] if counts else ['-', '-']
        rows.append((name, f'{len(clips):,}', str(len(counts)), *ends))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield '  '.join([f'{first:<{widths[0]}}', *(f'{c:>{w}}' for c, w in zip(others, widths[1:], strict=True))])


if __name__ == '__main__':
    sys.exit(main())
