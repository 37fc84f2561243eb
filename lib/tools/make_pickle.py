"""Make a PYSKL pickle to train on.

Of a folder of keypoint files and a table of their labels:

    python -m lib.tools.make_pickle data/action/sample_files data/action/sample_files/labels.csv \\
        --out data/action/own.pkl

FOLDER holds a file or folder for each clip, in any format of data/README.md. LABELS is a CSV table with a row for each:

    file,label,split
    walk_01.json,walking,train
    day_2/walk_02.json,walking,val;test

A label is the name of an action, or its number from 0 on. A split is a name, or several with ; in between. Names are
numbered in alphabetical order and written to <OUT without .pkl>_classes.txt, one a line. Instead of a folder, a pickle
may be named: `file` is then the frame_dir of its clips. A row's pickle of several clips gives all of them its label.

Of NTU RGB+D's raw download, a folder of .skeleton files (labels and splits follow from the names), of another pickle
whose joints are in another order, and of the index of PYSKL's Kinetics-400 (--out is a folder of pickles then):

    python -m lib.tools.make_pickle nturgb+d_skeletons --out data/action/ntu60_3danno.pkl
    python -m lib.tools.make_pickle old.pkl --layout body25 --out new.pkl
    python -m lib.tools.make_pickle k400_hrnet.pkl --kpfiles FOLDER --box_thr 0.5 --out data/action/k400
"""

import argparse
import csv
import pickle
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.cli import DONE, USER_ERROR
from lib.data.pickles import read_pickle, require_form
from lib.data.skeletons import COCO17, LAYOUTS
from lib.errors import UserError, shown, shown_text, user_file
from lib.files import check_writable, make_folder, replacing, require_file, write_text
from lib.formats import ntu_skeleton, pyskl, read_keypoint_file
from lib.formats.clip import LARGEST_COORDINATE, to_annotation
from lib.formats.content import read_text
from lib.formats.kinetics400 import convert_kinetics
from lib.tools.check_data import listed, numbered, span

KEYS = ('frame_dir', 'label', 'total_frames', 'img_shape', 'original_shape', 'keypoint')  # and keypoint_score
COLUMNS = ('file', 'label', 'split')
ENDING = re.compile(r'\.(json|csv|txt|skeleton|npy|npz|pkl|pickle)$')
SPLIT_NAME = re.compile(r'[A-Za-z][\w.-]*')
MOST_CLASSES = 10_000  # a number beyond that is a slip
MOST_MISTAKES = 10  # that are shown
MOST_BODIES = 2  # of NTU's raw files
FLOAT16_KEEPS = 2048  # px; below, it is off by half a pixel at most


@dataclass(frozen=True)
class Row:
    """A row of the table: its line, its file as a path in the folder, its label, the splits it is in."""

    line: int
    file: str
    label: str
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """The clip's frame_dir."""
        return ENDING.sub('', self.file)


def read_table(path: Path, exists: Callable[[str], bool]) -> list[Row]:
    """The rows of a CSV table, each for a file of its own. Raises UserError that lists all wrong rows."""
    require_file(path)
    rows, mistakes, lines = [], [], {}
    try:
        with user_file(path), path.open(encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file, strict=True)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(
                    f'{path} must begin with the line {",".join(COLUMNS)}, found {shown(reader.fieldnames)}. Columns '
                    'are separated by commas.'
                )
            for cells in reader:
                values = {name: ' '.join((cells[name] or '').split()) for name in COLUMNS}
                splits = tuple(dict.fromkeys(name.strip() for name in values['split'].split(';')))
                file_name = (cells['file'] or '').strip()
                row = Row(reader.line_num, file_name and Path(file_name).as_posix(), values['label'], splits)
                mistake = 'it has more cells than the first line' if None in cells else _mistake(row, exists, lines)
                if mistake:
                    mistakes.append(f'line {row.line}: {mistake}')
                lines.setdefault(row.name, row.line)
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read as a CSV table in UTF-8 ({shown_text(str(error))}).') from None
    if not rows:
        raise UserError(f'{path} has no rows below the line {",".join(COLUMNS)}.')
    numbered = [row for row in rows if row.label.isdecimal()]
    if 0 < len(numbered) < len(rows):
        named = [row for row in rows if not row.label.isdecimal()]
        fewer, what = (
            (numbered, 'number, and others are names')
            if len(numbered) <= len(named)
            else (named, 'name, and others are numbers')
        )
        mistakes += [f'line {row.line}: label {shown(row.label)} is a {what}' for row in fewer]
    _stop_for(mistakes, str(path))
    return rows


