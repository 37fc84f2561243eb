"""One table of the runs in some checkpoint folders, as their evaluations found them.

    python -m lib.tools.results checkpoint/action/sample_mbert checkpoint/action/sample_vanilla

A folder must hold evaluation.json (a script's --evaluate writes it). Chance is that of guessing among the classes that
occur; clips/s is the median over the epochs of training.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

COLUMNS = ('run', 'model', 'parameters', 'top-1', 'top-5', 'mean class', 'chance', 'clips/s')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.results'
    )
    parser.add_argument('folders', nargs='+', type=Path, metavar='FOLDER')
    print(table([row(folder) for folder in parser.parse_args(arguments).folders]))


def row(folder: Path) -> tuple[str, ...]:
    """The cells of a run's line. Raises FileNotFoundError where it has not been evaluated."""
    try:
        report = json.loads((folder / 'evaluation.json').read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f'{folder} has no evaluation.json: evaluate a checkpoint of it by --evaluate first.'
        ) from None
    shares = [report['top1'], report['top5'], report['mean_class'], 1 / len(report['per_class'])]
    timing = folder / 'timing.jsonl'
    lines = timing.read_text().splitlines() if timing.is_file() else []
    speed = f'{np.median([json.loads(line)["clips_per_second"] for line in lines]):.1f}' if lines else ''
    return (folder.name, report['kind'], f'{report["parameters"]:,}', *(f'{share:.2%}' for share in shares), speed)


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    rule = ['-' * width if i < 2 else '-' * (width - 1) + ':' for i, width in enumerate(widths)]
    return '\n'.join(
        '| ' + ' | '.join(f'{cell:{"<" if i < 2 else ">"}{widths[i]}}' for i, cell in enumerate(line)) + ' |'
        for line in (COLUMNS, rule, *rows)
    )


if __name__ == '__main__':
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
