"""Predict the actions in keypoint files with a checkpoint of any of the three models.

    python -m lib.tools.predict checkpoint/action/mbert clip.json --window 120 --out out/predicted

INPUT is a keypoint file or folder in any supported format (data/README.md), or a PYSKL pickle, whose clips are
predicted exactly as in an evaluation. Prints the five most likely actions. Files of over 300 frames, except pickles,
are split into windows and reported as segments: "240-300" stands for frames 240 to 299 of the video. --out receives
predictions.json and timelines. --set data.class_names=FILE names the classes.
"""

import argparse
import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from easydict import EasyDict

from lib.cli import add_set
from lib.data.batches import make_clips
from lib.data.heatmap import joints_with
from lib.data.pickles import require_form, save_annotations, score_of
from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, numbered, shown_text
from lib.evaluation import Checkpoint
from lib.files import make_folder, write_text
from lib.formats import SUPPORTED, pyskl, read_keypoint_file
from lib.formats.content import Pickled, read_content
from lib.metrics import log_probability
from lib.plots import save_figure, timeline_figure
from lib.tools.checkpoints import open_checkpoint
from lib.tools.running import (
    add_checkpoint,
    add_out,
    add_reading,
    check_new,
    hidden_messages,
    img_shape_of,
    log,
    make_parser,
    run_tool,
)

LONGEST = 300  # frames of the longest clip of NTU60; longer files are split into windows
WINDOW = 120  # frames: 4 s at 30 frames per second
MOST_PERSONS = 30  # read per file
MOST_DETAILED = 10  # clips or persons; beyond this number, only the most likely action of each is printed
KEYS = ('total_frames', 'img_shape', 'keypoint', 'keypoint_score')


@dataclass(frozen=True)
class Subject:
    """A clip, or one person of it, and the windows in which its action is predicted.

    entry: its facts in predictions.json. windows: (start, end) in frame numbers of the video. clips: the annotation of
    each window, None without persons. present: number of persons in each window.
    """

    entry: dict[str, Any]
    windows: list[tuple[int, int]]
    clips: list[dict[str, Any] | None]
    present: list[int]

    @property
    def title(self) -> str:
        person = self.entry['person']
        return shown_text(self.entry['name']) + (f', person {person}' if person else '')


class Segment(NamedTuple):
    """Consecutive windows with the same top-1 action, and its mean probability; both are None without persons."""

    start: int
    end: int
    action: int | None
    probability: float | None


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'predict')
    add_checkpoint(parser)
    parser.add_argument('inputs', type=Path, nargs='+', metavar='INPUT', help='keypoint file, folder or pickle')
    add_reading(parser)
    parser.add_argument(
        '--window',
        type=int,
        metavar='FRAMES',
        help=f'length of a window (default: {WINDOW} for files of over {LONGEST} frames; none for pickles)',
    )
    parser.add_argument('--stride', type=int, metavar='FRAMES', help='step between windows (default: half a window)')
    parser.add_argument('--per_person', action='store_true', help='predict each person separately')
    parser.add_argument('--split', metavar='NAME', help='split of a pickle (default: all clips)')
    add_out(parser, 'FOLDER', text='folder for predictions.json and timelines')
    add_set(parser)
    return run_tool(predict, parser, argv)


