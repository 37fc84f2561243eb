"""Batches of training clips, without a model; what opening their store costs."""

import argparse
import contextlib
import multiprocessing
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np

from lib.tools.benchmark.common import FRAMES, JOINTS, positive, summary, time_in_turn

AUGMENTATION = {'rotation': 0.3, 'joint_noise': 0.01, 'temporal_shift': 5}  # of the rows with Aug
PROCESSES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--clips', type=positive, default=60_000, help='clips in the store (default: %(default)s)')
    parser.add_argument('--sparse', action='store_true', help='sparse files of zeros: a store of any size, at once')
    parser.add_argument('--batch', type=positive, default=32, help='clips per batch (default: %(default)s)')
    parser.add_argument('--rounds', type=positive, default=15, help='timed runs (default: %(default)s)')
    parser.add_argument('--folder', help='where 20 kB per clip are written meanwhile (default: a temporary folder)')


def run(args: argparse.Namespace) -> dict:
    """Clips/s of Clips alone, and what opening its store costs in seconds and private memory.

    Splits are timed on one core, loader threads on all. private: what opening and one epoch's shuffle leave.
    8 processes: the private memory of each of them while all have the store open and have read batches.
    """
    from lib.data.batches import prefetch
    from lib.data.clips import Clips
    from lib.data.store import open_store

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        ann_file = os.path.join(folder, 'benchmark.pkl')
        # In a process of its own, so that neither its memory nor its warm arrays count here.
        pack = write_sparse_store if args.sparse else pack_made_up_clips
        packing = multiprocessing.get_context('spawn').Process(target=pack, args=(ann_file, args.clips))
        packing.start()
        packing.join()
        assert packing.exitcode == 0, 'packing failed, see above'
        opening = []
        before = private_bytes()
        for _ in range(args.rounds):
            start = time.perf_counter()
            store = open_store(ann_file)
            opening.append(time.perf_counter() - start)
        options = {'ann_file': ann_file, 'benchmark': 'xsub', 'clip_len': FRAMES, 'batch_size': args.batch, 'seed': 0}
        clips = {split: Clips(split, **options) for split in ('train', 'val')}
        clips['train'].batch_indices(0, 0)
        private = private_bytes() - before
        clips['train with Aug'] = Clips('train', **options, **AUGMENTATION)
        batches = min(64, *(part.num_clips // args.batch for part in clips.values()))

        def load(name: str) -> None:
            for b in range(batches):
                clips[name][0, b]

        def load_ahead(num_workers: int) -> None:
            for _ in prefetch(lambda b: clips['train'][0, b], range(batches), num_workers):
                pass

        with _one_core():
            start = time.perf_counter()
            load('train')
            first_visit = [time.perf_counter() - start]
            seconds = time_in_turn({name: lambda name=name: load(name) for name in clips}, args.rounds, lambda: None)
        seconds['train, first visit'] = first_visit
        threads = {f'train, {n} loader thread{"s" * (n > 1)}': lambda n=n: load_ahead(n) for n in (1, 2)}
        seconds |= time_in_turn(threads, args.rounds, lambda: None)
        shared = _private_bytes_of_processes(options)
        setting = {
            'clips': args.clips,
            'two persons': f'{(store.num_persons == 2).mean():.0%}',
            'batch': args.batch,
            'rounds': args.rounds,
        }
        size = store.keypoint.nbytes + store.score.nbytes
    return {
        'title': f'data: batches of {FRAMES} frames from a store of {size / 1e6:,.0f} MB',
        'unit': 'clips/s',
        'setting': setting,
        'rates': {name: summary(batches * args.batch / np.array(times)) for name, times in seconds.items()},
        'opening': {
            'milliseconds': summary(1e3 * np.array(opening)),
            'private MB': summary(np.array([private / 1e6])),
            f'private MB of {PROCESSES} processes': summary(np.array(shared) / 1e6),
        },
    }


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Holds this process on one core, where the system can."""
    if not hasattr(os, 'sched_setaffinity'):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _private_bytes_of_processes(options: dict) -> list[int]:
    """Private memory of each of several processes that read the same store at the same time."""
    context = multiprocessing.get_context('spawn')
    barrier, queue = context.Barrier(PROCESSES), context.SimpleQueue()
    readers = [context.Process(target=_read_batches, args=(options, barrier, queue)) for _ in range(PROCESSES)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not any(reader.exitcode for reader in readers), 'a reader failed, see above'
    return [queue.get() for _ in readers]


def _read_batches(options: dict, barrier: threading.Barrier, queue: SimpleQueue) -> None:
    from lib.data.clips import Clips

    before = private_bytes()
    clips = Clips('train', **options)
    for b in range(20):
        clips[0, b % len(clips)]
    barrier.wait(timeout=300)
    queue.put(private_bytes() - before)
    barrier.wait(timeout=300)  # none leaves before all have measured


def pack_made_up_clips(ann_file: str, num_clips: int) -> None:
    """Writes a pickle of NTU60's proportions (20 to 300 frames, a fifth with two persons) and packs it."""
    from lib.data.store import open_store

    rng = np.random.default_rng(0)
    pool = rng.uniform(300, 1500, (600, JOINTS, 2)).astype(np.float16)
    scores = rng.uniform(0.3, 1, (600, JOINTS)).astype(np.float16)
    annotations = []
    for i, (total, persons) in enumerate(
        zip(rng.integers(20, 301, num_clips), rng.random(num_clips) < 0.2, strict=True)
    ):
        rows, shape = slice(0, (persons + 1) * total), (persons + 1, total, JOINTS)
        annotations.append(
            {
                'frame_dir': f'clip{i:06d}',
                'label': i % 60,
                'total_frames': int(total),
                'img_shape': (1080, 1920),
                'keypoint': pool[rows].reshape(*shape, 2),
                'keypoint_score': scores[rows].reshape(shape),
            }
        )
    names = [annotation['frame_dir'] for annotation in annotations]
    split = {'xsub_train': names[: num_clips * 7 // 10], 'xsub_val': names[num_clips * 7 // 10 :]}
    with open(ann_file, 'wb') as file:
        pickle.dump({'split': split, 'annotations': annotations}, file)
    open_store(ann_file)


def write_sparse_store(ann_file: str, num_clips: int) -> None:
    """Makes a store of the same proportions whose keypoints and scores are holes in their files: zeros on no disk.

    Both splits hold all clips. The store is that of a small pickle, its arrays replaced.
    """
    from lib.data.store import CLIP, store_folder

    pack_made_up_clips(ann_file, 10)
    folder, rng = store_folder(Path(ann_file)), np.random.default_rng(0)

    def create(name: str, dtype: np.typing.DTypeLike, *shape: int) -> np.memmap:
        return np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', dtype, shape)

    clips = create('clips', CLIP, num_clips)
    clips['total_frames'], clips['num_persons'] = rng.integers(20, 301, num_clips), 1 + (rng.random(num_clips) < 0.2)
    clips['label'], clips['img_shape'] = np.arange(num_clips) % 60, (1080, 1920)
    ends = np.cumsum(clips['total_frames'].astype(np.int64) * clips['num_persons'])
    clips['first_row'][1:] = ends[:-1]
    for name in ('split_0', 'split_1'):
        create(name, np.int32, num_clips)[:] = np.arange(num_clips)
    create('frame_dir', 'S10', num_clips)
    create('keypoint', np.float16, int(ends[-1]), JOINTS, 2)
    create('score', np.float16, int(ends[-1]), JOINTS)
    for path in folder.iterdir():  # what is not on the disk yet counts as private memory of who maps it
        with path.open('rb') as file:
            os.fsync(file.fileno())


def private_bytes() -> int:
    """Memory that this process alone has written: Private_Dirty and swap. 0 where the system does not tell."""
    try:
        with open('/proc/self/smaps_rollup') as file:
            return 1024 * sum(int(line.split()[1]) for line in file if line.startswith(('Private_Dirty', 'Swap:')))
    except FileNotFoundError:
        return 0
