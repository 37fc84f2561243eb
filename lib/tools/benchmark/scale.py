"""Stores of 10^4 to 10^7 clips: time per training batch, private memory, time to open."""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lib.tools.benchmark.common import FRAMES, JOINTS, positive, summary
from lib.tools.benchmark.data import private_bytes

CHUNK = 2**18  # clips whose index is made up at a time
NAME = 8  # digits of a clip's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = [10**4, 10**5, 10**6, 10**7]
    parser.add_argument('--sizes', type=positive, nargs='+', default=sizes, help='clips (default: %(default)s)')
    parser.add_argument('--batch', type=positive, default=32, help='clips per batch (default: %(default)s)')
    parser.add_argument('--batches', type=positive, default=200, help='timed of each (default: %(default)s)')
    parser.add_argument('--folder', help='where 55 bytes per clip are written meanwhile (default: a temporary folder)')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='for scale.json and scale.png')


def run(args: argparse.Namespace) -> dict:
    """Time per training batch, private memory and time to open of stores of many sizes, each in a fresh process.

    Index and shards have their true sizes; the shards are sparse files, all zeros, which take no room. Batches are
    timed when the system reads their pages for the first time and when it has them in memory; what a disk would take
    for the former is left out. private: what opening, checking and one epoch's shuffle leave; peak: the most that NumPy
    and Python hold in them.
    """
    found = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            ann_file = Path(folder) / 'made_up.pkl'
            num_bytes = write_sparse_store(ann_file, size)
            found[size] = {
                'store GB': num_bytes / 1e9,
                **_in_process(time_batches, ann_file, args.batch, args.batches),
                **_in_process(measure_peak, ann_file, args.batch),
            }
    report = {
        'title': f'scale: training batches of {FRAMES} frames from stores of many sizes',
        'unit': 'us per batch',
        'setting': {
            'batch': args.batch,
            'batches': args.batches,
            'largest store': f'{max(f["store GB"] for f in found.values()):,.1f} GB',
        },
        'rates': {
            f'{size:,} clips{which}': numbers[key]
            for which, key in (('', 'warm'), (', first visit', 'cold'), (', shuffle', 'shuffle'))
            for size, numbers in found.items()
        },
        'opening': {
            f'{size:,} clips, {key}': numbers[key]
            for key in ('ms', 'ms to check', 'private MB', 'peak MB', 'bytes a clip')
            for size, numbers in found.items()
        },
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'scale.json').write_text(json.dumps(report | {'sizes': found}, indent=2))
        draw(found, args.out / 'scale.png')
    return report


