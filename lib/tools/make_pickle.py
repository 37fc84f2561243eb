"""Make a PYSKL pickle to train on, of a folder of keypoint files and a table of their labels.

    python -m lib.tools.make_pickle data/action/sample_files data/action/sample_files/labels.csv \\
        --out data/action/own.pkl

FOLDER holds a file for each clip: JSON of MMPose or AlphaPose, .npy, .npz or a PYSKL pickle of one clip, or a folder of
OpenPose's JSON files. LABELS is a CSV table with a row for each, such as

    file,label,split
    walk_01.json,walking,train
    day_2/walk_02.json,walking,val;test

A label is the name of an action, or its number from 0 on. A split is the name of a list, or several with ; in between.
Names are numbered in alphabetical order, and written to <OUT without .pkl>_classes.txt, a line each.
"""

import argparse
import csv
import pickle
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.cli import DONE, USER_ERROR
from lib.data.skeletons import COCO17, LAYOUTS
from lib.errors import UserError, shown, shown_text, user_file
from lib.files import check_writable, make_folder, replacing, require_file, write_text
from lib.formats import read_keypoint_file
from lib.formats.clip import LARGEST_COORDINATE
from lib.tools.check_data import numbered, span

KEYS = ('frame_dir', 'label', 'total_frames', 'img_shape', 'original_shape', 'keypoint')  # and keypoint_score
COLUMNS = ('file', 'label', 'split')
ENDING = re.compile(r'\.(json|npy|npz|pkl|pickle)$')
LIST_NAME = re.compile(r'[A-Za-z][\w.-]*')
MOST_BYTES = 2**26  # of a table
MOST_CLASSES = 10_000  # a number beyond that is a slip
MOST_MISTAKES = 10  # that are shown
FLOAT16_KEEPS = 2048  # px; below, it is off by half a pixel at most


@dataclass(frozen=True)
class Row:
    """A row of the table: where it stands, its file as a path in the folder, what it shows, the lists it is in."""

    line: int
    file: str
    label: str
    lists: tuple[str, ...]

    @property
    def name(self) -> str:
        """The clip's frame_dir."""
        return ENDING.sub('', self.file)


def read_table(path: Path, folder: Path) -> list[Row]:
    """The rows of a CSV table, each for a file of its own. Raises UserError that lists all wrong rows."""
    require_file(path)
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f'{path} has over {MOST_BYTES:,} bytes, which is no table of labels.')
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
                lists = tuple(dict.fromkeys(name.strip() for name in values['split'].split(';')))
                file_name = (cells['file'] or '').strip()
                row = Row(reader.line_num, file_name and Path(file_name).as_posix(), values['label'], lists)
                mistake = 'it has more cells than the first line' if None in cells else _mistake(row, folder, lines)
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


def _mistake(row: Row, folder: Path, lines: Mapping[str, int]) -> str | None:
    """What is wrong with a row, if anything. lines: those of the clips before it."""
    if not row.file or not row.label:
        return f'it has no {"label" if row.file else "file"}'
    if row.name in lines:
        return f'{shown_text(row.name)} stands in line {lines[row.name]} too'
    if not row.label.isprintable() or (row.label.isdecimal() and int(row.label) >= MOST_CLASSES):
        return f'label {shown(row.label)} is no name, nor a number below {MOST_CLASSES:,}'
    wrong = [name for name in row.lists if not LIST_NAME.fullmatch(name)]
    if wrong:
        return f'split {shown(wrong[0])} is no name of a list, such as train or val'
    if not (folder / row.file).exists():
        return f'{folder / shown_text(row.file)} is not there'
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


def read_clip(path: Path, layout: str | None, img_shape: tuple[int, int] | None) -> tuple[dict[str, Any], Counter[str]]:
    """The annotation of a file of one clip, in as few bytes as PYSKL's; and counts of what is to be told of it."""
    annotation, *more = read_keypoint_file(path, layout, img_shape)
    if more:
        raise UserError(f'{path} holds {1 + len(more)} clips, and a row is one clip.')
    keypoint, score = annotation['keypoint'], annotation.get('keypoint_score')
    is_large = bool((np.abs(keypoint) >= FLOAT16_KEEPS).any())
    told = Counter(
        left_out=annotation.get('persons_left_out', 0),
        guessed=not annotation.get('img_shape_known', True),
        large=is_large,
    )
    clip = {key: annotation[key] for key in KEYS if key in annotation}
    clip['keypoint'] = keypoint.astype(np.float32 if is_large else np.float16)
    if score is not None:
        clip['keypoint_score'] = score.astype(np.float16)
    return clip, told


