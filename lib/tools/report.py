"""Compare runs on one page: results, settings that differ, curves, confusions, and heatmaps as the models see them.

    python -m lib.tools.report checkpoint/action/sample_mbert checkpoint/action/sample_vanilla --out report.html

FOLDER is what a script's --checkpoint names. A run may still be training, and need not be evaluated; what is missing is
said on the page. The page is one file that asks nothing of the network and runs no script. A report that is there
already is written anew, any other file is left alone.
"""

import argparse
import base64
import io
import json
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from lib.cli import DONE, USER_ERROR
from lib.config import resolve_config
from lib.data.clips import Clips
from lib.data.heatmap import Kind, check_maps, joint_heatmaps, limb_heatmaps
from lib.data.store import is_packed
from lib.errors import UserError
from lib.evaluation import read_predictions
from lib.files import check_writable, make_folder, replacing
from lib.metrics import confusion_matrix, most_confused
from lib.pictures import draw_clip
from lib.tools.checkpoints import kind_of
from lib.tools.results import RunFolder, read_runs, to_evaluate

PAGE = Path(__file__).with_name('report.html')
MARK = b'<meta name="generator" content="lib.tools.report">'  # by which a report is known
PREDICTIONS = 'predictions.npz'
NONE = '–'  # noqa: RUF001 a dash in a cell
COLOURS, DASHES = 6, ('', '7 3', '2 3', '10 3 2 3', '14 5')  # of the runs, in turn: all different for thirty
CURVES = {
    'Validation top-1': ('share', lambda line: line['val']['top1']),
    'Validation mean class': ('share', lambda line: line['val']['mean_class']),
    'Training top-1': ('share', lambda line: line['train']['top1']),
    'Validation loss': ('number', lambda line: line['val']['loss']),
    'Training loss': ('number', lambda line: line['train']['loss']),
    'Learning rate': ('number', lambda line: max(line['lr'].values())),
}
MOST_POINTS = 400  # of a curve, and places where its values are shown
MOST_CLASSES, MOST_DRAWN, MOST_NUMBERED = 2000, 130, 20  # of a matrix: to be counted, to be drawn, with numbers
LONGEST_NAME = 26  # letters of a class beside its row
MOST_PIXELS = 2**21  # of a map, times frames and persons; 243 frames of 2 persons at 64x64 have fewer
OPEN_MATRICES = 2  # the others are folded


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.report'
    )
    parser.add_argument('folders', nargs='+', type=Path, metavar='FOLDER')
    parser.add_argument('--out', type=Path, required=True, metavar='HTML', help='the page to write')
    args = parser.parse_args(arguments)
    try:
        check_page(args.out)
        runs = read_runs(args.folders)
        content = page(runs).encode('utf-8', 'replace')
        make_folder(args.out.parent)
        with replacing(args.out) as file:
            file.write(content)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    print(f'{args.out}: {counted(len(runs), "run")}, {len(content) / 1e6:.1f} MB')
    return DONE


def check_page(path: Path) -> None:
    """Raises UserError where no report can be written, or something else would be lost."""
    if path.suffix not in ('.html', '.htm'):
        raise UserError(f'{path} must end in .html.')
    check_writable(path.parent, 'Name a file in another folder.')
    if path.exists():
        if not path.is_file():
            raise UserError(f'{path} is no file: name another.')
        with path.open('rb') as file:
            if MARK not in file.read(1000):
                raise UserError(f'{path} is there already and is no report: name another file, or remove it.')


def page(runs: Sequence[RunFolder]) -> str:
    """The whole page."""
    title = f'Comparison of {len(runs)} runs' if len(runs) > 1 else f'Run {runs[0].name}'
    sections = {
        'Results': results(runs),
        'Settings': settings(runs),
        'Curves': curves(runs),
        'Confusions': confusions(runs),
        'Heatmaps': heatmaps(runs),
    }
    links = ' '.join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    parts = [
        f'<header><h1>{escape(title)}</h1>',
        f'<p class="soft">Written {time.strftime("%Y-%m-%d %H:%M")} by lib.tools.report</p><nav>{links}</nav></header>',
        *(f'<section id="{name.lower()}"><h2>{name}</h2>\n{body}</section>' for name, body in sections.items()),
    ]
    return Template(PAGE.read_text()).substitute(title=escape(title), body='\n'.join(parts))