def write_sparse_store(ann_file: Path, num_clips: int) -> int:
    """A store of NTU60's proportions (20 to 300 frames, a fifth with two persons), all of it xsub_train.

    Returns the bytes of its keypoints and scores, which are holes in their files.
    """
    from lib.data.store import INDEX, SHARD_BYTES, NpyStream, fingerprint, store_folder, write_meta

    ann_file.touch()
    folder = store_folder(ann_file)
    folder.mkdir()
    streams = {name: NpyStream(folder / f'{name}.npy', *kind) for name, kind in INDEX.items()}
    streams['frame_dir'] = NpyStream(folder / 'frame_dir.npy', np.uint8)
    streams['split_0000'] = NpyStream(folder / 'split_0000.npy', np.int32)
    rng = np.random.default_rng(0)
    limit = SHARD_BYTES // (JOINTS * 2 * np.dtype(np.float16).itemsize)
    row, shard_ends = 0, [0]
    for start in range(0, num_clips, CHUNK):
        clips = np.arange(start, min(start + CHUNK, num_clips))
        frames, persons = rng.integers(20, 301, len(clips)), 1 + (rng.random(len(clips)) < 0.2)
        ends = row + np.cumsum(frames * persons)
        while ends[-1] - shard_ends[-1] > limit:
            first = np.searchsorted(ends, shard_ends[-1] + limit, side='right')
            shard_ends.append(int(ends[first - 1]) if first else row)
        values = {
            'first_row': ends - frames * persons,
            'total_frames': frames,
            'num_persons': persons,
            'label': clips % 60,
            'img_shape': np.broadcast_to((1080, 1920), (len(clips), 2)),
            'name_end': NAME * (clips + 1),
            'frame_dir': (clips[:, None] // 10 ** np.arange(NAME - 1, -1, -1) % 10 + ord('0')).ravel(),
            'split_0000': clips,
        }
        for name, array in values.items():
            streams[name].append(array)
        row = int(ends[-1])
    shard_ends.append(row)
    for stream in streams.values():
        stream.close()

    for i, num_rows in enumerate(np.diff(shard_ends).tolist()):
        for name, shape in (('keypoint', (JOINTS, 2)), ('score', (JOINTS,))):
            shard = NpyStream(folder / f'{name}_{i:04d}.npy', np.float16, shape)
            shard.append_zeros(num_rows)
            shard.close()
    write_meta(folder, fingerprint(ann_file), ['xsub_train'], len(shard_ends) - 1, (JOINTS, 2))
    for file in folder.iterdir():  # what is not on the disk yet would count as private memory of who maps it
        with file.open('rb') as written:
            os.fsync(written.fileno())
    return row * JOINTS * 3 * np.dtype(np.float16).itemsize


def time_batches(ann_file: Path, batch: int, batches: int) -> dict:
    """What opening and batches cost in this process."""
    from lib.data.clips import Clips

    before, start = private_bytes(), time.perf_counter()
    clips = Clips('train', ann_file=str(ann_file), benchmark='xsub', clip_len=FRAMES, batch_size=batch, seed=0)
    opening, start = time.perf_counter() - start, time.perf_counter()
    clips.split_description, clips.check_labels(60)  # as every run does
    checking, start = time.perf_counter() - start, time.perf_counter()
    clips.batch_clips(0, 0)
    shuffling = time.perf_counter() - start
    private = private_bytes() - before
    chosen = np.linspace(0, len(clips) - 1, batches).astype(int).tolist()
    visits = []
    for _ in range(2):
        seconds = []
        for b in chosen:
            start = time.perf_counter()
            clips[0, b]
            seconds.append(time.perf_counter() - start)
        visits.append(summary(1e6 * np.array(seconds)))
    return {
        'cold': visits[0],
        'warm': visits[1],
        'shuffle': _one(1e6 * shuffling),
        'ms': _one(1e3 * opening),
        'ms to check': _one(1e3 * checking),
        'private MB': _one(private / 1e6),
        'bytes a clip': _one(private / clips.num_clips),
    }


def measure_peak(ann_file: Path, batch: int) -> dict:
    """The most memory that opening, checking and two epochs' shuffles take, without the batches."""
    from lib.data.clips import Clips

    tracemalloc.start()
    clips = Clips('train', ann_file=str(ann_file), benchmark='xsub', clip_len=FRAMES, batch_size=batch, seed=0)
    clips.split_description, clips.check_labels(60)
    for epoch in (0, 1):
        clips.batch_clips(epoch, 0)
    return {'peak MB': _one(tracemalloc.get_traced_memory()[1] / 1e6)}


def draw(found: dict[int, dict], path: Path) -> None:
    """Time per batch, and memory, over the number of clips."""
    from matplotlib.figure import Figure

    sizes = np.array(list(found))
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    times, memory = figure.subplots(1, 2)
    for key, label, colour, marker in (
        ('warm', 'pages in memory', '#0072b2', 'o'),
        ('cold', 'first visit', '#d55e00', 's'),
    ):
        low, middle, high = (
            np.array([f[key][quantile] for f in found.values()]) / 1e3 for quantile in ('lower', 'median', 'upper')
        )
        times.errorbar(
            sizes, middle, (middle - low, high - middle), color=colour, marker=marker, capsize=3, label=label
        )
    times.set(ylabel='ms per batch (median, quartiles)', xscale='log', xlabel='clips in the store')
    times.set_ylim(bottom=0)
    for key, label, colour, marker in (
        ('private MB', 'private, after opening and shuffle', '#0072b2', 'o'),
        ('peak MB', 'peak meanwhile', '#d55e00', 's'),
    ):
        memory.plot(
            sizes, [max(f[key]['median'], 0.01) for f in found.values()], color=colour, marker=marker, label=label
        )
    memory.plot(sizes, 16 * sizes / 1e6, color='#777777', linestyle='--', label='16 bytes a clip')
    memory.set(ylabel='MB', xscale='log', yscale='log', xlabel='clips in the store')
    for axis in (times, memory):
        axis.legend(frameon=False, fontsize=9)
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='y', color='#dddddd', linewidth=0.6)
    figure.savefig(path, dpi=120)


def _one(value: float) -> dict[str, float]:
    return summary(np.array([value]))


def _in_process(measure: Callable[..., dict], *args: object) -> dict:
    """measure(*args) in a fresh process, whose memory holds nothing else."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(measure, args)
