"""Convert keypoint files and a table of their labels to a PYSKL pickle for training.

    python -m lib.tools.make_pickle data/action/sample_files data/action/sample_files/labels.csv --out own.pkl

SOURCE is a folder with one keypoint file or folder per clip, LABELS a CSV table with the columns file, label and split
(data/README.md). The names of the classes are written to own_classes.txt. Other sources: a pickle, with LABELS or with
--layout to reorder its joints; a folder of NTU RGB+D's .skeleton files; the index of PYSKL's Kinetics-400, with
--kpfiles.
"""

import argparse
import csv
import logging
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.data.classes import read_class_names
from lib.data.pickles import read_pickle, require_form, save_annotations
from lib.data.skeletons import COCO17
from lib.errors import UserError, numbered, shown, shown_text, user_file
from lib.files import make_folder, require_file, write_text
from lib.formats import ntu_skeleton, pyskl, read_keypoint_file
from lib.formats.clip import to_annotation
from lib.formats.content import read_text
from lib.formats.kinetics400 import convert_kinetics
from lib.tools.running import (
    add_out,
    add_reading,
    check_new,
    hidden_messages,
    img_shape_of,
    listed,
    log,
    make_parser,
    progress,
    run_tool,
)

KEYS = ('frame_dir', 'label', 'total_frames', 'img_shape', 'original_shape', 'keypoint')  # and keypoint_score
COLUMNS = ('file', 'label', 'split')
SUFFIX = re.compile(r'\.(json|csv|txt|skeleton|npy|npz|pkl|pickle)$')
SPLIT_NAME = re.compile(r'[A-Za-z][\w.-]*')
MAX_CLASSES = 10_000  # a larger label is a typing error
MAX_ERRORS = 10  # in a message
NTU_BODIES = 2
FLOAT16_KEEPS = 2048  # px; up to here float16 is within half a pixel


class Row(NamedTuple):
    """A row of the table: line number, path relative to the folder, label, names of splits."""

    line: int
    file: str
    label: str
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """The frame_dir of the clip."""
        return SUFFIX.sub('', self.file)


class Dataset(NamedTuple):
    """Content of the pickle, and the names of its classes if labels are not numbers."""

    split: dict[str, list[str]]
    annotations: list[dict[str, Any]]
    class_names: list[str] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'make_pickle')
    parser.add_argument('source', type=Path, metavar='SOURCE', help='folder of keypoint files, or a pickle')
    parser.add_argument('labels', type=Path, nargs='?', metavar='LABELS', help='CSV table: file, label, split')
    add_out(parser, 'FILE', text='new .pkl file; with --kpfiles a new folder', required=True)
    add_reading(parser)
    parser.add_argument('--kpfiles', type=Path, metavar='FOLDER', help='keypoint files of Kinetics-400')
    parser.add_argument(
        '--box_thr', type=float, default=0.5, help='minimum box score in Kinetics-400 (default: %(default)s)'
    )
    return run_tool(make, parser, argv)


def make(args: argparse.Namespace) -> None:
    out, img_shape = args.out, img_shape_of(args)
    classes_file = out.with_name(f'{out.stem}_classes.txt')
    if not args.source.exists():
        raise UserError(f'{args.source}: there is no such file or folder.')
    check_new(out)
    if args.kpfiles:
        log.info('%s', convert_kinetics(args.source, args.kpfiles, args.box_thr, out))
        return
    check_new(classes_file)
    if out.suffix != '.pkl':
        raise UserError(f'--out {out}: the name must end in .pkl.')
    with hidden_messages('lib.formats', logging.INFO):  # a line per file
        if args.labels:
            data = from_table(args.source, args.labels, args.layout, img_shape)
        elif args.source.is_dir():
            data = from_skeletons(args.source)
        elif args.layout:
            data = from_pickle(args.source, args.layout)
        else:
            raise UserError(f'{args.source}: add a table of labels, or --layout to reorder the joints of a pickle.')
    if data.class_names:
        make_folder(out.parent)
        write_text(classes_file, ''.join(f'{name}\n' for name in data.class_names))
    save_annotations(out, data.split, data.annotations)
    for line in summary(out, data):
        log.info('%s', line)
    for command in next_commands(out, data, classes_file if data.class_names else None):
        log.info('  %s', command)


# --- from a table of labels -----------------------------------------------------------------------------------------