def _mistake(row: Row, exists: Callable[[str], bool], lines: Mapping[str, int]) -> str | None:
    """What is wrong with a row, if anything. lines: those of the clips before it."""
    if not row.file or not row.label:
        return f'it has no {"label" if row.file else "file"}'
    if row.name in lines:
        return f'{shown_text(row.name)} is in line {lines[row.name]} too'
    if not row.label.isprintable() or (row.label.isdecimal() and int(row.label) >= MOST_CLASSES):
        return f'label {shown(row.label)} is no name, nor a number below {MOST_CLASSES:,}'
    wrong = [name for name in row.splits if not SPLIT_NAME.fullmatch(name)]
    if wrong:
        return f'split {shown(wrong[0])} is not a name, such as train or val'
    if not exists(row.file):
        return f'{shown_text(row.file)} is not there'
    return None


def _stop_for(mistakes: Sequence[str], what: str) -> None:
    if mistakes:
        more = [f'and {len(mistakes) - MOST_MISTAKES} more'] if len(mistakes) > MOST_MISTAKES else []
        lines = '\n  '.join([*mistakes[:MOST_MISTAKES], *more])
        raise UserError(f'{what}: {numbered(len(mistakes), "mistake")}, so nothing was written.\n  {lines}')


def numbers_of(labels: Iterable[str]) -> tuple[dict[str, int], list[str] | None]:
    """The number of each label, and the names in their order; None where labels are numbers."""
    names = sorted(set(labels))
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}, None
    return {name: number for number, name in enumerate(names)}, names


def compact(annotation: Mapping[str, Any]) -> tuple[dict[str, Any], Counter[str]]:
    """An annotation in as few bytes as PYSKL's, with its keys alone; and counts of what users should know of it."""
    keypoint, score = annotation['keypoint'], annotation.get('keypoint_score')
    is_large = bool((np.abs(keypoint) >= FLOAT16_KEEPS).any())
    counts = Counter(
        left_out=annotation.get('persons_left_out', 0),
        guessed=not annotation.get('img_shape_known', True),
        large=is_large,
    )
    clip = {key: annotation[key] for key in KEYS if key in annotation}
    clip['keypoint'] = keypoint.astype(np.float32 if is_large or keypoint.shape[3] == 3 else np.float16)
    if score is not None:
        clip['keypoint_score'] = score.astype(np.float16)
    return clip, counts


def from_table(
    source: Path, labels: Path, out: Path, layout: str | None = None, img_shape: tuple[int, int] | None = None
) -> str:
    """Writes the pickle of a folder (or pickle) and a table of labels; returns what it made. Raises UserError."""
    check_out(out)
    if source.is_dir():
        rows = read_table(labels, lambda file: (source / file).exists())
    elif source.is_file():
        by_name = {annotation['frame_dir']: annotation for annotation in read_keypoint_file(source, layout, img_shape)}
        rows = read_table(labels, by_name.__contains__)
    else:
        raise UserError(f'{source} is not there. Name the folder that holds the keypoint files, or a pickle.')
    numbers, names = numbers_of(row.label for row in rows)

    annotations, counts, mistakes, form, sources = [], Counter(), [], None, Counter()
    split: dict[str, list[str]] = {name: [] for row in rows for name in row.splits}
    for row in tqdm(rows, unit='file', disable=None):
        try:
            found = read_keypoint_file(source / row.file, layout, img_shape) if source.is_dir() else [by_name[row.file]]
            if (form := form or _form(found[0])) != _form(found[0]):
                raise UserError(f'{row.file} is {_form(found[0])}, and files before it {form}. Make a pickle of each.')
        except UserError as error:
            mistakes.append(f'line {row.line}: {error}')
            continue
        for annotation in found:
            clip, more = compact(annotation)
            counts += more
            sources[annotation.get('source', 'PYSKL')] += 1
            name = row.name if len(found) == 1 else f'{row.name}/{annotation["frame_dir"]}'
            annotations.append(clip | {'frame_dir': name, 'label': numbers[row.label]})
            for split_name in row.splits:
                split[split_name].append(name)
    _stop_for(mistakes, str(source))
    classes_file = None
    if names is not None:
        make_folder(out.parent)
        classes_file = classes_file_of(out)
        write_text(classes_file, ''.join(f'{name}\n' for name in names))
    read_as = ', '.join(f'{number:,} {kind}' for kind, number in sources.most_common())
    return _write(out, split, annotations, [f'read as: {read_as}', *_remarks(counts)], classes_file)


