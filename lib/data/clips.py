"""Batches of clips: from the packed pickle to keypoints in heatmap pixels, ready to be drawn.

N clips of a batch, M persons, P person rows (the persons of all clips, ragged), T = clip_len frames, V joints.
"""

import numpy as np

from lib.data.geometry import AffineMap, compact_box, extent, random_crop_box, short_edge_shape
from lib.data.sampling import ClipRandom, epoch_order, evaluation_frames, train_frames
from lib.data.skeletons import skeleton_of
from lib.data.store import open_store


class Clips:
    """The batches of one split: `clips[epoch, b]` for b in range(len(clips)).

    A batch is {'keypoint': (N, M, T, V, 2) float32 in heatmap pixels, 'score': (N, M, T, V) float32,
    'label': (N,) int64}; absent persons are zeros with score 0. It is a pure function of (seed, epoch, b): training
    clips come in another order each epoch, validation clips always in the order of the file, and no number drawn
    depends on other clips. A last short batch is kept, but for a training batch of one clip (batch norm).

    split: 'train' or 'val'.                         size: edge of the heatmap in pixels.
    ann_file: PYSKL pickle with 2D keypoints.        benchmark: 'xsub' for the lists xsub_train and xsub_val, 'xview'
    clip_len: frames of a clip, T.                       likewise, or the names of the two lists [train, val].
    batch_size: clips of a batch.                    max_persons: M; further persons of a clip are left out.
    crop_area, crop_ratio: ranges of area and aspect ratio of the random resized crop in training.
    flip_ratio: share of training clips that are mirrored.
    store_dir: folder for the packed form of the pickle, by default the pickle's own.

    Raises FileNotFoundError, OSError or ValueError for files, lists and values that cannot be used.
    """

    def __init__(
        self,
        split: str,
        size: int = 56,
        *,
        ann_file: str,
        benchmark: str | list[str],
        clip_len: int,
        batch_size: int,
        seed: int,
        max_persons: int = 2,
        crop_area: tuple[float, float] = (0.56, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_ratio: float = 0.5,
        store_dir: str | None = None,
    ) -> None:
        if split not in ('train', 'val'):
            raise ValueError(f"split is {split!r}; it must be 'train' or 'val'.")
        for key, value in {'clip_len': clip_len, 'batch_size': batch_size, 'max_persons': max_persons}.items():
            if value < 1:
                raise ValueError(f'data.{key} is {value}; it must be at least 1.')
        if not 0 <= flip_ratio <= 1:
            raise ValueError(f'data.flip_ratio is {flip_ratio}; it must lie between 0 and 1.')
        if not 0 < crop_area[0] <= crop_area[1] <= 1:
            raise ValueError(
                f'data.crop_area is {list(crop_area)}; it must be two rising shares of the area, at most 1.'
            )
        if not 0 < crop_ratio[0] <= crop_ratio[1]:
            raise ValueError(f'data.crop_ratio is {list(crop_ratio)}; it must be two rising positive ratios.')
        self.training = split == 'train'
        self.size, self.clip_len, self.batch_size, self.seed = size, clip_len, batch_size, seed
        self.max_persons, self.flip_ratio = max_persons, flip_ratio
        self.crop_area, self.crop_ratio = tuple(crop_area), tuple(crop_ratio)

        self.store = open_store(ann_file, store_dir)
        self.list_name = _list_name(benchmark, split)
        if self.list_name not in self.store.splits:
            raise ValueError(
                f'{ann_file} has no list {self.list_name!r} (data.benchmark is {benchmark!r}). Its lists are '
                f'{", ".join(self.store.splits)}; give a benchmark as xsub, or two names as [train1, test1].'
            )
        self.clips = self.store.splits[self.list_name]
        if len(self.clips) <= self.training:
            raise ValueError(f'{ann_file}: the list {self.list_name} has {len(self.clips)} clips; that is too few.')
        _, self.num_joints, coordinates = self.store.keypoint.shape
        if coordinates != 2:
            raise ValueError(
                f'{ann_file} holds 3D keypoints, and heatmaps are drawn from 2D ones: name the 2D pickle (_hrnet.pkl).'
            )
        self.flip_order = skeleton_of(self.num_joints).flip_order
        # One gather per frame is one contiguous copy.
        self._keypoint_rows = self.store.keypoint.reshape(len(self.store.keypoint), -1)
        self._order = (-1, self.clips)

    @property
    def num_clips(self) -> int:
        """Clips of the split."""
        return len(self.clips)

    @property
    def clips_per_epoch(self) -> int:
        """Clips that an epoch visits: all of the split, or one less (see __len__)."""
        return min(self.num_clips, len(self) * self.batch_size)

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur in the split, rising."""
        return np.unique(self.store.label[self.clips])

    @property
    def description(self) -> str:
        """Which set this is and what is made of it, for the log."""
        joints = skeleton_of(self.num_joints).name
        return f'{self.store.ann_file}, {joints}, {self.clip_len} frames of {self.size}x{self.size} px'

    @property
    def split_description(self) -> str:
        """Which list of the set this is, for the log."""
        count = len(self.classes)
        crowded = int((self.store.num_persons[self.clips] > self.max_persons).sum())
        left_out = f'; {crowded:,} have over {self.max_persons} persons, of whom the first are taken' if crowded else ''
        return f'{self.list_name}, {self.num_clips:,} clips of {count} classes (chance {1 / count:.2%}){left_out}'

    def check_labels(self, num_classes: int) -> None:
        """Raises ValueError, naming the clip, for a label that a model of `num_classes` cannot learn."""
        label = self.store.label[self.clips]
        if (label >= num_classes).any():
            worst = label.argmax()
            raise ValueError(
                f'{self.store.ann_file}: clip {self.store.name(self.clips[worst])} has label {label[worst]}, but '
                f'model.num_classes is {num_classes}; it must be {label[worst] + 1} or more.'
            )

    def __len__(self) -> int:
        whole, rest = divmod(self.num_clips, self.batch_size)
        return whole + (rest > self.training)

    def batch_clips(self, epoch: int, b: int) -> np.ndarray:
        """Which clips of the store make up batch b of an epoch, (N,) int."""
        if not 0 <= b < len(self):
            raise IndexError(b)
        if self.training and self._order[0] != epoch:
            self._order = (epoch, self.clips[epoch_order(self.seed, epoch, self.num_clips)])
        return self._order[1][b * self.batch_size : (b + 1) * self.batch_size]

    def names(self, epoch: int, b: int) -> list[str]:
        """frame_dir of each clip of a batch."""
        return [self.store.name(clip) for clip in self.batch_clips(epoch, b)]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        clip = self.batch_clips(*key)
        random = ClipRandom(self.seed, key[0], clip) if self.training else None
        frames = self._sample(clip, random)
        num_persons = np.minimum(self.store.num_persons[clip], self.max_persons)
        clip_of = np.repeat(np.arange(len(clip)), num_persons)  # (P,)
        person_of = np.arange(len(clip_of)) - np.repeat(np.cumsum(num_persons) - num_persons, num_persons)

        first_row = self.store.first_row[clip][clip_of] + person_of * self.store.total_frames[clip][clip_of]
        rows = first_row[:, None] + frames[clip_of]  # (P, T)
        keypoint = self._keypoint_rows[rows].astype(np.float32).reshape(*rows.shape, self.num_joints, 2)
        score = self.store.score[rows].astype(np.float32)

        lowest, highest = extent(keypoint, num_persons)
        img_shape = self.store.img_shape[clip].astype(np.int64)
        affine = AffineMap.identity(img_shape).compact(compact_box(lowest, highest, img_shape))
        if random is None:
            affine = affine.resize((self.size, self.size))
        else:
            affine = affine.resize(short_edge_shape(affine.shape))
            affine = affine.crop(random_crop_box(affine.shape, random, self.crop_area, self.crop_ratio))
            flipped = random.uniform(1)[:, 0] < self.flip_ratio
            affine = affine.resize((self.size, self.size)).flip(flipped)
        keypoint = affine.apply(keypoint, clip_of)
        if random is not None:
            mirrored = flipped[clip_of]
            keypoint[mirrored] = keypoint[mirrored][:, :, self.flip_order]
            score[mirrored] = score[mirrored][:, :, self.flip_order]

        batch = {
            'keypoint': np.zeros((len(clip), self.max_persons, *keypoint.shape[1:]), np.float32),
            'score': np.zeros((len(clip), self.max_persons, *score.shape[1:]), np.float32),
            'label': self.store.label[clip],
        }
        batch['keypoint'][clip_of, person_of] = keypoint
        batch['score'][clip_of, person_of] = score
        return batch

    def _sample(self, clip: np.ndarray, random: ClipRandom | None) -> np.ndarray:
        """Frame numbers (N, T)."""
        total_frames = self.store.total_frames[clip]
        if random is None:
            return np.stack([evaluation_frames(int(T), self.clip_len) for T in total_frames])
        return train_frames(total_frames, self.clip_len, random.uniform(self.clip_len + 1))


def _list_name(benchmark: str | list[str], split: str) -> str:
    if isinstance(benchmark, str):
        return f'{benchmark}_{split}'
    if len(benchmark) != 2:
        raise ValueError(f'data.benchmark is {benchmark}; two list names are needed: [train, val].')
    return benchmark[split == 'val']
