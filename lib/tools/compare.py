"""Compare runs: their metrics as a Markdown table, and the settings in which they differ.

    python -m lib.tools.compare checkpoint/action/sample_mbert checkpoint/action/sample_vanilla

Accuracies are those of the evaluation (python -m lib.tools.evaluate RUN), or else of the best epoch so far. `last` is
the top-1 accuracy after the last epoch (in pretraining the motion explained), clips/s the median training speed.
Curves and confusion matrices: tensorboard --logdir checkpoint/action
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lib.config import differences, flat, read_config
from lib.errors import UserError, shown
from lib.models import MODELS
from lib.tools.running import log, make_parser, run_tool

COLUMNS = ('run', 'model', 'parameters', 'result of', 'top-1', 'top-5', 'mean class', 'epochs', 'last', 'clips/s')


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'compare')
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folder of a run')
    return run_tool(compare, parser, argv)


def compare(args: argparse.Namespace) -> None:
    names, configs = run_names(args.runs), [read_config(run / 'config.yaml') for run in args.runs]
    rows = [row(*run) for run in zip(names, args.runs, configs, strict=True)]
    log.info(table(COLUMNS, rows))
    if differing := sorted({key for config in configs for key in differences(configs[0], config)} - {'script'}):
        flat_configs = [flat(config) for config in configs]
        values = [(key, *(cell(config.get(key, '')) for config in flat_configs)) for key in differing]
        log.info('\n' + table(('setting', *names), values))


def row(name: str, run: Path, config: dict[str, dict]) -> tuple[str, ...]:
    """The cells of a run; unknown values are empty."""
    history, timing = read_lines(run / 'metrics.jsonl'), read_lines(run / 'timing.jsonl')
    metric = MODELS[config['script']].metric
    evaluation = json.loads((run / 'evaluation.json').read_text()) if (run / 'evaluation.json').is_file() else None
    if evaluation:
        result, source = evaluation, f'epoch {evaluation["epoch"]}, {evaluation["split"]}'
        source += f', {evaluation["views"]} views' if evaluation['views'] > 1 else ''
    elif history:
        best = max(history, key=lambda epoch: epoch['val'][metric])
        result, source = best['val'], f'epoch {best["epoch"]}, validation'
    else:
        result, source = {}, ''
    return (
        name,
        config['script'],
        f'{evaluation["parameters"]:,}' if evaluation else '',
        source,
        *(f'{result[key]:.2%}' if key in result else '' for key in ('top1', 'top5', 'mean_class')),
        f'{history[-1]["epoch"]}/{config["train"]["epochs"]}' if history else '',
        f'{history[-1]["val"][metric]:.2%}' if history else '',
        f'{median(epoch["clips_per_second"] for epoch in timing):.1f}' if timing else '',
    )


def run_names(runs: Sequence[Path]) -> list[str]:
    """The shortest unambiguous ends of the paths. Raises UserError if one is not a run or occurs twice."""
    parts = [run.resolve().parts for run in runs]
    for run, own in zip(runs, parts, strict=True):
        if not (run / 'config.yaml').is_file():
            raise UserError(f'{run} is not the folder of a run: it has no config.yaml.')
        if parts.count(own) > 1:
            raise UserError(f'{run} is given twice.')
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({own[-n:] for own in parts}) == len(parts))
    return ['/'.join(own[-length:]) for own in parts]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a .jsonl file, if it exists. A power cut may leave an incomplete last line."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')]


def cell(value: Any) -> str:
    """The value of a setting as a cell."""
    return value if isinstance(value, str) else shown(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded cells; columns of numbers are right-aligned."""
    by_column = list(zip(columns, *rows, strict=True))
    widths = [max(map(len, cells)) for cells in by_column]
    aligns = ['>' if all(cell[:1] in '0123456789' for cell in cells) else '<' for _, *cells in by_column]
    rule = ['-' * (w - 1) + (':' if a == '>' else '-') for w, a in zip(widths, aligns, strict=True)]
    return '\n'.join(
        '| ' + ' | '.join(f'{cell:{a}{w}}' for cell, a, w in zip(line, aligns, widths, strict=True)) + ' |'
        for line in (columns, rule, *rows)
    )


if __name__ == '__main__':
    sys.exit(main())
