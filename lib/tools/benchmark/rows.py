"""Training of whole rows by their scripts, from the packed pickle to the optimizer: clips/s, and the wait for data."""

import argparse
import json
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lib.tools.benchmark.common import positive, summary
from lib.tools.benchmark.data import pack_made_up_clips

ROOT = Path(__file__).parents[3]
ROWS = sorted(path.stem for path in (ROOT / 'configs' / 'action').glob('*.yaml'))
VALIDATED = 2  # clips; they are not timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=ROWS, metavar='ROW', help='(default: all)')
    parser.add_argument('--batch', type=positive, default=32, help='clips per batch (default: %(default)s)')
    parser.add_argument(
        '--steps', type=positive, default=20, help='of the epochs that are timed (default: %(default)s)'
    )
    parser.add_argument('--epochs', type=positive, default=3, help='timed, after one to warm up (default: %(default)s)')
    parser.add_argument(
        '--set', action='append', default=[], metavar='SECTION.KEY=VALUE', help='as the scripts take it'
    )


def run(args: argparse.Namespace) -> dict:
    """Clips/s of each row's training epochs on made-up clips of NTU60's proportions, as timing.jsonl has them.

    wait for data: share of an epoch in which the next batch was not there yet.
    """
    rates, waits = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        write_pickles(Path(folder), args.batch * args.steps)
        for row in args.rows:
            lines = train(row, Path(folder), args)
            rates[row] = summary(np.array([line['clips_per_second'] for line in lines]))
            waits[row] = summary(np.array([line['waited_for_data'] for line in lines]))
    setting = {'batch': args.batch, 'steps': args.steps, 'epochs': args.epochs, 'set': ' '.join(args.set) or 'nothing'}
    return {
        'title': 'rows: training by the scripts, from the packed pickle to the optimizer',
        'unit': 'clips/s',
        'setting': setting,
        'rates': rates,
        'ratios': {f'{row}: wait for data': wait for row, wait in waits.items()},
    }


def train(row: str, folder: Path, args: argparse.Namespace) -> list[dict]:
    """The lines of timing.jsonl after the first."""
    config = ROOT / 'configs' / 'action' / f'{row}.yaml'
    script = re.search(r'train_action_\w+\.py', config.read_text())[0]
    ann_file = folder / ('made_up_3d.pkl' if '3danno' in config.read_text() else 'made_up_2d.pkl')
    changes = [
        f'data.ann_file={ann_file}',
        f'data.batch_size={args.batch}',
        f'train.epochs={1 + args.epochs}',
        *args.set,
    ]
    command = [sys.executable, ROOT / script, '--config', config, '--checkpoint', folder / row, '-freq', '1000000']
    command += [part for change in changes for part in ('--set', change)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{row} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')
    lines = [json.loads(line) for line in (folder / row / 'timing.jsonl').read_text().splitlines()]
    for file in (folder / row).glob('*_epoch.*'):
        file.unlink()  # up to a GB
    return lines[1:]


def write_pickles(folder: Path, num_clips: int) -> None:
    """made_up_2d.pkl and made_up_3d.pkl, whose xsub_train has num_clips clips."""
    whole = folder / 'whole.pkl'
    pack_made_up_clips(str(whole), num_clips + VALIDATED)
    data = pickle.loads(whole.read_bytes())
    names = [annotation['frame_dir'] for annotation in data['annotations']]
    data['split'] = {'xsub_train': names[:num_clips], 'xsub_val': names[num_clips:]}
    (folder / 'made_up_2d.pkl').write_bytes(pickle.dumps(data))
    for annotation in data['annotations']:
        shape = annotation['keypoint'].shape
        annotation['keypoint'] = np.resize(annotation['keypoint'] / 1000, (*shape[:2], 25, 3)).astype(np.float16)
        del annotation['keypoint_score'], annotation['img_shape']
    (folder / 'made_up_3d.pkl').write_bytes(pickle.dumps(data))