def predict(args: argparse.Namespace) -> None:
    img_shape, longest_stride = img_shape_of(args), args.window or WINDOW
    if args.window is not None and args.window < 1:
        raise UserError(f'--window {args.window}: give at least 1 frame.')
    if args.stride is not None and not 1 <= args.stride <= longest_stride:
        raise UserError(f'--stride {args.stride}: give 1 to {longest_stride} frames, at most the length of a window.')
    if args.out:
        check_new(args.out, 'predictions.json', 'timeline*.png')
    # Compiling would take longer than predicting.
    checkpoint = open_checkpoint(args.checkpoint, ['train.compile=false', *args.set])
    names, subjects = checkpoint.class_names, []
    for path in args.inputs:
        for annotation in read_input(path, args.layout, img_shape, args.split):
            check_fits(checkpoint, annotation, path)
            subjects += subjects_of(path, annotation, checkpoint.config.data.max_persons, args)
    if args.stride and not args.window and all(len(subject.windows) == 1 for subject in subjects):
        raise UserError(f'--stride {args.stride} has no effect: no input is split into windows. Add --window.')
    log.info('%s: %s, epoch %s, %s classes', checkpoint.path, checkpoint.script, checkpoint.epoch, len(names))
    predictions = predict_subjects(checkpoint, subjects)
    if args.out:
        written = write(args.out, checkpoint, subjects, predictions, names)  # before printing to a pipe that may close
    top = 5 if len(subjects) <= MOST_DETAILED else 1
    for subject, probabilities in zip(subjects, predictions, strict=True):
        for line in lines_of(subject, probabilities, names, top):
            log.info('%s', line)
    crowded = [count for subject in subjects for count in subject.present if count > checkpoint.config.data.max_persons]
    if crowded:
        log.info(
            'note: %s with more than %d persons; the additional persons are ignored, see --per_person',
            numbered(len(crowded), 'window'), checkpoint.config.data.max_persons,
        )  # fmt: skip
    if args.out:
        log.info('wrote %s to %s', written, args.out)


# --- from files to windows ------------------------------------------------------------------------------------------


def read_input(
    path: Path, layout: str | None, img_shape: tuple[int, int] | None, split: str | None
) -> list[dict[str, Any]]:
    """The annotations in a file, or in a split of a pickle. Raises UserError naming the file."""
    if split is None:
        return read_keypoint_file(path, layout, img_shape, MOST_PERSONS)
    content = None if path.is_dir() else read_content(path, SUPPORTED)
    if not isinstance(content, Pickled):
        raise UserError(f'{path} is not a PYSKL pickle and has no splits: omit --split.')
    splits, _ = require_form(content.data, path)
    names = set(splits.get(split, ()))
    annotations = [clip for clip in pyskl.read(content.data, path, layout) if clip['frame_dir'] in names]
    if not annotations:
        known = ', '.join(map(shown_text, splits))
        raise UserError(f'{path} has no clips in split {shown_text(split)}; its splits are {known or "none"}.')
    return annotations


def is_from_pickle(annotation: dict[str, Any]) -> bool:
    return 'persons_left_out' not in annotation


def check_fits(checkpoint: Checkpoint, annotation: dict[str, Any], path: Path) -> None:
    """Raises UserError, naming both files, if the model was trained on other keypoints."""
    config, (num_joints, size) = checkpoint.config, annotation['keypoint'].shape[2:]
    if config.data.input == 'heatmap':
        needed = joints_with(config.heatmap.kind, config.model.num_joints)
        fits, wanted = num_joints in needed, 'heatmaps'
    else:
        needed, wanted = ([17], '2D keypoints') if config.data.input == 'keypoint_2d' else ([25], '3D keypoints')
        fits = num_joints in needed and f'{size}D' in wanted
    if not fits:
        layouts = [name for name, joints in LAYOUTS.items() if len(joints) == num_joints]
        remedy = f'specify the layout of the joints: --layout {" or ".join(layouts)}'
        raise UserError(
            f'{path} holds {size}D keypoints of {num_joints} joints, but {checkpoint.path} was trained on {wanted} of '
            f'{" or ".join(map(str, needed)) or "other"} joints. Use a checkpoint trained on such keypoints'
            f'{f", or {remedy}" if layouts and size == 2 and 17 in needed else ""}.'
        )


