"""Sparse stores of any size."""

from pathlib import Path

import numpy as np

from lib.data.store import CLIP, open_store, store_folder
from lib.tools.benchmark.steps import JOINTS, write_pickle


def write_sparse_store(ann_file: Path, num_clips: int) -> None:
    """Writes a store with the proportions of NTU60 and sparse files of zeros for keypoints and scores.

    Both splits contain all clips. It is the store of a small pickle with replaced arrays.
    """
    write_pickle(ann_file, 10)
    open_store(ann_file)
    folder, rng = store_folder(ann_file), np.random.default_rng(0)

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
