"""Check and measure all models on a GPU, and write the results into a folder as they arrive.

    python -m lib.tools.benchmark gpu --out out/gpu

correctness: heatmaps, logits and gradients against the CPU's; a resumed run against an uninterrupted one.
speed: rendering, training steps in every precision, a run of MotionBERT with loading, saving and validation.
FOLDER then has correctness.jsonl and speed.jsonl, a table results.md, and profile.txt.
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence

from lib.files import make_folder, write_text
from lib.tools.benchmark import correctness, speed
from lib.tools.benchmark.rows import Setup, as_table, is_wrong, read
from lib.tools.benchmark.steps import in_new_process, make_world
from lib.tools.running import add_out, check_new, log, make_parser, run_tool

PARTS = {'correctness': correctness.check_all, 'speed': speed.measure_all}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'benchmark gpu')
    add_out(parser, 'FOLDER', text='folder for the results', required=True)
    parser.add_argument('--part', choices=PARTS, help='default: both')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='device (default: %(default)s)')
    parser.add_argument('--quick', action='store_true', help='small models and few clips, to try out this tool')
    return run_tool(benchmark, parser, argv)


def benchmark(args: argparse.Namespace) -> int:
    """Runs the parts. Returns 1 if a measurement failed or a result is wrong."""
    parts = [args.part] if args.part else [*PARTS]
    check_new(args.out, *(f'{part}.jsonl' for part in parts))
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # only errors
    multiprocessing.set_forkserver_preload(['lib.pytorch.training'])  # its import takes seconds
    facts = in_new_process(describe, args.device)
    make_folder(args.out)
    try:
        for part in parts:
            setup = Setup(args.device, args.quick, args.out / f'{part}.jsonl')
            setup.add(**facts)
            PARTS[part](setup)
    finally:
        for part in parts:
            (args.out / f'{part}.lock').unlink(missing_ok=True)
        rows = {part: read(args.out / f'{part}.jsonl') for part in PARTS if (args.out / f'{part}.jsonl').exists()}
        table = '\n'.join(as_table(part, *found) for part, found in rows.items())
        write_text(args.out / 'results.md', table)
        log.info('%s', table.rstrip())
    return int(any('failed' in row or is_wrong(row) for found in rows.values() for row in found))


def describe(device: str) -> dict[str, str]:
    """The first row of a file: device and version of a framework. Raises UserError if it sees no such device."""
    try:
        import torch
    except ImportError:
        import tensorflow as tf

        make_world('vivit', device)
        gpus = tf.config.list_physical_devices('GPU')
        name = tf.config.experimental.get_device_details(gpus[0])['device_name'] if device == 'cuda' else 'CPU'
        return {'name': name, 'tensorflow': tf.__version__}
    make_world('vanilla', device)
    return {'name': torch.cuda.get_device_name() if device == 'cuda' else 'CPU', 'torch': torch.__version__}