def subjects_of(path: Path, annotation: dict[str, Any], max_persons: int, args: argparse.Namespace) -> list[Subject]:
    """The subjects of a clip. args: window, stride, per_person.

    A clip of a pickle is one window of any length, unchanged, unless options require otherwise. Elsewhere each window
    holds its max_persons most present persons. A single person's only window spans its first to its last frame.
    """
    frames, presence, window = annotation['total_frames'], presence_of(annotation), args.window
    if window is None and frames > LONGEST and not is_from_pickle(annotation):
        window = WINDOW
    is_unchanged = window is None and not args.per_person and is_from_pickle(annotation)
    persons = np.flatnonzero(presence.sum(axis=1))
    subjects = []
    for person in persons if args.per_person and len(persons) else [None]:
        here = presence if person is None else np.where(np.arange(len(presence))[:, None] == person, presence, 0)
        windows, clips, present = windows_of(frames, window or frames, args.stride), [], []
        if person is not None and window is None:
            seen = np.flatnonzero(here[person])
            windows = [(int(seen[0]), int(seen[-1]) + 1)]
        for start, end in windows:
            total = here[:, start:end].sum(axis=1)
            order = np.argsort(-total, kind='stable')[: np.count_nonzero(total)]
            present.append(len(order))
            clip = annotation if is_unchanged else part_of(annotation, order[:max_persons], start, end)
            clips.append(clip if len(order) else None)
        entry = {
            'file': str(path),
            'name': annotation['frame_dir'],
            'person': None if person is None else int(person) + 1,
            'frames': frames,
            'persons': len(persons) + annotation.get('persons_left_out', 0),
            'frames_without_persons': int((here.sum(axis=0) == 0).sum()),
        }
        first = annotation.get('first_frame', 0)
        subjects.append(Subject(entry, [(start + first, end + first) for start, end in windows], clips, present))
    return subjects


def presence_of(annotation: dict[str, Any]) -> np.ndarray:
    """Sum of the scores of each person in each frame, (M, T), 0 if absent."""
    score = score_of(annotation)
    found = np.isfinite(annotation['keypoint']).all(axis=3) & np.isfinite(score) & (score > 0)
    return np.where(found, score, 0).sum(axis=2, dtype=np.float64)


