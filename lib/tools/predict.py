"""Predict the actions in files of keypoints with a checkpoint of any of the three models.

    python -m lib.tools.predict checkpoint/action/mbert clip.json --window 120 --out out/predicted

INPUT is a file or folder of keypoints in any supported format (data/README.md), or a PYSKL pickle, whose clips are
predicted as an evaluation does. Prints the five most likely actions of each. Inputs of over 300 frames are cut into
windows and reported as segments: "240-300" are frames 240 to 299 by the numbers in the file. --out receives
predictions.json and, for inputs with windows, a timeline. --set data.class_names=FILE names the classes.
"""

import argparse
import json
import logging
import pickle
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.data.batches import make_clips
from lib.data.pickles import load_annotations
from lib.data.skeletons import LAYOUTS, PICKLE_SKELETONS
from lib.errors import UserError, shown_text
from lib.files import make_folder, write_text
from lib.formats import read_keypoint_file
from lib.formats.clip import LARGEST_COORDINATE
from lib.plots import save_figure, timeline_figure
from lib.tools.checkpoints import Checkpoint, open_checkpoint
from lib.tools.running import add_checkpoint, add_out, add_set, check_new, log, make_parser, numbered, run_tool

LONGEST = 300  # frames of NTU60's longest clip; what is longer is no single action, unless a pickle says that it is one
WINDOW = 120  # frames: 4 s at 30 frames a second, as long as NTU60's longer actions
MOST_PERSONS = 30  # that are read of a file; of a window the model takes the most present ones
MOST_ROWS = 2_000_000  # frames of persons in all windows of an input, each some 200 bytes
KEYS = ('label', 'total_frames', 'img_shape', 'keypoint', 'keypoint_score')
MOST_IN_FULL = 10  # clips; of more, each has a line


@dataclass(frozen=True)
class Subject:
    """What is predicted: a clip, or one person of it, as the windows (start, end) in which the model looks at it.

    person: number from 1 on, None for everybody. frames, persons: of the whole clip. left_out: further persons, whom
    the file has. empty: frames without anybody. windows: in the video's own frame numbers. clips: the annotation of
    each window, None where nobody is in it. present: how many persons there are in each window. is_whole: whether the
    pickle's clip is left as it is.
    """

    file: Path
    name: str
    person: int | None
    frames: int
    persons: int
    left_out: int
    empty: int
    img_shape_known: bool
    is_whole: bool
    windows: list[tuple[int, int]]
    clips: list[dict[str, Any] | None]
    present: list[int]

    @property
    def title(self) -> str:
        return shown_text(self.name) + (f', person {self.person}' if self.person else '')


@dataclass(frozen=True)
class Segment:
    """Windows in a row with the same likeliest action, None for nobody, and the mean of its probabilities there."""

    start: int
    end: int
    action: int | None
    probability: float | None


# --- from files to what the model looks at --------------------------------------------------------------------------


def read_input(
    path: Path, layout: str | None, img_shape: tuple[int, int] | None, list_name: str | None
) -> list[dict[str, Any]]:
    """The annotations of an input, of a pickle those of the list. Raises UserError naming the file."""
    annotations = read_keypoint_file(path, layout, img_shape, MOST_PERSONS)
    if list_name is None:
        return annotations
    if not is_of_pickle(annotations[0]):
        raise UserError(f'{path} is not a PYSKL pickle, and --list names a split of one: omit it.')
    lists = load_annotations(path)['split']
    if list_name not in lists:
        known = ', '.join(map(shown_text, lists)) or 'none'
        raise UserError(f'{path} has no list {shown_text(list_name)}; its lists are {known}.')
    wanted = set(lists[list_name])
    annotations = [annotation for annotation in annotations if annotation['frame_dir'] in wanted]
    if not annotations:
        raise UserError(f'{path}: none of its clips is in its list {shown_text(list_name)}.')
    return annotations


def is_of_pickle(annotation: dict[str, Any]) -> bool:
    return 'persons_left_out' not in annotation


