"""Batches of clips: from the packed pickle to what a model's device is sent.

N clips of a batch, K views of a clip, M persons, T = clip_len frames, V joints. An `index` is the number of a clip in
the store.
"""

import copy
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Self, get_args

import numpy as np

from lib.data.augmentation import Augmentation, Input
from lib.data.geometry import AffineMap, compact_box, extent, project
from lib.data.keypoints import centre_and_scale, coco_to_h36m, crop_scale, identity_swaps, to_camera
from lib.data.sampling import ClipRandom, epoch_order, evaluation_frames, resampled_frames, train_frames
from lib.data.skeletons import COCO17, H36M17, Skeleton, skeleton_of
from lib.data.store import open_store
from lib.errors import UserError, check_values

TEST_SCALE = 2.0  # MotionBERT's: edge of the window of a test clip, in lengths of the persons' box
PIECE = 2**16  # clips of a split that are looked up at once


class Clips:
    """The batches of one split: `clips[epoch, b]` for b in range(len(clips)).

    A batch is a pure function of (seed, epoch, b): training clips come in another order each epoch, validation clips
    always in the order of the file, and no number drawn depends on other clips. A last short batch is kept, but for a
    training batch of one clip (batch norm). It holds 'label' (N,) int64, and according to `input`

        heatmap      'keypoint' (N, M, T, V, 2) float32 in heatmap pixels and 'score' (N, M, T, V) float32, to be drawn.
                     With test_clips or test_flip, validation clips are (N, K, M, T, V, ...): K views of each.
        keypoint_2d  'keypoint' (N, M, T, 17, 3) float32: x, y and score of H36M's joints, as MotionBERT takes them.
        keypoint_3d  'keypoint' (N, M, T, 25, 3) float32: x, y, z about the spine at the clip's start.

    Absent persons are zeros (with keypoint_2d, zeros that were scaled with the rest, as in MotionBERT).

    split: 'train' or 'val'. augmentation: of training clips. size: height and width of the heatmap in pixels.
    The other arguments are the keys of a config's section `data`:

    input: what a batch holds, see above.
    ann_file: PYSKL pickle, or a folder of them.
    benchmark: 'xsub' for the splits xsub_train and xsub_val, 'xview' likewise, or the two names [train, val].
    clip_len: frames of a clip, T. batch_size: clips of a batch, N, of all processes together.
    seed: of the order of the clips, the sampled frames and the augmentation.
    max_persons: M; further persons of a clip are left out.
    test_clips: samples of each validation clip. test_flip: whether each is also seen mirrored. Heatmap input only.
    store_dir: folder for the packed form of the pickle; null: the pickle's own.
    class_names: text file with one class name per line; null: <name>_classes.txt beside the pickle.

    Raises UserError for files, splits and values that cannot be used.
    """

    def __init__(
        self,
        split: str,
        augmentation: Augmentation | None = None,
        size: int = 56,
        *,
        input: Input = 'heatmap',
        ann_file: str,
        benchmark: str | list[str],
        clip_len: int,
        batch_size: int,
        seed: int,
        max_persons: int = 2,
        test_clips: int = 1,
        test_flip: bool = False,
        store_dir: str | None = None,
        class_names: str | None = None,
    ) -> None:
        if split not in ('train', 'val'):
            raise UserError(f"split is {split!r}; it must be 'train' or 'val'.")
        is_heatmap = input == 'heatmap'
        rules = {
            'input': (input in get_args(Input), f'one of {", ".join(get_args(Input))}'),
            'clip_len': (clip_len >= 1, 'at least 1'),
            'batch_size': (batch_size >= 1, 'at least 1'),
            'max_persons': (max_persons >= 1, 'at least 1'),
            'test_clips': (1 <= test_clips <= (test_clips if is_heatmap else 1), 'at least 1, and 1 for keypoints'),
            'test_flip': (is_heatmap or not test_flip, f'false with data.input {input}'),
            'benchmark': (isinstance(benchmark, str) or len(benchmark) == 2, 'a name, or two names [train, val]'),
        }
        check_values('data', locals(), rules)
        self.training = split == 'train'
        self.input, self.size, self.clip_len, self.batch_size = input, size, clip_len, batch_size
        self.seed, self.max_persons = seed, max_persons
        self.test_clips, self.test_flip = test_clips, test_flip
        self.augmentation = augmentation or Augmentation()
        self.augmentation.check_input(input)

        self.store = open_store(ann_file, store_dir)
        self.split_name = f'{benchmark}_{split}' if isinstance(benchmark, str) else benchmark[not self.training]
        if self.split_name not in self.store.splits:
            raise UserError(
                f'{ann_file} has no split {self.split_name!r} (data.benchmark is {benchmark!r}). Its splits are '
                f'{", ".join(self.store.splits)}: set data.benchmark to xsub, ..., or to two names, [train1, test1].'
            )
        self.indices = self.store.splits[self.split_name]
        if len(self.indices) <= self.training:
            raise UserError(f'{ann_file}: split {self.split_name} has {len(self.indices)} clips, which is too few.')
        self.is_3d = self.store.is_3d
        self.skeleton = self._skeleton()
        # The last epoch asked for and its order, shared by all ranks and loader threads.
        self._order = [-1, self.indices]
        self._ordering = threading.Lock()
        self._rank, self._world_size = 0, 1

    def _skeleton(self) -> Skeleton:
        """The skeleton in a batch. Raises UserError if the pickle does not fit the input."""
        skeleton = skeleton_of(self.store.num_joints)
        if self.input == 'keypoint_2d':
            if self.is_3d or skeleton is not COCO17:
                raise UserError(
                    f'{self.store.ann_file} has {"3D" if self.is_3d else "2D"} keypoints of {skeleton.name}, but '
                    'data.input keypoint_2d needs 2D ones of COCO-17: name the 2D pickle (_hrnet.pkl).'
                )
            return H36M17
        if self.input == 'keypoint_3d' and not self.is_3d:
            raise UserError(
                f'{self.store.ann_file} has 2D keypoints, but data.input keypoint_3d needs 3D ones: name the 3D pickle '
                '(_3danno.pkl).'
            )
        return skeleton

    @property
    def num_joints(self) -> int:
        """Joints of a person in a batch, V."""
        return len(self.skeleton.joints)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Persons, frames and joints of a clip in a batch, (M, T, V)."""
        return self.max_persons, self.clip_len, self.num_joints

    @property
    def num_clips(self) -> int:
        """Clips of the split."""
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """The label of each clip of the split, (num_clips,) int64."""
        return self.store.label[self.indices]

    @property
    def clips_per_epoch(self) -> int:
        """Clips that an epoch visits: all of the split, or one less (see __len__)."""
        return min(self.num_clips, len(self) * self.batch_size)

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur in the split, sorted."""
        return np.unique(np.concatenate([np.unique(self.store.label[index]) for index in self._pieces()]))

    @property
    def description(self) -> str:
        """The dataset and the model's input, for the log."""
        form = {
            'heatmap': f'of {self.size}x{self.size} px',
            'keypoint_2d': '(x, y, score)',
            'keypoint_3d': '(x, y, z)',
        }
        views = '' if self.num_views == 1 else f', {self.num_views} views of each test clip'
        return f'{self.store.ann_file}, {self.skeleton.name}, {self.clip_len} frames {form[self.input]}{views}'

    @property
    def split_description(self) -> str:
        """Name and size of the split, for the log."""
        count = len(self.classes)
        crowded = sum(int((self.store.num_persons[index] > self.max_persons).sum()) for index in self._pieces())
        left_out = f'; {crowded:,} have more than {self.max_persons} persons: the first are used' if crowded else ''
        return f'{self.split_name}, {self.num_clips:,} clips of {count} classes (chance {1 / count:.2%}){left_out}'

    def check_labels(self, num_classes: int) -> None:
        """Raises UserError, naming a clip, if a label is not below `num_classes`."""
        highest = self.classes[-1]
        if highest >= num_classes:
            first = next(i for index in self._pieces() for i in index[self.store.label[index] == highest])
            raise UserError(
                f'{self.store.ann_file}: clip {self.store.name(first)} has label {highest}, but model.num_classes is '
                f'{num_classes}; it must be {highest + 1} or more.'
            )

    def _pieces(self) -> Iterator[np.ndarray]:
        """The indices of the split in pieces, for lookups that may not fit in memory at once."""
        for start in range(0, self.num_clips, PIECE):
            yield self.indices[start : start + PIECE]

    def __len__(self) -> int:
        whole, rest = divmod(self.num_clips, self.batch_size)
        return whole + (rest > self.training)

    @property
    def num_steps(self) -> int:
        """Steps of an epoch. In training, without a last batch of less than two clips for each of several processes."""
        is_short = self._world_size > 1 and self.batch_sizes[-1] < 2 * self._world_size
        return len(self) - (self.training and is_short)

    @cached_property
    def batch_sizes(self) -> list[int]:
        """Clips of each batch of an epoch, over all processes."""
        last = self.clips_per_epoch - (len(self) - 1) * self.batch_size
        if self.training:  # so that all processes have equal shares
            last -= last % self._world_size
        return [self.batch_size] * (len(self) - 1) + [last]

    def batch_indices(self, epoch: int, b: int) -> np.ndarray:
        """The clips in batch b of an epoch, (N,) int."""
        if not 0 <= b < len(self):
            raise IndexError(b)
        batch = slice(b * self.batch_size, (b + 1) * self.batch_size)
        if not self.training:
            return self.indices[batch]
        with self._ordering:  # one loader thread shuffles, the others wait
            if self._order[0] != epoch:
                self._order[:] = epoch, epoch_order(self.seed, epoch, self.num_clips)
            return self.indices[self._order[1][batch]]

    def names(self, epoch: int, b: int) -> list[str]:
        """frame_dir of each clip in a batch."""
        return [self.store.name(i) for i in self.batch_indices(epoch, b)]

    def single(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        """One clip as a batch of an epoch, N = 1."""
        return self._batch(np.array([index]), epoch)

    def shared(self, rank: int, world_size: int) -> Self:
        """The same clips for one of several processes: `clips[epoch, b]` is its share, every `world_size`-th clip.

        A short training batch is trimmed to a multiple of `world_size`. Shares may be empty. Raises UserError if no
        training batch has two clips per process.
        """
        shared = copy.copy(self)
        shared.__dict__.pop('batch_sizes', None)  # computed for another number of processes
        shared._rank, shared._world_size = rank, world_size
        if self.training and not shared.num_steps:
            raise UserError(
                f'{self.store.ann_file}: split {self.split_name} has {self.num_clips} clips, less than two for each of '
                f'{world_size} processes. Start fewer processes.'
            )
        return shared

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        whole = self.batch_indices(*key)
        index = whole[: self.batch_sizes[key[1]]][self._rank :: self._world_size]
        if not len(index):
            return {name: array[:0] for name, array in self._batch(whole[:1], key[0]).items()}
        return self._batch(index, key[0])

    def _batch(self, index: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        random = ClipRandom(self.seed, epoch, index) if self.training else None
        make = {'heatmap': self._heatmap, 'keypoint_2d': self._keypoint_2d, 'keypoint_3d': self._keypoint_3d}
        return make[self.input](index, random) | {'label': self.store.label[index]}

    def _heatmap(self, index: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        keypoint, score, present = self._read(index, self._frames(index, random))
        xy, score = np.moveaxis(keypoint, -1, 0).astype(np.float32, order='C'), score.astype(np.float32)
        if self.is_3d:
            xy = project(xy, np.zeros(len(index)) if random is None else self.augmentation.camera_angle(random))
        if random is not None:
            xy = self.augmentation.move_joints(xy, random)
        img_shape = np.maximum(self.store.img_shape[index].astype(np.int64), 1)  # zeros in a 3D pickle
        affine = AffineMap.identity(img_shape).compact(compact_box(*extent(xy), img_shape))
        if random is not None:
            return self._placed(xy, score, present, *self.augmentation.crop_and_flip(affine, self.size, random))
        affine, everyone = affine.resize((self.size, self.size)), np.ones(len(index), bool)
        views = [self._placed(xy, score, present, affine, ~everyone)]
        if self.test_flip:
            views.append(self._placed(xy, score, present, affine.flip(everyone, of_pixels=True), everyone))
        return {name: self._views([view[name] for view in views]) for name in views[0]}

    def _placed(
        self, xy: np.ndarray, score: np.ndarray, present: np.ndarray, affine: AffineMap, flipped: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The points in the heatmap, with left and right joints exchanged in the `flipped` (N,) clips."""
        keypoint, score = np.moveaxis(affine.apply(xy), 0, -1).copy(), score.copy()
        keypoint[~present] = 0
        for joints, axis in ((keypoint, -2), (score, -1)):
            joints[flipped] = joints[flipped].take(self.skeleton.flip_order, axis)
        return {'keypoint': keypoint, 'score': score}

    def _views(self, flips: list[np.ndarray]) -> np.ndarray:
        """[(N, M, K * T, ...), its mirror image] -> (N, 2 * K, M, T, ...), without the axis of one view."""
        if self.num_views == 1:
            return flips[0]
        n, m, _, *rest = flips[0].shape
        views = [np.moveaxis(flip.reshape(n, m, -1, self.clip_len, *rest), 2, 1) for flip in flips]
        return np.concatenate(views, axis=1)

    @property
    def num_views(self) -> int:
        """Views of a validation clip, K."""
        return self.test_clips * (1 + self.test_flip)

    def _keypoint_2d(self, index: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        frames = self._frames(index, random)
        keypoint, score, present = self._read(index, frames)
        keypoint = to_camera(keypoint, self.store.img_shape[index]) * present[..., None, None, None]
        keypoint = coco_to_h36m(self._tracked(keypoint, index, frames))
        scale = np.full(len(index), TEST_SCALE)
        if random is not None:
            keypoint = self.augmentation.move_keypoints(keypoint, random)
            scale = self.augmentation.window_scale(random)
        # MotionBERT's quirk: the scores stay in COCO's order, and with the person that they were given to.
        keypoint = np.concatenate([keypoint, score.astype(np.float32)[..., None]], axis=-1)
        return {'keypoint': crop_scale(keypoint, scale)}

    def _keypoint_3d(self, index: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        frames = self._frames(index, random)
        keypoint = self._tracked(self._read(index, frames)[0], index, frames).astype(np.float32)
        present = (keypoint != 0).any(axis=-1)
        keypoint = centre_and_scale(keypoint, present)
        if random is not None:
            keypoint = self.augmentation.move_keypoints(keypoint, random) * present[..., None]
        return {'keypoint': keypoint}

    def _frames(self, index: np.ndarray, random: ClipRandom | None) -> np.ndarray:
        """Frame numbers (N, T); of validation clips with several samples (N, test_clips * T)."""
        total_frames, T = self.store.total_frames[index], self.clip_len
        if self.input != 'heatmap':
            return resampled_frames(total_frames, T, None if random is None else random.uniform(T))
        if random is None:
            return np.stack([evaluation_frames(int(count), T, self.test_clips) for count in total_frames])
        return self.augmentation.shift_frames(train_frames(total_frames, T, random.uniform(T + 1)), random)

    def _read(self, index: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored keypoints (N, M, T, V, C) and scores (N, M, T, V) of frames (N, T); which persons are present, (N, M).

        Absent persons are zeros.
        """
        person = np.arange(self.max_persons)
        present = person < self.store.num_persons[index][:, None]
        first_row = self.store.first_row[index][:, None] + person * present * self.store.total_frames[index][:, None]
        keypoint, score = self.store.gather(first_row[..., None] + frames[:, None])
        keypoint[~present], score[~present] = 0, 0
        return keypoint, score, present

    def _tracked(self, keypoint: np.ndarray, index: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Exchanges the first two persons of keypoint (N, M, T, V, C) in the frames in which the file mixes them up."""
        pair = np.flatnonzero(self.store.num_persons[index] >= 2)
        if self.max_persons < 2 or not len(pair):
            return keypoint
        total_frames = self.store.total_frames[index[pair]]
        start = np.cumsum(total_frames) - total_frames
        pair_of = np.repeat(np.arange(len(pair)), total_frames)  # of each frame of each pair
        first_row = self.store.first_row[index[pair]][pair_of] + np.arange(len(pair_of)) - start[pair_of]
        tracks = [self.store.gather(first_row + person * total_frames[pair_of])[0] for person in (0, 1)]
        if self.input == 'keypoint_2d':
            tracks = [to_camera(track, self.store.img_shape[index[pair]][pair_of]) for track in tracks]
        swapped = identity_swaps(*tracks, total_frames)[start[:, None] + frames[pair]]  # (pairs, T)
        keypoint[pair, :2] = np.where(swapped[:, None, :, None, None], keypoint[pair, 1::-1], keypoint[pair, :2])
        return keypoint