def windows_of(frames: int, window: int, stride: int | None) -> list[tuple[int, int]]:
    """(start, end) of windows that cover all frames. stride: by default half a window."""
    if frames <= window:
        return [(0, frames)]
    starts = [*range(0, frames - window, stride or max(1, window // 2)), frames - window]
    return [(start, start + window) for start in starts]


def part_of(annotation: dict[str, Any], persons: np.ndarray, start: int, end: int) -> dict[str, Any]:
    """The annotation of some persons and frames."""
    part = annotation | {'total_frames': end - start}
    for key in ('keypoint', 'keypoint_score'):
        if annotation.get(key) is not None:
            part[key] = annotation[key][persons, start:end]
    return part


# --- prediction -----------------------------------------------------------------------------------------------------


def predict_subjects(checkpoint: Checkpoint, subjects: Sequence[Subject]) -> list[list[np.ndarray | None]]:
    """Class probabilities (K,) of each window of each subject, None without persons.

    The windows become a temporary pickle, which is classified as in an evaluation.
    """
    clips = [clip for subject in subjects for clip in subject.clips if clip is not None]
    annotations = [
        {key: clip[key] for key in KEYS if key in clip} | {'label': 0, 'frame_dir': f'{number} {clip["frame_dir"]}'}
        for number, clip in enumerate(clips)
    ]
    logits = np.zeros((0, 1))
    if clips:
        with tempfile.TemporaryDirectory() as folder, hidden_messages('lib.data.store', logging.INFO):
            ann_file = Path(folder) / 'clips.pkl'
            split = {'clips': [annotation['frame_dir'] for annotation in annotations]}
            save_annotations(ann_file, split, annotations)
            data = {'ann_file': str(ann_file), 'store_dir': None, 'benchmark': ['clips', 'clips']}
            config = EasyDict({**checkpoint.config, 'data': {**checkpoint.config.data, **data}})
            windows = make_clips(config, 'val')
            logits = checkpoint.predict(*checkpoint.model(windows.num_joints), windows)
    probabilities = iter(np.exp(log_probability(logits)))
    return [[None if clip is None else next(probabilities) for clip in subject.clips] for subject in subjects]


def edges_of(windows: Sequence[tuple[int, int]]) -> list[int]:
    """The start of the first window, the middle of each overlap, and the end of the last window."""
    middles = [(end + start) // 2 for (_, end), (start, _) in pairwise(windows)]
    return [windows[0][0], *middles, windows[-1][1]]


def segments_of(windows: Sequence[tuple[int, int]], probabilities: Sequence[np.ndarray | None]) -> list[Segment]:
    """Joins consecutive windows with the same most likely action; segments meet in the middle of the overlap."""
    actions = [None if values is None else int(values.argmax()) for values in probabilities]
    edges = edges_of(windows)
    first = [i for i, action in enumerate(actions) if i == 0 or action != actions[i - 1]]
    segments = []
    for start, end in zip(first, [*first[1:], len(actions)], strict=True):
        action = actions[start]
        mean = None if action is None else float(np.mean([values[action] for values in probabilities[start:end]]))
        segments.append(Segment(edges[start], edges[end], action, mean))
    return segments


def top5(probabilities: np.ndarray) -> list[int]:
    """The five most likely classes, or all if there are fewer."""
    return np.argsort(-probabilities, kind='stable')[:5].tolist()


# --- output ---------------------------------------------------------------------------------------------------------


def lines_of(
    subject: Subject, probabilities: Sequence[np.ndarray | None], names: Sequence[str], top: int
) -> Iterator[str]:
    """A subject as text: its segments, or the `top` most likely actions in its only window."""
    (start, end), several = subject.windows[0], len(subject.windows) > 1
    windows = f', {numbered(len(subject.windows), "window")} of {end - start} frames' if several else ''
    persons = '' if subject.entry['person'] else f', {numbered(subject.entry["persons"], "person")}'
    yield f'{subject.title}: frames {start}-{subject.windows[-1][1]}{persons}{windows}'
    if several or probabilities[0] is None:
        rows = [(f'{s.start}-{s.end}  ', s.action, s.probability) for s in segments_of(subject.windows, probabilities)]
    else:
        rows = [('', number, probabilities[0][number]) for number in top5(probabilities[0])[:top]]
    width = max(len(frames) for frames, *_ in rows)
    for frames, action, probability in rows:
        text = f'{"":7}  nobody' if action is None else f'{probability:7.1%}  {names[action]}'
        yield f'  {frames:>{width}}{text}'


def write(
    out: Path,
    checkpoint: Checkpoint,
    subjects: Sequence[Subject],
    predictions: Sequence[Sequence[np.ndarray | None]],
    names: Sequence[str],
) -> str:
    """Writes predictions.json, and a timeline of each subject with several windows; returns what it wrote."""
    make_folder(out)
    inputs, drawn = [], 0
    for number, (subject, probabilities) in enumerate(zip(subjects, predictions, strict=True), 1):
        inputs.append(subject.entry | as_json(subject, probabilities, names))
        if len(subject.windows) > 1 and any(values is not None for values in probabilities):
            title = re.sub(r'[^\w.-]+', '_', subject.title)[:80]
            file = 'timeline.png' if len(subjects) == 1 else f'timeline_{number}_{title}.png'
            filled = [np.full(len(names), np.nan) if values is None else values for values in probabilities]
            figure = timeline_figure(edges_of(subject.windows), np.array(filled), names, subject.title)
            save_figure(figure, out / file)
            inputs[-1]['timeline'] = file
            drawn += 1
    about = {'checkpoint': str(checkpoint.path), 'script': checkpoint.script, 'epoch': checkpoint.epoch}
    write_text(out / 'predictions.json', json.dumps({**about, 'inputs': inputs}, indent=2) + '\n')
    return 'predictions.json' + (f' and {numbered(drawn, "timeline")}' if drawn else '')


def as_json(
    subject: Subject, probabilities: Sequence[np.ndarray | None], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The windows and segments of a subject in predictions.json."""

    def action(number: int | None, probability: float | None) -> dict[str, Any]:
        if number is None:
            return {'class': None, 'name': 'nobody', 'probability': None}
        return {'class': number, 'name': names[number], 'probability': round(float(probability), 6)}

    windows = [
        {
            'start': start,
            'end': end,
            'persons': count,
            'top5': [] if values is None else [action(number, values[number]) for number in top5(values)],
        }
        for (start, end), count, values in zip(subject.windows, subject.present, probabilities, strict=True)
    ]
    segments = [
        {'start': s.start, 'end': s.end} | action(s.action, s.probability)
        for s in segments_of(subject.windows, probabilities)
    ]
    return {'windows': windows, 'segments': segments}


if __name__ == '__main__':
    sys.exit(main())