def from_table(source: Path, labels: Path, layout: str | None, img_shape: tuple[int, int] | None) -> Dataset:
    """The clips in a folder (or pickle) that a table lists. Raises UserError that lists all invalid rows or files."""
    if source.is_dir():
        clips, rows = None, read_table(labels, lambda file: (source / file).exists())
    else:
        clips = {clip['frame_dir']: clip for clip in read_keypoint_file(source, layout, img_shape)}
        rows = read_table(labels, clips.__contains__)
    names = sorted({row.label for row in rows})
    numbers = {name: int(name) if name.isdecimal() else i for i, name in enumerate(names)}

    annotations, errors, form, sources, guessed = [], [], None, Counter(), 0
    split: dict[str, list[str]] = {name: [] for row in rows for name in row.splits}
    for row in progress(rows, unit='file'):
        try:
            found = [clips[row.file]] if clips else read_keypoint_file(source / row.file, layout, img_shape)
            form = form or form_of(found[0])
            if form_of(found[0]) != form:
                raise UserError(f'{row.file} is {form_of(found[0])}, others are {form}: make separate pickles.')
        except UserError as error:
            errors.append(f'line {row.line}: {error}')
            continue
        for annotation in found:
            name = row.name if len(found) == 1 else f'{row.name}/{annotation["frame_dir"]}'
            annotations.append(compact(annotation) | {'frame_dir': name, 'label': numbers[row.label]})
            for split_name in row.splits:
                split[split_name].append(name)
            sources[annotation.get('source', 'PYSKL')] += 1
            guessed += not annotation.get('img_shape_known', True)
    raise_all(errors, source)
    log.info('read as: %s', ', '.join(f'{count:,} {kind}' for kind, count in sources.most_common()))
    if guessed:
        log.info('image size of %s unknown: data.input keypoint_2d needs --img_shape H W', numbered(guessed, 'clip'))
    return Dataset(split, annotations, None if names[0].isdecimal() else names)


def read_table(path: Path, exists: Callable[[str], bool]) -> list[Row]:
    """The rows of a table, each of a different file that exists. Raises UserError that lists all invalid rows."""
    require_file(path)
    rows, errors, lines = [], [], {}
    try:
        with user_file(path), path.open(encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file, strict=True)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(
                    f'{path}: the first line must be {",".join(COLUMNS)}, separated by commas, found '
                    f'{shown(reader.fieldnames)}.'
                )
            for cells in reader:
                file_name, label, splits = (' '.join((cells[name] or '').split()) for name in COLUMNS)
                names = tuple(dict.fromkeys(name.strip() for name in splits.split(';')))
                rows.append(Row(reader.line_num, file_name and Path(file_name).as_posix(), label, names))
                error = 'more cells than the first line' if None in cells else row_error(rows[0], rows[-1], lines)
                if not error and not exists(rows[-1].file):
                    error = f'{shown_text(rows[-1].file)} does not exist'
                if error:
                    errors.append(f'line {reader.line_num}: {error}')
                lines.setdefault(rows[-1].name, reader.line_num)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read as a CSV table in UTF-8 ({shown_text(str(error))}).') from None
    if not rows:
        raise UserError(f'{path} has no rows below the line {",".join(COLUMNS)}.')
    raise_all(errors, path)
    return rows


def row_error(first: Row, row: Row, lines: Mapping[str, int]) -> str | None:
    """What is wrong with a row, or None. first: first row of the table. lines: {clip: line} of the rows above."""
    if not row.file or not row.label:
        return f'the {"label" if row.file else "file"} is missing'
    if row.name in lines:
        return f'{shown_text(row.name)} is also in line {lines[row.name]}'
    if row.label.isdecimal() != first.label.isdecimal():
        return (
            f'label {shown(row.label)}, but {shown(first.label)} in line {first.line}: use only names or only numbers'
        )
    if not row.label.isprintable() or (row.label.isdecimal() and int(row.label) >= MAX_CLASSES):
        return f'label {shown(row.label)} is neither a name nor a number below {MAX_CLASSES:,}'
    invalid = [name for name in row.splits if not SPLIT_NAME.fullmatch(name)]
    return f'split {shown(invalid[0])} is not a name such as train or val' if invalid else None


def raise_all(errors: Sequence[str], path: Path) -> None:
    """Raises a UserError that lists all errors, if there are any."""
    if errors:
        more = [f'and {len(errors) - MAX_ERRORS} more'] if len(errors) > MAX_ERRORS else []
        lines = '\n  '.join([*errors[:MAX_ERRORS], *more])
        raise UserError(f'{path}: {numbered(len(errors), "error")}, nothing was written.\n  {lines}')


