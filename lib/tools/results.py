"""One table of the runs in some checkpoint folders, as their evaluations found them.

    python -m lib.tools.results checkpoint/action/sample_mbert checkpoint/action/sample_vanilla

A folder must hold evaluation.json (a script's --evaluate writes it). Chance is that of guessing among the classes that
occur; clips/s is the median over the epochs of training. For curves, settings and confusions: lib.tools.report.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.cli import DONE, USER_ERROR
from lib.config import read_config
from lib.errors import UserError, user_file

COLUMNS = ('run', 'model', 'parameters', 'top-1', 'top-5', 'mean class', 'chance', 'clips/s')
FILES = ('config.yaml', 'metrics.jsonl', 'timing.jsonl', 'evaluation.json', 'predictions.npz')  # that tell of a run
MOST_BYTES = 2**23  # of a JSON file; a line of metrics.jsonl has 300


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.results'
    )
    parser.add_argument('folders', nargs='+', type=Path, metavar='FOLDER')
    args = parser.parse_args(arguments)
    try:
        print(table([row(run) for run in read_runs(args.folders)]))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


def row(run: 'RunFolder') -> tuple[str, ...]:
    """The cells of a run's line. Raises UserError where there is no evaluation of it."""
    found = run.evaluation
    if found is None:
        raise UserError(run.faults['evaluation.json'])
    shares = [found['top1'], found['top5'], found['mean_class'], 1 / len(found['per_class'])]
    speed = '' if run.speed is None else f'{run.speed:.1f}'
    return (run.name, found['kind'], f'{found["parameters"]:,}', *(f'{share:.2%}' for share in shares), speed)


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    rule = ['-' * width if i < 2 else '-' * (width - 1) + ':' for i, width in enumerate(widths)]
    return '\n'.join(
        '| ' + ' | '.join(f'{cell:{"<" if i < 2 else ">"}{widths[i]}}' for i, cell in enumerate(line)) + ' |'
        for line in (COLUMNS, rule, *rows)
    )