def from_skeletons(folder: Path, out: Path) -> str:
    """Writes the 3D pickle of NTU's .skeleton files, of each the two bodies that move most; returns what it made."""
    check_out(out)
    files = sorted(file for file in folder.rglob('*.skeleton') if not file.name.startswith('.'))
    if not files:
        raise UserError(
            f'{folder} holds no .skeleton files. Of other files, name a table of labels too: FOLDER LABELS.'
        )
    annotations, without, mistakes = {}, [], []
    for file in tqdm(files, unit='file', disable=None):
        try:
            if not ntu_skeleton.ID.fullmatch(file.stem) or file.stem in annotations:
                raise UserError(f'{file} must have a name of its own, such as S001C002P003R002A013.skeleton.')
            clip = ntu_skeleton.read(read_text(file), str(file))
            if any(clip.frames.values()):
                annotations[file.stem] = compact(to_annotation(clip, file, None, None, MOST_BODIES))[0]
            else:
                without.append(file.stem)
        except UserError as error:
            mistakes.append(str(error))
    _stop_for(mistakes, str(folder))
    if not annotations:
        raise UserError(f'{folder}: none of its {len(files):,} files has a skeleton in it.')
    remarks = []
    if without:
        remarks = [f'left out: {numbered(len(without), "clip")} without a skeleton ({listed(without)})']
    split = {name: ids for name, ids in ntu_skeleton.splits_of(list(annotations)).items() if ids}
    return _write(out, split, list(annotations.values()), remarks, None)


def convert_pickle(source: Path, layout: str, out: Path) -> str:
    """Writes a pickle whose joints are in another layout in the order that models take; returns what it made."""
    check_out(out)
    data = read_pickle(source)
    annotations = pyskl.read(data, source, layout)
    names = [annotation['frame_dir'] for annotation in annotations]
    split = require_form(data, source)[0] if isinstance(data, dict) and 'split' in data else {'all': names}
    classes_file = None
    if (old := classes_file_of(source)).is_file():
        make_folder(out.parent)
        classes_file = classes_file_of(out)
        write_text(classes_file, old.read_text())
    return _write(out, split, annotations, [], classes_file)


def check_out(out: Path) -> None:
    if out.suffix != '.pkl':
        raise UserError(f'{out} must end in .pkl.')
    for file in (out, classes_file_of(out)):
        if file.exists():
            raise UserError(f'{file} is there already. Name a new --out, or remove it.')
    check_writable(out.parent, 'Name another --out.')


def classes_file_of(out: Path) -> Path:
    return out.with_name(f'{out.stem}_classes.txt')


def _write(
    out: Path,
    split: Mapping[str, list[str]],
    annotations: Sequence[Mapping[str, Any]],
    remarks: Iterable[str],
    classes_file: Path | None,
) -> str:
    make_folder(out.parent)
    with replacing(out) as file:
        pickle.dump({'split': dict(split), 'annotations': annotations}, file, protocol=4)
    made = _made(out, split, annotations, classes_file)
    return '\n'.join([*made, *remarks, '', 'Next:', *_next(out, split, annotations, classes_file)])


def _form(annotation: Mapping[str, Any]) -> str:
    _, _, num_joints, size = annotation['keypoint'].shape
    return f'{size}D of {num_joints} joints'