def make(
    folder: Path, labels: Path, out: Path, layout: str | None = None, img_shape: tuple[int, int] | None = None
) -> str:
    """Writes the pickle and the names of its classes; returns what it made, in words. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f'{folder} is no folder. Name the one that holds the keypoint files.')
    classes_file = out.with_name(f'{out.stem}_classes.txt')
    if out.suffix != '.pkl':
        raise UserError(f'{out} must end in .pkl.')
    for file in (out, classes_file):
        if file.exists():
            raise UserError(f'{file} is there already. Name a new --out, or remove it.')
    check_writable(out.parent, 'Name another --out.')
    rows = read_table(labels, folder)
    numbers, names = numbers_of(row.label for row in rows)

    annotations, told, mistakes, form = [], Counter(), [], None
    for row in tqdm(rows, unit='file', disable=None):
        try:
            annotation, notes = read_clip(folder / row.file, layout, img_shape)
            found = _form(annotation)
            if (form := form or found) != found:
                raise UserError(f'{folder / row.file} is {found}, and files before it {form}. Make a pickle of each.')
        except UserError as error:
            mistakes.append(f'line {row.line}: {error}')
            continue
        annotations.append(annotation | {'frame_dir': row.name, 'label': numbers[row.label]})
        told += notes
    _stop_for(mistakes, str(folder))

    split = {name: [] for row in rows for name in row.lists}
    for row in rows:
        for name in row.lists:
            split[name].append(row.name)
    make_folder(out.parent)
    if names is None:
        classes_file = None
    else:
        write_text(classes_file, ''.join(f'{name}\n' for name in names))
    with replacing(out) as file:
        pickle.dump({'split': split, 'annotations': annotations}, file, protocol=4)
    made, then = _made(out, split, annotations, told, classes_file), _next(out, split, annotations, classes_file)
    return '\n'.join([*made, '', 'Next:', *then])


def _form(annotation: Mapping[str, Any]) -> str:
    _, _, num_joints, size = annotation['keypoint'].shape
    return f'{size}D of {num_joints} joints'


def _made(
    out: Path,
    split: Mapping[str, list[str]],
    annotations: Sequence[Mapping[str, Any]],
    told: Mapping[str, int],
    classes_file: Path | None,
) -> Iterator[str]:
    """What was made, and what users should know of it."""
    shapes = np.array([annotation['keypoint'].shape[:2] for annotation in annotations])
    (fewest, shortest), (most, longest) = shapes.min(axis=0), shapes.max(axis=0)
    labels = {annotation['frame_dir']: annotation['label'] for annotation in annotations}
    yield (
        f'{out}: {numbered(len(annotations), "clip")} of {len(set(labels.values()))} classes, {_form(annotations[0])}, '
        f'{span(fewest, most)} persons, {span(shortest, longest)} frames, {out.stat().st_size / 1e6:,.1f} MB'
    )
    for name, clips in split.items():
        counts = Counter(labels[clip] for clip in clips).values()
        yield (
            f'list {name}: {numbered(len(clips), "clip")} of {len(counts)} classes, '
            f'{span(min(counts), max(counts))} of each'
        )
    if classes_file:
        yield f'{classes_file}: their names, by which labels are numbered'
    if told['left_out']:
        yield f'left out: {numbered(told["left_out"], "person")}, of clips with more than the ten who are kept'
    if told['guessed']:
        yield (
            f'image size: unknown of {numbered(told["guessed"], "clip")}, guessed by the joints, which only data.input '
            'keypoint_2d depends on; --img_shape H W names it'
        )
    if told['large']:
        yield f'float32: {numbered(told["large"], "clip")} with coordinates from {FLOAT16_KEEPS:,} px on'


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog='python -m lib.tools.make_pickle',
    )
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='the keypoint files')
    parser.add_argument('labels', type=Path, metavar='LABELS', help='CSV table with the columns file, label, split')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='new .pkl file')
    parser.add_argument('--layout', choices=LAYOUTS, help='order of the joints, where their number does not tell it')
    parser.add_argument(
        '--img_shape', type=int, nargs=2, metavar=('H', 'W'), help='size of the images in pixels, where files lack it'
    )
    args = parser.parse_args(arguments)
    if args.img_shape and not all(1 <= size <= LARGEST_COORDINATE for size in args.img_shape):
        parser.error(f'--img_shape {args.img_shape[0]} {args.img_shape[1]}: pixels, height and width')
    try:
        print(make(args.folder, args.labels, args.out, args.layout, args.img_shape and tuple(args.img_shape)))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


if __name__ == '__main__':
    sys.exit(main())
