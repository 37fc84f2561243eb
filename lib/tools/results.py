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
    speeds = (
        [json.loads(line)['clips_per_second'] for line in timing.read_text().splitlines()] if timing.is_file() else []
    )
    speed = f'{np.median(speeds):.1f}' if speeds else ''
    return (folder.name, report['kind'], f'{report["parameters"]:,}', *(f'{share:.2%}' for share in shares), speed)


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown, its columns aligned."""
    widths = [max(len(line[i]) for line in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
    rule = tuple('-' * (width - 1) + (':' if i > 1 else '-') for i, width in enumerate(widths))
    aligned = [[f'{cell:<{w}}' if i < 2 else f'{cell:>{w}}' for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
               for line in (COLUMNS, rule, *rows)]  # fmt: skip
    return '\n'.join(f'| {" | ".join(line)} |' for line in aligned)


if __name__ == '__main__':
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