# --- reading the folders of runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """What a run's folder tells, which may be little: it may still train, or come from a stranger.

    name: tells it from the other runs. config: {} where it is not known. history, timing: a line for each epoch, as
    metrics.jsonl and timing.jsonl have them. evaluation: None without a sound one. faults: {file: what is wrong}.
    """

    path: Path
    name: str
    config: dict[str, dict[str, Any]]
    history: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    faults: dict[str, str]

    @property
    def speed(self) -> float | None:
        """Clips per second in training, the median over the epochs."""
        return float(np.median([line['clips_per_second'] for line in self.timing])) if self.timing else None


def read_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """What the folders of some runs tell. Raises UserError where one is none, or is given twice.

    Files that are missing or broken raise nothing: they are in `faults`.
    """
    parts = [folder.resolve().parts for folder in folders]
    for folder, of_it in zip(folders, parts, strict=True):
        if not folder.is_dir():
            raise UserError(f'{folder}: there is no such folder. Name the --checkpoint folder of a run.')
        if not any((folder / name).is_file() for name in FILES):
            raise UserError(
                f'{folder} holds no run: none of {", ".join(FILES)} is there. Name the --checkpoint folder of a run.'
            )
        if parts.count(of_it) > 1:
            raise UserError(f'{folder} is given twice.')
    longest = max(map(len, parts))
    telling = next(n for n in range(1, longest + 1) if len({of_it[-n:] for of_it in parts}) == len(parts))
    return [_read(folder, '/'.join(of_it[-telling:])) for folder, of_it in zip(folders, parts, strict=True)]


def _read(folder: Path, name: str) -> RunFolder:
    faults = {}

    def sound(file: str, read: Callable[[Path], Any], otherwise: Any, missing: str) -> Any:
        if not (folder / file).is_file():
            faults[file] = f'{folder} has no {file}: {missing}'
            return otherwise
        try:
            return read(folder / file)
        except UserError as error:
            faults[file] = str(error)
            return otherwise

    def lines(is_sound: Callable[[Any], bool]) -> Callable[[Path], list[dict[str, Any]]]:
        def read(path: Path) -> list[dict[str, Any]]:
            found, unsound = _read_lines(path, is_sound)
            if unsound:
                faults[path.name] = f'{path}: {unsound} of {unsound + len(found)} lines are not sound, and left out.'
            return found

        return read

    config = sound('config.yaml', partial(read_config, sections=('data', 'model')), {}, 'its settings are not known.')
    history = {
        line['epoch']: line for line in sound('metrics.jsonl', lines(_is_epoch), [], 'its epochs are not known.')
    }
    timing = sound('timing.jsonl', lines(_is_timing), [], 'its speed is not known.')
    evaluation = sound('evaluation.json', _read_evaluation, None, to_evaluate(folder))
    return RunFolder(folder, name, config, [history[n] for n in sorted(history)], timing, evaluation, faults)


def to_evaluate(folder: Path) -> str:
    """How a run is evaluated, for who has not done it."""
    return f'evaluate it first: python -m lib.tools.evaluate {shlex.quote(str(folder))}'


def _read_lines(path: Path, is_sound: Callable[[Any], bool]) -> tuple[list[dict[str, Any]], int]:
    """The sound lines of a .jsonl file, and how many are not: a kill may cut the last one short."""
    found, unsound = [], 0
    for line in _read_text(path).splitlines():
        try:
            content = _parse(line)
        except ValueError:
            content = None
        if is_sound(content):
            found.append(content)
        else:
            unsound += 1
    return found, unsound


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        report = _parse(_read_text(path))
    except ValueError as error:
        raise UserError(f'{path} cannot be read ({error}): evaluate the run again.') from None
    if not _is_evaluation(report):
        raise UserError(f'{path} is not what --evaluate writes: evaluate the run again.')
    return report


def _read_text(path: Path) -> str:
    with user_file(path), path.open('rb') as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f'{path} has over {MOST_BYTES:,} bytes, more than any run writes.')
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f'{path} is no text.') from None


def _parse(text: str) -> Any:
    """What a JSON text holds. Raises UserError."""
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise UserError('it nests too deep') from None


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)  # thousands of digits are no number of a run


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < float('inf')


def _is_share(value: object) -> bool:
    return _is_number(value) and value <= 1


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_epoch(line: object) -> bool:
    return isinstance(line, dict) and line.keys() >= {'epoch', 'lr', 'train', 'val'}


def _is_timing(line: object) -> bool:
    return (
        isinstance(line, dict)
        and all(_is_number(line.get(key)) for key in ('train_seconds', 'clips_per_second'))
        and _is_share(line.get('waited_for_data', 0))  # older runs do not tell
    )


def _is_evaluation(report: object) -> bool:
    """Whether it is what an evaluation writes; older ones tell less."""
    if not isinstance(report, dict):
        return False
    per_class, interval = report.get('per_class'), report.get('interval', {})
    return (
        all(isinstance(report.get(key, ''), str) for key in ('kind', 'list'))
        and 'kind' in report
        and all(_is_count(report.get(key, 0)) for key in ('num_clips', 'views'))
        and (report.get('epoch') is None or _is_count(report['epoch']))  # weights of others tell none
        and _is_count(report.get('parameters'))
        and all(_is_share(report.get(key)) for key in ('top1', 'top5', 'mean_class'))
        and isinstance(per_class, dict)
        and len(per_class) > 0
        and isinstance(interval, dict)
        and all(
            isinstance(edges, list) and len(edges) == 2 and all(map(_is_share, edges)) for edges in interval.values()
        )
        and isinstance(names := report.get('class_names', []), list)
        and all(isinstance(name, str) for name in names)
    )


if __name__ == '__main__':
    sys.exit(main())