def check_suits(checkpoint: Checkpoint, annotation: dict[str, Any], path: Path) -> None:
    """Raises UserError, naming both, where keypoints are not such as the model was trained on."""
    config, (num_joints, size) = checkpoint.config, annotation['keypoint'].shape[2:]
    if config.data.input == 'heatmap':
        channels = {
            number: {'joint': number, 'limb': len(skeleton.limbs), 'both': number + len(skeleton.limbs)}
            for number, skeleton in PICKLE_SKELETONS.items()
        }
        needed = [number for number in channels if channels[number][config.heatmap.kind] == config.model.num_joints]
        suits = num_joints in needed
        wanted = 'heatmaps'
    else:
        needed, wanted = ([17], '2D keypoints') if config.data.input == 'keypoint_2d' else ([25], '3D keypoints')
        suits = num_joints in needed and wanted.startswith(str(size))
    if not suits:
        joints = ' or '.join(f'{number} joints ({PICKLE_SKELETONS[number].name})' for number in needed)
        raise UserError(
            f'{path} holds {size}D keypoints of {num_joints} joints, and the model of {checkpoint.path} was trained on '
            f'{wanted} of {joints or "other joints"}. Give it such a file, name a checkpoint that was trained on such '
            f'keypoints{_conversion(num_joints, size, needed)}.'
        )


def _conversion(num_joints: int, size: int, needed: Sequence[int]) -> str:
    """The hint that 2D joints of another layout can be converted."""
    layouts = [name for name, joints in LAYOUTS.items() if len(joints) == num_joints]
    if size != 2 or 17 not in needed or not layouts:
        return ''
    return f', or name the layout of the joints, from which they are converted: --layout {" or ".join(layouts)}'


def presence(annotation: dict[str, Any]) -> np.ndarray:
    """The sum of the scores of each person in each frame, (M, T); 0 where the person is not there."""
    keypoint, score = annotation['keypoint'], annotation.get('keypoint_score')
    if score is None:
        score = (keypoint != 0).any(axis=3)
    found = np.isfinite(keypoint).all(axis=3) & np.isfinite(score) & (score > 0)
    return np.where(found, score, 0).sum(axis=2, dtype=np.float64)