def _made(
    out: Path, split: Mapping[str, list[str]], annotations: Sequence[Mapping[str, Any]], classes_file: Path | None
) -> Iterator[str]:
    """What was made."""
    shapes = np.array([annotation['keypoint'].shape[:2] for annotation in annotations])
    (fewest, shortest), (most, longest) = shapes.min(axis=0), shapes.max(axis=0)
    labels = {annotation['frame_dir']: annotation['label'] for annotation in annotations}
    yield (
        f'{out}: {numbered(len(annotations), "clip")} of {len(set(labels.values()))} classes, {_form(annotations[0])}, '
        f'{span(fewest, most)} persons, {span(shortest, longest)} frames, {out.stat().st_size / 1e6:,.1f} MB'
    )
    for name, clips in split.items():
        counts = Counter(labels[clip] for clip in clips if clip in labels).values()
        yield (
            f'split {name}: {numbered(sum(counts), "clip")} of {len(counts)} classes, '
            f'{span(min(counts, default=0), max(counts, default=0))} of each'
        )
    if classes_file:
        yield f'{classes_file}: their names, in the order of the labels'


def _remarks(counts: Mapping[str, int]) -> Iterator[str]:
    """What users should know."""
    if counts['left_out']:
        yield f'left out: {numbered(counts["left_out"], "person")}, of clips with more than the ten who are kept'
    if counts['guessed']:
        yield (
            f'image size: unknown of {numbered(counts["guessed"], "clip")}, guessed by the joints, which matters only '
            'to data.input keypoint_2d; --img_shape H W names it'
        )
    if counts['large']:
        yield f'float32: {numbered(counts["large"], "clip")} with coordinates from {FLOAT16_KEEPS:,} px on'


def _next(
    out: Path, split: Mapping[str, list[str]], annotations: Sequence[Mapping[str, Any]], classes_file: Path | None
) -> Iterator[str]:
    """Commands that check the pickle and train on it."""
    yield f'  python -m lib.tools.check_data {shlex.quote(str(out))}'
    train = next((name for name in split if 'train' in name), None)
    others = sorted((name for name in split if name != train), key=lambda name: 'val' not in name)
    if train is None or not others:
        yield 'Training takes two lists, of which one has train in its name.'
        return
    values = {
        'data.ann_file': out,
        'data.benchmark': f'[{train},{others[0]}]',
        'model.num_classes': max(annotation['label'] for annotation in annotations) + 1,
    }
    if classes_file:
        values['data.class_names'] = classes_file
    num_joints = annotations[0]['keypoint'].shape[2]
    if num_joints != len(COCO17.joints):  # which configs have
        values['model.num_joints'] = num_joints
    settings = ' '.join(f'--set {shlex.quote(f"{key}={value}")}' for key, value in values.items())
    yield f'  python train_action_vanilla.py --checkpoint checkpoint/action/{shlex.quote(out.stem)} {settings}'


def make(args: argparse.Namespace) -> str:
    img_shape = tuple(args.img_shape) if args.img_shape else None
    if args.kpfiles:
        return convert_kinetics(args.source, args.kpfiles, args.box_thr, args.out)
    if args.labels:
        return from_table(args.source, args.labels, args.out, args.layout, img_shape)
    if args.source.is_dir():
        return from_skeletons(args.source, args.out)
    if args.layout:
        return convert_pickle(args.source, args.layout, args.out)
    raise UserError(f'{args.source}: name a table of labels too, or --layout to convert a pickle, or a folder.')


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog='python -m lib.tools.make_pickle',
    )
    parser.add_argument('source', type=Path, metavar='FOLDER', help='the keypoint files; or a pickle')
    parser.add_argument(
        'labels', type=Path, nargs='?', metavar='LABELS', help='CSV table with the columns file, label, split'
    )
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='new .pkl file')
    parser.add_argument('--layout', choices=LAYOUTS, help='order of the joints (default: by their number)')
    parser.add_argument(
        '--img_shape', type=int, nargs=2, metavar=('H', 'W'), help='size of the images in pixels, if files lack it'
    )
    parser.add_argument('--kpfiles', type=Path, metavar='FOLDER', help="the keypoint files of Kinetics-400's index")
    parser.add_argument(
        '--box_thr', type=float, default=0.5, help='of Kinetics-400: least score of a person (default: %(default)s)'
    )
    args = parser.parse_args(arguments)
    if args.img_shape and not all(1 <= size <= LARGEST_COORDINATE for size in args.img_shape):
        parser.error(f'--img_shape {args.img_shape[0]} {args.img_shape[1]}: pixels, height and width')
    warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
    try:
        print(make(args))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


if __name__ == '__main__':
    sys.exit(main())