# --- pieces of HTML; what they are given is HTML already -------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str], what: str) -> str:
    """A table that scrolls by itself where it is too wide. kinds: the CSS class of each column."""
    head = ''.join(f'<th scope="col" class="{kind}">{cell}</th>' for cell, kind in zip(columns, kinds, strict=True))
    lines = []
    for first, *others in rows:
        cells = ''.join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(others, kinds[1:], strict=True))
        lines.append(f'<tr><th scope="row" class="{kinds[0]}">{first}</th>{cells}</tr>')
    body = '\n'.join(lines)
    return box(f'<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>', what)


def box(content: str, what: str) -> str:
    """Content that may be wider than the page."""
    return f'<div class="box" tabindex="0" role="region" aria-label="{escape(what)}">{content}</div>'


def notes(lines: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{line}</li>" for line in lines)}</ul>' if lines else ''


def breakable(text: str) -> str:
    """Text in which a line may break after an underscore or slash, as paths have them."""
    return re.sub('([/_])', r'\1<wbr>', escape(text))


def letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ...: by which a run is known on the page."""
    return (letter(number // 26 - 1) if number >= 26 else '') + chr(ord('A') + number % 26)


def key(number: int) -> str:
    """A run's line as the curves have it, and its letter."""
    line = f'<line x1="0" y1="6" x2="42" y2="6" class="line" style="{stroke(number)}"/>'
    return f'<svg class="key" viewBox="0 0 42 12" aria-hidden="true">{line}</svg><b>{letter(number)}</b>'


def stroke(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'stroke:var(--run-{number % COLOURS})' + (f';stroke-dasharray:{dash}' if dash else '')


def percent(share: float) -> str:
    return f'{100 * share:.2f}'


def counted(number: int, what: str) -> str:
    return f'{number:,} {what}' + ('' if number == 1 else 's')


# --- results ---------------------------------------------------------------------------------------------------------


def results(runs: Sequence[RunFolder]) -> str:
    columns = ('run', 'best top-1', 'last top-1', 'evaluated top-1', 'mean class', 'top-5', 'evaluated on', 'epochs')
    columns += ('clips/s', 'model', 'parameters')
    kinds = [{'run': 'name', 'evaluated on': 'nowrap', 'model': 'nowrap'}.get(column, 'number') for column in columns]
    rows = [[run_cell(i, run), *result_cells(run)] for i, run in enumerate(runs)]
    explained = (
        '<p class="soft">Accuracies in %. Best and last: of the epochs, on the validation list; a best epoch chosen on '
        'the list that it is reported on flatters, so compare the last ones too. Evaluated: by --evaluate, with its '
        '95 % interval (bootstrap over clips); it also tells the parameters. Clips/s: in training, median of the '
        'epochs, and the share of that time spent waiting for data.</p>'
    )
    faults = [f'<b>{letter(i)}</b> {escape(fault)}' for i, run in enumerate(runs) for fault in run.faults.values()]
    return table(columns, rows, kinds, 'Results') + explained + notes(faults)


def run_cell(number: int, run: RunFolder) -> str:
    return f'{key(number)}<br><b>{breakable(run.name)}</b><small>{written(run)}</small>'


def written(run: RunFolder) -> str:
    """When its last epoch was written, or its other files."""
    files = [run.path / name for name in ('metrics.jsonl', 'evaluation.json', 'config.yaml', 'timing.jsonl')]
    last = next((file.stat().st_mtime for file in files if file.is_file()), None)
    return time.strftime('%Y-%m-%d %H:%M', time.localtime(last)) if last is not None else ''


def result_cells(run: RunFolder) -> list[str]:
    found, asked = run.evaluation, run.config.get('train', {}).get('epochs')
    cells = [NONE] * 6
    if run.history:
        best = best_line(run.history)
        cells[0] = f'{percent(best["val"]["top1"])}<small>epoch {best["epoch"]}</small>'
        cells[1] = percent(run.history[-1]['val']['top1'])
    if found:
        between = found.get('interval', {}).get('top1')
        interval = f'<small>{percent(between[0])} to {percent(between[1])}</small>' if between else ''
        cells[2:5] = percent(found['top1']) + interval, percent(found['mean_class']), percent(found['top5'])
        cells[5] = evaluated_on(found)
    epochs = str(run.history[-1]['epoch']) if run.history else '0'
    epochs += f' of {asked}' if type(asked) is int else ''
    speed = NONE
    if run.timing:
        epochs += f'<small>{duration(sum(line["train_seconds"] for line in run.timing))}</small>'
        waiting = [line['waited_for_data'] for line in run.timing if 'waited_for_data' in line]
        speed = f'{run.speed:,.1f}' + (f'<small>waiting {np.median(waiting):.1%}</small>' if waiting else '')
    kind, parameters = (escape(found['kind']), f'{found["parameters"]:,}') if found else (kind_told(run), NONE)
    return [*cells, epochs, speed, kind, parameters]


def kind_told(run: RunFolder) -> str:
    try:
        return kind_of(run.config, 'config.yaml')
    except ValueError:
        return NONE


def best_line(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(history, key=lambda line: line['val']['top1'])  # of equal ones the first, as the scripts take it


def evaluated_on(found: dict[str, Any]) -> str:
    classes = len(found['per_class'])
    told = [escape(found['list'])] if 'list' in found else []
    told += [f'{found["num_clips"]:,} clips'] if 'num_clips' in found else []
    told += [f'{found["views"]} views'] if found.get('views', 1) > 1 else []
    epoch = f'epoch {found["epoch"]}; ' if found.get('epoch') is not None else ''
    return f'{", ".join(told)}<small>{epoch}{classes} classes, chance {percent(1 / classes)}</small>'


def duration(seconds: float) -> str:
    if seconds < 100:
        return f'{seconds:.0f} s'
    if seconds < 6000:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:,.1f} h'


# --- settings --------------------------------------------------------------------------------------------------------


def settings(runs: Sequence[RunFolder]) -> str:
    """The keys in which the runs differ, a column for each run, and folded those in which they do not."""
    known = {i: run for i, run in enumerate(runs) if run.config}
    if not known:
        return '<p>No run has a config.yaml that can be read.</p>'
    shown = defaultdict(dict)  # {section: {key: {run: value}}}
    for i, run in known.items():
        for section, keys in run.config.items():
            for name, value in keys.items():
                shown[section].setdefault(name, {})[i] = setting(value)
    keys = {f'{section}.{name}': of_runs for section, names in shown.items() for name, of_runs in names.items()}
    differing = {name: of_runs for name, of_runs in keys.items() if len(set(of_runs.values())) > 1}
    same = {name: of_runs for name, of_runs in keys.items() if name not in differing}
    partly = {name: of_runs for name, of_runs in same.items() if len(of_runs) < len(known)}
    everywhere = {name: of_runs for name, of_runs in same.items() if name not in partly}
    heads = [f'{key(i)}<br>{breakable(runs[i].name)}' for i in known]

    def told(values: dict[str, dict[int, str]], what: str) -> str:
        rows = [[f'<code>{escape(name)}</code>', *(of.get(i, NONE) for i in known)] for name, of in values.items()]
        return table(['', *heads], rows, ['nowrap', *['value'] * len(known)], what)

    if len(known) == 1:
        what = f'All {len(keys)} settings'
        return folded(what, told(keys, what))
    parts = [told(differing, 'Settings that differ') if differing else '<p>No setting differs.</p>']
    if partly:
        what = f'{counted(len(partly), "setting")} that only some runs have, alike in those'
        parts.append(folded(what, told(partly, what)))
    if everywhere:
        what = f'{counted(len(everywhere), "setting")} the same in all runs'
        rows = [[f'<code>{escape(name)}</code>', next(iter(of.values()))] for name, of in everywhere.items()]
        parts.append(folded(what, table(['', 'value'], rows, ['nowrap', 'value'], what)))
    return '\n'.join(parts)


def folded(what: str, content: str, is_open: bool = False) -> str:
    return f'<details{" open" if is_open else ""}><summary>{what}</summary>{content}</details>'


def setting(value: object) -> str:
    if isinstance(value, list):
        return f'[{", ".join(map(setting, value))}]'
    if isinstance(value, float):
        return f'{value:.10g}'
    told = value if isinstance(value, str) else json.dumps(value, default=str)
    return breakable(told)


# --- curves ----------------------------------------------------------------------------------------------------------


def curves(runs: Sequence[RunFolder]) -> str:
    drawn = [(i, run) for i, run in enumerate(runs) if run.history]
    if not drawn:
        return '<p>No epoch of a run is known.</p>'
    legend = ''.join(f'<li>{key(i)} {breakable(run.name)}</li>' for i, run in drawn)
    charts = '\n'.join(
        chart(title, unit, {i: [(line['epoch'], value(line)) for line in run.history] for i, run in drawn})
        for title, (unit, value) in CURVES.items()
    )
    told = '<p class="soft">Over the epochs. A dot marks the best epoch of a run. Point at an epoch for its values.</p>'
    return f'<ul class="runs">{legend}</ul>{told}<div class="charts">{charts}</div>'


def chart(title: str, unit: str, lines: dict[int, list[tuple[int, float]]]) -> str:
    """Lines {run: [(epoch, value), ...]} as a drawing. unit: 'share', which is shown in %, or 'number'."""
    left, right, top, bottom = 46, 346, 10, max(214, 14 + 12 * len(lines))  # so that the letters have room
    first, last = min(line[0][0] for line in lines.values()), max(line[-1][0] for line in lines.values())
    values = [value for line in lines.values() for _, value in line]
    low, high, ticks = axis(min(values) if unit == 'share' else min(0, *values), max(values))

    def x(epoch: float) -> float:
        return left + (right - left) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    def told(value: float) -> str:
        return f'{100 * value:.4g}' if unit == 'share' else f'{value:.3g}'

    parts = []
    for tick in ticks:
        parts.append(f'<line class="rule" x1="{left}" y1="{y(tick):.1f}" x2="{right}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{told(tick)}</text>')
    for epoch in epoch_ticks(first, last):
        parts.append(f'<text x="{x(epoch):.1f}" y="{bottom + 17}" text-anchor="middle">{epoch}</text>')
    ends = spread({i: y(line[-1][1]) for i, line in lines.items()}, top + 4, bottom)
    for i, line in lines.items():
        step = math.ceil(len(line) / MOST_POINTS)
        points = [*line[:-1:step], line[-1]]
        path = ' '.join(f'{x(epoch):.1f},{y(value):.1f}' for epoch, value in points)
        end = x(line[-1][0]), y(line[-1][1])
        colour = f'var(--run-{i % COLOURS})'
        parts.append(f'<polyline class="line" style="{stroke(i)}" points="{path}"/>')
        parts.append(f'<circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="1.8" style="fill:{colour}"/>')
        if title == 'Validation top-1':
            epoch, value = max(line, key=lambda point: point[1])
            parts.append(f'<circle cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="3.6" style="fill:{colour}"/>')
        tie = f'M{end[0] + 3:.1f} {end[1]:.1f}H{right + 4}L{right + 9} {ends[i]:.1f}'
        parts.append(f'<path class="tie" d="{tie}" style="stroke:{colour}"/>')
    for i, place in ends.items():
        parts.append(f'<text class="run" x="{right + 11}" y="{place + 4:.1f}">{letter(i)}</text>')
    parts += hovers({i: dict(line) for i, line in lines.items()}, unit, first, last, x, (top, bottom))
    name = f'{title}, %' if unit == 'share' else title
    drawing = f'<svg viewBox="0 0 {right + 30} {bottom + 26}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f'<figure><figcaption>{name}</figcaption>{drawing}</figure>'


def hovers(
    lines: dict[int, dict[int, float]],
    unit: str,
    first: int,
    last: int,
    x: Callable[[float], float],
    edges: tuple[float, float],
) -> list[str]:
    """A strip for each epoch, or each few, that shows the runs' values where it is pointed at."""
    strips, step = [], math.ceil((last - first + 1) / MOST_POINTS)
    for epoch in range(first, last + 1, step):
        found = [(i, line[epoch]) for i, line in lines.items() if epoch in line]
        if not found:
            continue
        told = ''.join(f'\n{letter(i)}  {f"{value:.2%}" if unit == "share" else f"{value:.4g}"}' for i, value in found)
        start, end = x(epoch - step / 2), x(epoch + step / 2)
        if first == last:
            start, end = start - 20, end + 20
        place = f'x="{start:.1f}" y="{edges[0]}" width="{end - start:.1f}" height="{edges[1] - edges[0]}"'
        strips.append(f'<rect class="hover" {place}><title>epoch {epoch}{told}</title></rect>')
    return strips


def axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Edges around two values that are round numbers, and the round numbers from one to the other, 2 to 7 of them."""
    span = max((high - low) or abs(high) or 1.0, 1e-300)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 4.5 >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = [number * step for number in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def epoch_ticks(first: int, last: int) -> list[int]:
    if last == first:
        return [first]
    step = max(1, round(axis(first, last)[2][1] - axis(first, last)[2][0]))
    ticks = [epoch for epoch in range(0, last + 1, step) if epoch > first + step / 2]
    return [first, *ticks]


def spread(places: dict[int, float], low: float, high: float) -> dict[int, float]:
    """Heights of labels near the places they belong to, in the same order, a line of text apart where there is room."""
    order = sorted(places, key=places.get)
    gap = min(11.5, (high - low) / max(len(order) - 1, 1))
    put, edge = {}, low
    for i in order:
        put[i] = max(places[i], edge)
        edge = put[i] + gap
    edge = high
    for i in reversed(order):
        put[i] = min(put[i], edge)
        edge = put[i] - gap
    return put


# --- confusions ------------------------------------------------------------------------------------------------------


def confusions(runs: Sequence[RunFolder]) -> str:
    parts, faults, unseen = [], [], []
    for i, run in enumerate(runs):
        if run.evaluation is None and not (run.path / PREDICTIONS).is_file():
            unseen.append(letter(i))
            continue
        try:
            matrix, names = confusions_of(run)
        except UserError as error:
            faults.append(f'<b>{letter(i)}</b> {escape(str(error))}')
            continue
        wrong = int(matrix.sum() - matrix.trace())
        told = f'<span class="soft">{wrong:,} of {int(matrix.sum()):,} clips taken for another class</span>'
        drawn = f'<div class="pair">{drawn_matrix(matrix, names)}<div>{pairs(matrix, names)}</div></div>'
        is_open = len(parts) < OPEN_MATRICES
        parts.append(folded(f'<b>{letter(i)} {escape(run.name)}</b> {told}', drawn, is_open))
    explained = (
        '<p class="soft">Rows are the classes, columns what their clips were taken for, in % of the row; classes '
        'without clips are left out. Point at a cell for its numbers.</p>'
    )
    if unseen:
        faults.append(f'<b>{", ".join(unseen)}</b> not evaluated; how it is done is said under Results')
    return (explained if parts else '') + '\n'.join(parts) + notes(faults)


def confusions_of(run: RunFolder) -> tuple[np.ndarray, list[str]]:
    """The confusion matrix (K, K) of a run's predictions, and the classes' names. Raises UserError."""
    path = run.path / PREDICTIONS
    if not path.is_file():
        raise UserError(f'{run.path} has no {PREDICTIONS}: {to_evaluate(run.path)}')
    _, labels, logits = read_predictions(path)
    num_classes, found = logits.shape[1], run.evaluation or {}
    if num_classes > MOST_CLASSES:
        raise UserError(f'{path} has {num_classes:,} classes, too many for a matrix on a page.')
    if found.get('num_clips', len(labels)) != len(labels):
        raise UserError(
            f'{path} has {len(labels):,} clips, evaluation.json beside it {found["num_clips"]:,}: evaluate again.'
        )
    names = found.get('class_names', [])
    if len(names) != num_classes:
        names = [f'class {number}' for number in range(num_classes)]
    return confusion_matrix(logits, labels), names


def pairs(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The ten most frequent mistakes."""
    rows = [
        [breakable(names[true]), breakable(names[taken]), f'{count:,}', f'{count / matrix[true].sum():.1%}']
        for true, taken, count in most_confused(matrix)
    ]
    if not rows:
        return '<p>No clip was taken for another class.</p>'
    columns, kinds = ('class', 'taken for', 'clips', 'share'), ('class', 'class', 'number', 'number')
    return '<h3>Most confused</h3>' + table(columns, rows, kinds, 'Most confused')


def drawn_matrix(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix as a drawing, of the classes that occur."""
    shown = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    if len(shown) > MOST_DRAWN:
        return f'<p>{len(shown)} classes are too many to be drawn.</p>'
    matrix, names = matrix[np.ix_(shown, shown)], [names[number] for number in shown]
    labels = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + '…' for name in names]
    total = np.maximum(matrix.sum(axis=1), 1)
    count, numbered = len(shown), len(shown) <= MOST_NUMBERED
    size = 30 if numbered else 13  # of a cell
    beside = 16 + round(6.4 * max(map(len, labels)))  # pixels of the longest name
    edge = count * size
    parts = [f'<rect class="ground" x="{beside}" y="{beside}" width="{edge}" height="{edge}"/>']
    for i, label in enumerate(labels):
        middle = beside + (i + 0.5) * size
        parts.append(f'<text x="{beside - 6}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<text transform="translate({middle + 4} {beside - 6}) rotate(-90)">{escape(label)}</text>')
    for true, taken in zip(*(index.tolist() for index in np.nonzero(matrix)), strict=True):
        clips = int(matrix[true, taken])
        share = clips / total[true]
        x, y = beside + taken * size, beside + true * size
        # A root, so that a few per cent can be told from nothing.
        cell = f'<rect class="cell" x="{x}" y="{y}" width="{size}" height="{size}" fill-opacity="{share**0.5:.2f}"/>'
        number = ''
        if numbered and share >= 0.005:
            deep = ' class="deep"' if share > 0.35 else ''
            place = f'x="{x + size / 2}" y="{y + size / 2 + 4}"'
            number = f'<text{deep} {place} text-anchor="middle">{100 * share:.0f}</text>'
        how = 'recognised' if true == taken else f'taken for {escape(names[taken])}'
        told = f'{escape(names[true])} {how}: {clips:,} of {total[true]:,} clips, {share:.1%}'
        parts.append(f'<g>{cell}{number}<title>{told}</title></g>')
    for i in range(0, count + 1, 1 if numbered else 5):
        at = beside + i * size
        parts.append(f'<path class="frame" d="M{at} {beside}V{beside + edge}M{beside} {at}H{beside + edge}"/>')
    scale = ''.join(
        f'<rect class="cell" x="{beside + i * 34}" y="{beside + edge + 14}" width="34" height="10" '
        f'fill-opacity="{(each / 100) ** 0.5:.2f}"/><text class="axis" x="{beside + i * 34 + 17}" '
        f'y="{beside + edge + 38}" text-anchor="middle">{each}</text>'
        for i, each in enumerate((1, 5, 20, 50, 100))
    )
    scale += f'<text class="axis" x="{beside + 5 * 34 + 6}" y="{beside + edge + 38}">% of the class</text>'
    wide, high = max(beside + edge + 2, beside + 270), beside + edge + 44
    size_told = f'width="{wide}" height="{high}" viewBox="0 0 {wide} {high}"'
    svg = f'<svg class="matrix" {size_told} role="img" aria-label="Confusion matrix">{"".join(parts)}{scale}</svg>'
    return box(svg, 'Confusion matrix')


# --- heatmaps --------------------------------------------------------------------------------------------------------


def heatmaps(runs: Sequence[RunFolder]) -> str:
    """The first validation clip of each run as its model sees it; runs that see the same share a picture."""
    seen, faults = defaultdict(list), []
    for i, run in enumerate(runs):
        try:
            seen[heatmap(run)].append(i)
        except UserError as error:
            faults.append(f'<b>{letter(i)}</b> {escape(str(error))}')
    figures = []
    for (clip, label, told, png), numbers in seen.items():
        names = next((n for i in numbers if label < len(n := (runs[i].evaluation or {}).get('class_names', []))), None)
        told = f'{clip}, {names[label] if names else f"class {label}"}: {told}'
        of_runs = ', '.join(f'{letter(i)} {runs[i].name}' for i in numbers)
        figures.append(
            f'<figure><img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(told)}">'
            f'<figcaption><b>{escape(of_runs)}</b><br>{escape(told)}</figcaption></figure>'
        )
    explained = (
        '<p class="soft">The first clip of the validation list as the model is given it, frames from left to right, '
        'all channels in one picture: left limbs blue, right ones orange, the middle white.</p>'
    )
    return (f'{explained}<div class="maps">{"".join(figures)}</div>' if seen else '') + notes(faults)


def heatmap(run: RunFolder) -> tuple[str, int, str, bytes]:
    """A clip's frame_dir and label, what is shown of it, and a PNG. Raises UserError where none can be."""
    where = str(run.path / 'config.yaml')
    if not run.config:
        raise UserError(f'{where} is not known, and by it the clips.')
    given = run.config.get('data', {}).get('input', 'heatmap')
    if given != 'heatmap':
        raise UserError(f'{run.name} is given keypoints ({given}), and no heatmap.')
    one_view = ('data.batch_size=1', 'data.test_clips=1', 'data.test_flip=false')
    sections = {section: run.config.get(section, {}) for section in ('data', 'heatmap')}
    config = resolve_config(sections, {'data': Clips, 'heatmap': reference_renderer}, one_view, where)
    draw, size, frames = reference_renderer(**config.heatmap), config.heatmap.size, config.data.clip_len
    if size**2 * max(frames, 12) * config.data.max_persons > MOST_PIXELS:
        raise UserError(f'{where}: {frames} frames of {size}x{size} px are too many to be drawn here.')
    require_packed(Path(config.data.ann_file), config.data.store_dir)
    clips = Clips('val', size, **config.data)
    name, picture = draw_clip(clips, config.heatmap.kind, draw)
    shown = f'{min(12, frames)} of {frames} frames, {config.heatmap.kind} maps of {size}x{size} px, '
    shown += f'sigma {config.heatmap.sigma:g} px'
    return name.removeprefix('heatmap/'), int(clips.store.label[clips.clips[0]]), shown, png_of(picture)


def require_packed(ann_file: Path, store_dir: str | None) -> None:
    """Raises UserError where a pickle would have to be packed: a page of runs takes no place for that."""
    if not is_packed(ann_file, store_dir):
        raise UserError(f'{ann_file} is not packed, so that its clips are not drawn: evaluate the run.')


def reference_renderer(
    *, size: int = 56, sigma: float = 0.6, kind: Kind = 'joint'
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """draw(keypoint (1,M,T,V,2), score (1,M,T,V)) -> (1,T,channels,H,W), by no framework, as section `heatmap` says.

    Raises UserError for values out of range.
    """
    check_maps(size, sigma, kind)
    makers = {'joint': [joint_heatmaps], 'limb': [limb_heatmaps], 'both': [joint_heatmaps, limb_heatmaps]}[kind]

    def draw(keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
        maps = [make(keypoint[0], score[0], img_shape=(size, size), sigma=sigma) for make in makers]
        return np.concatenate(maps, axis=1)[None]

    return draw


def png_of(picture: np.ndarray) -> bytes:
    """A picture (3, H, W) uint8 as the bytes of a PNG."""
    from PIL import Image  # comes with matplotlib

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(file, 'PNG')
    return file.getvalue()


if __name__ == '__main__':
    sys.exit(main())
