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
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.cli import add_set
from lib.data.augmentation import Augmentation
from lib.data.clips import Clips
from lib.errors import UserError
from lib.models import MODELS, load_config
from lib.tools.benchmark import gpu, steps
from lib.tools.benchmark.steps import Step, compare, in_new_process, make_step, make_world
from lib.tools.running import log, make_parser, progress, run_tool

CONFIG = Path(__file__).parents[3] / 'configs' / 'action' / 'vanilla.yaml'
PARTS = ('render', 'data', 'train')
AUGMENTATION = {'rotation': 0.3, 'joint_noise': 0.01, 'temporal_shift': 5}


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


def render(kind: str, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """The compiled renderer against filling a volume, which each call allocates as in a training step."""
    import torch

    renderer, inputs = steps.make_renderer(kind, batch, device)
    shape = (batch, steps.FRAMES, renderer.num_maps(steps.JOINTS), steps.SIZE, steps.SIZE)
    ours = partial(torch.compile(renderer, fullgraph=True), *inputs)
    fill = partial(torch.full, shape, 0.5, device=device)
    with torch.inference_mode():
        return compare(steps.waiting(ours, device), steps.waiting(fill, device), rounds, batch)


def data(batch: int, rounds: int) -> dict[str, Any]:
    """Training batches with more augmentation against the default crop and flip alone, on one core."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        ann_file = Path(folder) / 'generated.pkl'
        steps.write_pickle(ann_file, max(4000, 2 * batch))
        options = {
            'ann_file': str(ann_file),
            'benchmark': 'xsub',
            'clip_len': steps.FRAMES,
            'batch_size': batch,
            'seed': 0,
        }
        default, augmented = Clips('train', **options), Clips('train', Augmentation(**AUGMENTATION), **options)
        count = min(64, len(default))

        def load(clips: Clips) -> Step:
            return lambda: [clips[0, b] for b in range(count)]

        return compare(load(augmented), load(default), rounds, sum(default.batch_sizes[:count]))


def train(config: EasyDict, device: str, rounds: int) -> dict[str, Any]:
    """Training steps from keypoints in memory: rendering, forward, backward, optimizer."""
    kind = config.heatmap.kind if 'heatmap' in config else 'joint'
    has_reference = MODELS[config.script].framework == 'pytorch' and kind == 'joint'
    sides = [False, True] if has_reference else [False]
    row = in_new_process(time_of_steps, has_reference, config, device, rounds)
    return row | {'peak memory': [in_new_process(memory_of_step, side, config, device) for side in sides]}


def time_of_steps(has_reference: bool, config: EasyDict, device: str, rounds: int) -> dict[str, Any]:
    world = make_world(config.script, device)
    ours = make_step(config, world)
    reference = make_step(config, world, is_reference=True) if has_reference else None
    return compare(ours, reference, rounds, config.data.batch_size)


def memory_of_step(is_reference: bool, config: EasyDict, device: str) -> int:
    """Peak memory of two training steps in bytes: of tensors on a GPU, of this process on a CPU."""
    world = make_world(config.script, device)
    step = make_step(config, world, is_reference)
    step(), step()
    return world.peak_memory()


if __name__ == '__main__':
    sys.exit(main())