def compact(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """An annotation with PYSKL's keys only, in float16 where that is accurate enough."""
    keypoint, score = annotation['keypoint'], annotation.get('keypoint_score')
    is_wide = keypoint.shape[3] == 3 or (np.abs(keypoint) >= FLOAT16_KEEPS).any()
    clip = {key: annotation[key] for key in KEYS if key in annotation}
    clip['keypoint'] = keypoint.astype(np.float32 if is_wide else np.float16)
    return clip if score is None else clip | {'keypoint_score': score.astype(np.float16)}


# --- from other datasets --------------------------------------------------------------------------------------------


def from_skeletons(folder: Path) -> Dataset:
    """NTU RGB+D in 3D: the two bodies that move most, with labels and splits derived from the file names."""
    files = sorted(file for file in folder.rglob('*.skeleton') if not file.name.startswith('.'))
    if not files:
        raise UserError(f'{folder} holds no .skeleton files. For other files, add a table of labels: SOURCE LABELS.')
    annotations, empty, errors = {}, [], []
    for file in progress(files, unit='file'):
        try:
            if not ntu_skeleton.ID.fullmatch(file.stem) or file.stem in annotations:
                raise UserError(f'{file}: expected a unique name such as S001C002P003R002A013.skeleton.')
            clip = ntu_skeleton.read(read_text(file), str(file))
            if any(clip.frames.values()):
                annotations[file.stem] = compact(to_annotation(clip, file, None, None, NTU_BODIES))
            else:
                empty.append(file.stem)
        except UserError as error:
            errors.append(str(error))
    raise_all(errors, folder)
    if not annotations:
        raise UserError(f'{folder}: none of its {len(files):,} files has a skeleton.')
    if empty:
        log.info('left out: %s without a skeleton (%s)', numbered(len(empty), 'clip'), listed(empty))
    split = {name: ids for name, ids in ntu_skeleton.splits_of(list(annotations)).items() if ids}
    return Dataset(split, list(annotations.values()))


def from_pickle(source: Path, layout: str) -> Dataset:
    """A pickle with its joints converted from another layout."""
    content = read_pickle(source)
    annotations = pyskl.read(content, source, layout)
    if isinstance(content, dict) and 'split' in content:
        split = require_form(content, source)[0]
    else:
        split = {'all': [annotation['frame_dir'] for annotation in annotations]}
    classes_file = source.with_name(f'{source.stem}_classes.txt')
    return Dataset(split, annotations, read_class_names(classes_file) if classes_file.is_file() else None)


# --- what was made --------------------------------------------------------------------------------------------------


def form_of(annotation: Mapping[str, Any]) -> str:
    _, _, num_joints, size = annotation['keypoint'].shape
    return f'{size}D, {num_joints} joints'


def summary(out: Path, data: Dataset) -> Iterator[str]:
    labels = {annotation['frame_dir']: annotation['label'] for annotation in data.annotations}
    classes = len(set(labels.values()))
    yield f'{out}: {numbered(len(labels), "clip")}, {classes} classes, {form_of(data.annotations[0])}'
    for name, ids in data.split.items():
        used = [labels[i] for i in ids if i in labels]
        yield f'split {name}: {numbered(len(used), "clip")}, {len(set(used))} classes'


def next_commands(out: Path, data: Dataset, classes_file: Path | None) -> Iterator[str]:
    """Commands that check the pickle and train on it."""
    yield f'python -m lib.tools.check_data {shlex.quote(str(out))}'
    train = next((name for name in data.split if 'train' in name), None)
    others = sorted((name for name in data.split if name != train), key=lambda name: 'val' not in name)
    if train is None or not others:
        return
    values = {
        'data.ann_file': out,
        'data.benchmark': f'[{train},{others[0]}]',
        'model.num_classes': max(annotation['label'] for annotation in data.annotations) + 1,
    }
    if classes_file:
        values['data.class_names'] = classes_file
    num_joints = data.annotations[0]['keypoint'].shape[2]
    if num_joints != len(COCO17.joints):
        values['model.num_joints'] = num_joints
    settings = ' '.join(f'--set {shlex.quote(f"{key}={value}")}' for key, value in values.items())
    yield f'python train_action_vanilla.py --checkpoint checkpoint/action/{shlex.quote(out.stem)} {settings}'


if __name__ == '__main__':
    sys.exit(main())
