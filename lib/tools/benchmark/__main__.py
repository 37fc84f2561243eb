"""Measure speed and memory of rendering, loading and training. To check and measure a GPU: `benchmark gpu --help`.

    python -m lib.tools.benchmark render data train --device cuda --batch 32 --config configs/action/MB_train.yaml

render: heatmap volumes, against filling the same memory with a constant.
data: training batches on one core with rotation, noise and shift, against the default crop and flip alone; from a
generated dataset like NTU60.
train: training steps of a config; in PyTorch against a straightforward implementation of the same model.

The two sides alternate. The table shows medians; a time ratio below 1 means faster than the reference.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.cli import add_set
from lib.errors import UserError
from lib.models import load_config
from lib.tools.benchmark import gpu
from lib.tools.benchmark.parts import data, render, train
from lib.tools.benchmark.steps import in_new_process
from lib.tools.running import log, make_parser, progress, run_tool

CONFIG = Path(__file__).parents[3] / 'configs' / 'action' / 'vanilla.yaml'
PARTS = ('render', 'data', 'train')


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['gpu']:
        return gpu.main(argv[1:])
    parser = make_parser(__doc__, 'benchmark')
    parser.add_argument('parts', nargs='+', choices=PARTS, metavar='PART', help=f'any of {", ".join(PARTS)}')
    parser.add_argument('--config', nargs='+', type=Path, default=[CONFIG], help='for train (default: vanilla.yaml)')
    add_set(parser)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='device (default: %(default)s)')
    parser.add_argument('--batch', type=int, metavar='CLIPS', help='default: 16 for render, 32 for data, 4 for train')
    parser.add_argument('--rounds', type=int, default=7, help='timed runs of each side (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return run_tool(benchmark, parser, argv)


def benchmark(args: argparse.Namespace) -> int:
    """Runs each measurement in a separate process, so that one failure does not affect the others. Returns 1 if any."""
    if args.rounds < 1 or (args.batch is not None and args.batch < 1):
        raise UserError('--batch and --rounds must be at least 1.')
    tasks: dict[str, partial] = {}
    if 'render' in args.parts:
        batch = args.batch or 16
        for kind in ('joint', 'limb'):
            name = f'render {kind}, {batch} clips of 2 persons'
            tasks[name] = partial(in_new_process, render, kind, batch, args.device, args.rounds)
    if 'data' in args.parts:
        tasks[f'data, {args.batch or 32} clips'] = partial(in_new_process, data, args.batch or 32, args.rounds)
    for path in args.config if 'train' in args.parts else ():
        config = load_config(path, [f'data.batch_size={args.batch or 4}', *args.set])
        tasks[f'train {path.stem}, {config.data.batch_size} clips'] = partial(train, config, args.device, args.rounds)
    rows = {}
    for name, task in progress(tasks.items(), total=len(tasks), unit='part'):
        try:
            rows[name] = task()
        except (UserError, ChildProcessError) as error:
            rows[name] = {'error': str(error)}
    log.info('%s', json.dumps({'device': args.device, 'rows': rows}, indent=2) if args.json else as_table(rows))
    return int(any('error' in row for row in rows.values()))


def as_table(rows: dict[str, dict[str, Any]]) -> str:
    """Formats rows as a table."""
    width = max(map(len, rows))
    lines = [f'{"":<{width}}   clips/s  reference  time ratio  peak memory: ours, reference']
    for name, row in rows.items():
        cells = [f'{name:<{width}}']
        if 'error' in row:
            cells.append(f'failed: {row["error"]}')
        else:
            cells += [f'{row["clips/s"]:>8,.1f}']
            cells += [f'{row.get("reference clips/s", np.nan):>9,.1f}', f'{row.get("ratio", np.nan):>10.2f}']
            cells += [f'{size / 1e9:>7.2f} GB' for size in row.get('peak memory', ())]
        lines.append('  '.join(cells))
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
