"""Train published rows, at a width for a few CPU cores, on a small set in PYSKL's form, and print one table.

    python -m lib.tools.compare --ann_2d sbu_hrnet.pkl --ann_3d sbu_3danno.pkl --num_classes 8 --out checkpoint/compare

The configs are those of configs/action, their inputs and augmentations included. Clips, maps, widths and depths are
made smaller, and a cosine over the given epochs takes the place of 300 epochs, the same for all. No result says how the
full rows compare on NTU60. Given again, the command goes on where it stopped.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
ROWS = ('vanilla', 'vanilla_2d', 'vanilla_3d', 'MB_train', 'vanilla_big_aug', 'MB_train_aug')
CLIP_LEN, SIZE = 16, 32  # of 48 frames and 56 px
RECIPE = {
    'optimizer.lr_backbone': 5.0e-4,
    'optimizer.lr_head': 5.0e-4,
    'train.lr_schedule': 'cosine',
    'train.lr_decay': None,
    'train.warmup_epochs': 2,
    'data.batch_size': 16,
}
SMALL = {
    'mbert': {'maxlen': CLIP_LEN, 'dim_feat': 64, 'dim_rep': 64, 'depth': 2, 'num_heads': 4},
    'vanilla': {'num_frames': CLIP_LEN, 'dim_feat': 128, 'depth': 4, 'num_heads': 4, 'mlp_ratio': 2},
}


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    runs = {(row, seed): args.out / f'{row}_{seed}' for row in args.rows for seed in args.seeds}
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = [name for name in pool.map(lambda run: train(*run, args), runs.items()) if name]
    if failed:
        print(f'failed: {", ".join(failed)}; see the log.txt there', file=sys.stderr)
        return 1
    print(table(runs, args))
    return 0


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.compare'
    )
    parser.add_argument('--ann_2d', type=Path, required=True, metavar='FILE', help='PYSKL pickle with 2D keypoints')
    parser.add_argument('--ann_3d', type=Path, metavar='FILE', help='with 3D keypoints, for the rows that take them')
    parser.add_argument('--num_classes', type=int, required=True)
    parser.add_argument('--benchmark', default='xsub', help='(default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=30, help='(default: %(default)s)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='(default: 0)')
    parser.add_argument('--rows', nargs='+', default=ROWS, metavar='ROW', help=f'(default: {" ".join(ROWS)})')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='a run each in FOLDER/ROW_SEED')
    parser.add_argument('--jobs', type=int, default=1, help='runs at once, on one CPU thread each if more than one')
    args = parser.parse_args(arguments)
    for row in args.rows:
        if not config_of(row).is_file():
            parser.error(f'there is no {config_of(row)}')
        if is_3d(row) and not args.ann_3d:
            parser.error(f'{row} takes 3D keypoints: name the pickle by --ann_3d')
    return args


def config_of(row: str) -> Path:
    return ROOT / 'configs' / 'action' / f'{row}.yaml'


def kind_of(row: str) -> str:
    return 'mbert' if row.startswith('MB') else 'vanilla'


def is_3d(row: str) -> bool:
    return yaml.safe_load(config_of(row).read_text())['data']['input'] == 'keypoint_3d'


def overrides(row: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """What is changed of a published config: {'section.key': value}."""
    published = yaml.safe_load(config_of(row).read_text())
    changes = {
        'data.ann_file': str((args.ann_3d if is_3d(row) else args.ann_2d).resolve()),
        'data.store_dir': str(args.out.resolve()),
        'data.benchmark': args.benchmark,
        'data.clip_len': CLIP_LEN,
        'data.seed': seed,
        'train.seed': seed,
        'train.epochs': args.epochs,
        'model.num_classes': args.num_classes,
        **RECIPE,
        **{f'model.{key}': value for key, value in SMALL[kind_of(row)].items()},
    }
    if 'heatmap' in published:
        shift = published['data']['temporal_shift'] * CLIP_LEN // published['data']['clip_len']
        changes |= {'heatmap.size': SIZE, 'model.dim_in': SIZE**2, 'data.temporal_shift': shift}
    return changes


def train(run: tuple[str, int], folder: Path, args: argparse.Namespace) -> str | None:
    """Trains one row with one seed, or goes on with it. Returns the folder if that failed."""
    row, seed = run
    command = [sys.executable, f'train_action_{kind_of(row)}.py', '--config', config_of(row), '-c', folder.resolve()]
    for key, value in overrides(row, seed, args).items():
        command += ['--set', f'{key}={"null" if value is None else value}']
    folder.mkdir(parents=True, exist_ok=True)
    threads = {'OMP_NUM_THREADS': '1'} if args.jobs > 1 else {}
    with (folder / 'log.txt').open('a') as log:
        code = subprocess.run(command, cwd=ROOT, env=os.environ | threads, stdout=log, stderr=log).returncode
    print(f'{row}, seed {seed}: ' + (f'failed ({code})' if code else f'done, {seconds(folder):.0f} s'), flush=True)
    return str(folder) if code else None


def seconds(folder: Path) -> float:
    """Training time of a run, without validation."""
    return sum(json.loads(line)['train_seconds'] for line in (folder / 'timing.jsonl').read_text().splitlines())


def table(runs: dict[tuple[str, int], Path], args: argparse.Namespace) -> str:
    """Markdown: top-1 and mean class accuracy of the last epoch, a column for each seed."""
    columns = [f'{name}, seed {seed}' for seed in args.seeds for name in ('top-1', 'mean class')]
    lines = [
        f'{args.ann_2d.stem.removesuffix("_hrnet")} {args.benchmark}, last of {args.epochs} epochs, %',
        '',
        f'| row | {" | ".join(columns)} |',
        '|---|' + '---:|' * len(columns),
    ]
    for row in args.rows:
        cells = []
        for seed in args.seeds:
            last = json.loads((runs[row, seed] / 'metrics.jsonl').read_text().splitlines()[-1])
            cells += [f'{100 * last["val"][name]:.1f}' for name in ('top1', 'mean_class')]
        lines.append(f'| {row} | {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