def windows_of(frames: int, window: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of windows over a clip, the last one at its end."""
    if frames <= window:
        return [(0, frames)]
    starts = [*range(0, frames - window, stride), frames - window]
    return [(start, start + window) for start in starts]


def subjects_of(
    path: Path, annotation: dict[str, Any], most: int, window: int | None, stride: int | None, per_person: bool
) -> list[Subject]:
    """What is predicted of a clip. most: persons that the model takes.

    A pickle's clip is one window however long it is, unless `window` says otherwise. In windows persons are sorted by
    their presence there. Of one person alone, what is before and after it is not looked at.
    """
    frames, there = annotation['total_frames'], presence(annotation)
    first = annotation.get('first_frame', 0)
    if window is None and frames > LONGEST and not is_of_pickle(annotation):
        window = WINDOW
    cut = windows_of(frames, window or frames, stride or max(1, (window or frames) // 2))
    if (rows := sum(end - start for start, end in cut) * min(most, len(there))) > MOST_ROWS and window:
        raise UserError(
            f'{path}: its {len(cut):,} windows of {window:,} frames are {rows:,} frames of persons, and no more than '
            f'{MOST_ROWS:,} are looked at. Give a larger --stride.'
        )
    is_whole = window is None and not per_person and is_of_pickle(annotation)
    present = np.flatnonzero(there.sum(axis=1))
    subjects = []
    for person in present if per_person and len(present) else [None]:
        amount = there if person is None else np.where(np.arange(len(there))[:, None] == person, there, 0)
        windows, clips, counts = cut, [], []
        if person is not None and window is None:
            seen = np.flatnonzero(amount[person])
            windows = [(int(seen[0]), int(seen[-1]) + 1)]
        for start, end in windows:
            here = amount[:, start:end].sum(axis=1)
            order = np.argsort(-here, kind='stable')[: np.count_nonzero(here)]
            counts.append(len(order))
            if not len(order):
                clips.append(None)
            else:
                clips.append(annotation if is_whole else part_of(annotation, order[:most], start, end))
        subjects.append(
            Subject(
                file=path,
                name=annotation['frame_dir'],
                person=None if person is None else int(person) + 1,
                frames=frames,
                persons=len(present),
                left_out=annotation.get('persons_left_out', 0),
                empty=int((amount.sum(axis=0) == 0).sum()),
                img_shape_known=annotation.get('img_shape_known', True),
                is_whole=is_whole,
                windows=[(start + first, end + first) for start, end in windows],
                clips=clips,
                present=counts,
            )
        )
    return subjects


def part_of(annotation: dict[str, Any], persons: np.ndarray, start: int, end: int) -> dict[str, Any]:
    """The annotation of some persons in some frames."""
    part = annotation | {'total_frames': end - start}
    for key in ('keypoint', 'keypoint_score'):
        if annotation.get(key) is not None:
            part[key] = annotation[key][persons, start:end]
    return part


# --- predicting -----------------------------------------------------------------------------------------------------


def probabilities(checkpoint: Checkpoint, clips: Sequence[dict[str, Any]]) -> np.ndarray:
    """Probabilities (N, K) of annotations: they become a pickle of one list, which goes the way of --evaluate."""
    annotations = [
        # A label is not needed, and another set's may be none of the model's. Names are told where something is wrong.
        {key: clip[key] for key in KEYS if key in clip} | {'label': 0, 'frame_dir': f'{number} {clip["frame_dir"]}'}
        for number, clip in enumerate(clips)
    ]
    with tempfile.TemporaryDirectory() as folder:
        ann_file = Path(folder) / 'clips.pkl'
        names = [annotation['frame_dir'] for annotation in annotations]
        with ann_file.open('wb') as file:
            pickle.dump({'split': {'clips': names}, 'annotations': annotations}, file, protocol=4)
        data = {'ann_file': str(ann_file), 'store_dir': None, 'benchmark': ['clips', 'clips']}
        config = EasyDict({**checkpoint.config, 'data': {**checkpoint.config.data, **data}})
        logits = checkpoint.predict(make_clips(config, 'val'))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return odds / odds.sum(axis=1, keepdims=True)


def predict_subjects(checkpoint: Checkpoint, subjects: Sequence[Subject]) -> list[list[np.ndarray | None]]:
    """Of each subject the probabilities (K,) in each of its windows, None where nobody is in it."""
    clips = [clip for subject in subjects for clip in subject.clips if clip is not None]
    found = iter(probabilities(checkpoint, clips) if clips else ())
    return [[None if clip is None else next(found) for clip in subject.clips] for subject in subjects]


def top_of(found: np.ndarray) -> np.ndarray:
    """The five likeliest classes, or all where there are fewer."""
    return np.argsort(-found, kind='stable')[:5]


def edges_of(windows: Sequence[tuple[int, int]]) -> list[int]:
    """Where windows meet, in the middle of what two of them share, from the first one's start to the last one's end."""
    middles = [(end + start) // 2 for (_, end), (start, _) in pairwise(windows)]
    return [windows[0][0], *middles, windows[-1][1]]


def segments_of(windows: Sequence[tuple[int, int]], found: Sequence[np.ndarray | None]) -> list[Segment]:
    """Windows that agree on the likeliest action, joined; they end in the middle of what they share with the next."""
    actions = [None if values is None else int(values.argmax()) for values in found]
    edges = edges_of(windows)
    first = [i for i, action in enumerate(actions) if i == 0 or action != actions[i - 1]]
    segments = []
    for start, end in zip(first, [*first[1:], len(actions)], strict=True):
        action = actions[start]
        mean = None if action is None else float(np.mean([values[action] for values in found[start:end]]))
        segments.append(Segment(edges[start], edges[end], action, mean))
    return segments


# --- telling it -----------------------------------------------------------------------------------------------------


def as_json(subject: Subject, found: Sequence[np.ndarray | None], names: Sequence[str]) -> dict[str, Any]:
    """What predictions.json has of a subject."""

    def action(number: int, probability: float) -> dict[str, Any]:
        return {'class': number, 'name': names[number], 'probability': round(probability, 6)}

    nobody = {'class': None, 'name': 'nobody', 'probability': None}
    windows = [
        {
            'start': start,
            'end': end,
            'persons': count,
            'top5': [] if values is None else [action(int(number), float(values[number])) for number in top_of(values)],
        }
        for (start, end), count, values in zip(subject.windows, subject.present, found, strict=True)
    ]
    segments = [
        {'start': s.start, 'end': s.end} | (nobody if s.action is None else action(s.action, s.probability))
        for s in segments_of(subject.windows, found)
    ]
    return {
        'file': str(subject.file),
        'name': subject.name,
        'person': subject.person,
        'frames': subject.frames,
        'persons': subject.persons + subject.left_out,
        'frames_without_persons': subject.empty,
        'windows': windows,
        'segments': segments,
    }


def lines_of(subject: Subject, found: Sequence[np.ndarray | None], names: Sequence[str]) -> Iterator[str]:
    """A subject as text: its segments, or the five likeliest actions of its one window."""
    (start, end), several = subject.windows[0], len(subject.windows) > 1
    persons = numbered(subject.persons + subject.left_out, 'person')
    about = f'frames {start}-{end}' if subject.person and not several else numbered(subject.frames, 'frame')
    about += '' if subject.person else f', {persons}'
    yield f'{subject.title}: {about}' + (f', {len(found):,} windows of {end - start:,} frames' if several else '')
    if several:
        width = 2 * len(str(subject.windows[-1][1])) + 1
        for s in segments_of(subject.windows, found):
            yield f'  {f"{s.start}-{s.end}":>{width}}  {action_text(s.action, s.probability, names)}'
    elif found[0] is None:
        yield f'  {action_text(None, None, names)}'
    else:
        yield from (f'  {action_text(int(number), found[0][number], names)}' for number in top_of(found[0]))


def action_text(action: int | None, probability: float | None, names: Sequence[str]) -> str:
    return f'{"":7}  nobody' if action is None else f'{probability:7.1%}  {names[action]}'


def short_lines(
    subjects: Sequence[Subject], predicted: Sequence[Sequence[np.ndarray | None]], names: Sequence[str]
) -> Iterator[str]:
    """Many clips as text: those of one window have a line each."""
    width = min(40, max(len(subject.title) for subject in subjects))
    for subject, found in zip(subjects, predicted, strict=True):
        if len(found) > 1:
            yield from lines_of(subject, found, names)
        else:
            (segment,) = segments_of(subject.windows, found)
            yield f'{subject.title:<{width}}  {action_text(segment.action, segment.probability, names)}'


def notes_of(subjects: Sequence[Subject], most: int, data_input: str) -> Iterator[str]:
    """What users should know of how their clips were looked at. Heatmaps do not depend on a guessed image size."""
    for is_whole, who in ((False, f'the {most} most present'), (True, f'the first {most}')):
        counts = [count for subject in subjects if subject.is_whole is is_whole for count in subject.present]
        crowded = sum(count > most for count in counts)
        if crowded:
            yield (
                f'over {numbered(most, "person")}, up to {max(counts)}, in {crowded:,} of '
                f'{numbered(len(counts), "window")}: the model takes {who} of each; --per_person looks at all'
            )
    if left_out := sum(subject.left_out for subject in subjects if subject.person in (None, 1)):
        yield f'{numbered(left_out, "person")} beyond the {MOST_PERSONS} most present of a file left out'
    gaps = [subject for subject in subjects if subject.empty and subject.person is None]
    if gaps:
        empty, frames = sum(subject.empty for subject in gaps), sum(subject.frames for subject in gaps)
        yield f'nobody in {empty:,} of {numbered(frames, "frame")} of {numbered(len(gaps), "clip")}'
    guessed = sum(not subject.img_shape_known for subject in subjects if subject.person in (None, 1))
    if guessed and data_input == 'keypoint_2d':
        yield f'image size of {numbered(guessed, "clip")} unknown, guessed by the joints; --img_shape H W names it'
    if long := sum(subject.is_whole and subject.frames > LONGEST for subject in subjects):
        yield f'{numbered(long, "clip")} of over {LONGEST} frames looked at as one action; --window {WINDOW} cuts it'


# --- the command ----------------------------------------------------------------------------------------------------


def predict(args: argparse.Namespace) -> None:
    if args.img_shape and not all(1 <= size <= LARGEST_COORDINATE for size in args.img_shape):
        raise UserError(f'--img_shape {args.img_shape[0]} {args.img_shape[1]}: give height and width in pixels.')
    if args.window is not None and args.window < 1:
        raise UserError(f'--window {args.window}: give at least 1 frame.')
    if args.stride is not None and not 1 <= args.stride <= (args.window or WINDOW):
        raise UserError(f'--stride {args.stride}: give 1 to {args.window or WINDOW} frames, the length of a window.')
    if args.out:
        check_new(args.out, 'predictions.json', 'timeline*.png')
    checkpoint = open_checkpoint(args.checkpoint, args.set)
    names, most = checkpoint.class_names, checkpoint.config.data.max_persons
    subjects = []
    for path in args.inputs:
        for annotation in read_input(path, args.layout, args.img_shape and tuple(args.img_shape), args.list):
            check_suits(checkpoint, annotation, path)
            subjects += subjects_of(path, annotation, most, args.window, args.stride, args.per_person)
    if args.stride and not args.window and all(len(subject.windows) == 1 for subject in subjects):
        raise UserError(
            f'--stride {args.stride} has no effect: no input is cut into windows. Add --window, or omit it.'
        )
    log.info('%s: %s, epoch %s, %s classes', checkpoint.path, checkpoint.script, checkpoint.epoch, len(names))
    logging.getLogger('lib.data.store').setLevel(logging.WARNING)  # where it packs is a folder that is gone at once
    predicted = predict_subjects(checkpoint, subjects)
    if args.out:  # before a pipe that may be closed
        written = write(args.out, checkpoint, subjects, predicted, names)

    if len(subjects) > MOST_IN_FULL:
        texts = short_lines(subjects, predicted, names)
    else:
        texts = (line for pair in zip(subjects, predicted, strict=True) for line in lines_of(*pair, names))
    for line in texts:
        log.info('%s', line)
    for note in notes_of(subjects, most, checkpoint.config.data.input):
        log.info('note: %s', note)
    if args.out:
        log.info('written: %s in %s', written, args.out)


def write(
    out: Path,
    checkpoint: Checkpoint,
    subjects: Sequence[Subject],
    predicted: Sequence[Sequence[np.ndarray | None]],
    names: Sequence[str],
) -> str:
    """Writes predictions.json and a picture of each subject of several windows; returns what, in words."""
    make_folder(out)
    inputs = []
    for number, (subject, found) in enumerate(zip(subjects, predicted, strict=True), 1):
        inputs.append(as_json(subject, found, names))
        if len(found) > 1 and any(values is not None for values in found):
            name = re.sub(r'[^\w.-]+', '_', subject.title)[:80]
            file = 'timeline.png' if len(subjects) == 1 else f'timeline_{number}_{name}.png'
            probability = np.array([np.full(len(names), np.nan) if values is None else values for values in found])
            save_figure(timeline_figure(edges_of(subject.windows), probability, names, subject.title), out / file)
            inputs[-1]['timeline'] = file
    about = {'checkpoint': str(checkpoint.path), 'script': checkpoint.script, 'epoch': checkpoint.epoch}
    write_text(out / 'predictions.json', json.dumps({**about, 'inputs': inputs}, indent=2) + '\n')
    drawn = sum('timeline' in entry for entry in inputs)
    return 'predictions.json' + (f' and {numbered(drawn, "timeline")}' if drawn else '')


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'predict')
    add_checkpoint(parser)
    parser.add_argument('inputs', type=Path, nargs='+', metavar='INPUT', help='keypoints')
    parser.add_argument('--layout', choices=LAYOUTS, help='order of the joints (default: by their number)')
    parser.add_argument(
        '--img_shape', type=int, nargs=2, metavar=('H', 'W'), help='size of the images in pixels, if files lack it'
    )
    parser.add_argument(
        '--window',
        type=int,
        metavar='FRAMES',
        help=f'length of a window (default: {WINDOW} for clips of over {LONGEST} frames; a pickle is not cut)',
    )
    parser.add_argument('--stride', type=int, metavar='FRAMES', help='between windows (default: half a window)')
    parser.add_argument('--per_person', action='store_true', help='predict each person alone, while present')
    parser.add_argument('--list', metavar='NAME', help='split of a pickle to predict (default: all clips)')
    add_out(parser, 'FOLDER', text='folder for predictions.json and timelines')
    add_set(parser)
    return run_tool(predict, parser, argv)


if __name__ == '__main__':
    sys.exit(main())
