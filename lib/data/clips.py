"""Batches of clips, from the packed pickle to the small arrays that are sent to the device.

N clips of a batch, K views of a clip, M persons, T = clip_len frames, V joints. An `index` is the position of a clip in
the store.
"""

import copy
from functools import cached_property
from typing import Self, get_args

import numpy as np

from lib.data.augmentation import Augmentation, Input, Preparation
from lib.data.geometry import AffineMap, compact_box, extent, project
from lib.data.keypoints import centre, centre_and_scale, coco_to_h36m, crop_scale, identity_swaps, to_camera
from lib.data.sampling import (
    MAMP_MINIMUM,
    ClipRandom,
    between_frames,
    crop_in_time,
    epoch_order,
    evaluation_frames,
    interpolate,
    resampled_frames,
    train_frames,
)
from lib.data.skeletons import COCO17, H36M17, Skeleton, skeleton_of
from lib.data.store import open_store
from lib.errors import UserError, check_values

TEST_SCALE = 2.0  # window of a test clip relative to the box around all persons, as in MotionBERT
TEST_SHARE = 0.95  # of the frames of a test clip that are kept, as in MAMP


class Clips:
    """The batches of one split: `clips[epoch, b]` for b in range(len(clips)).

    A batch is a pure function of (seed, epoch, b): training clips are shuffled every epoch, validation clips keep the
    order of the file, and the random numbers of a clip do not depend on other clips. The last short batch is kept,
    except a training batch of one clip (batch norm needs two). Batches hold 'label' (N,) int64, and for `input`

        heatmap      'keypoint' (N, M, T, V, 2) float32 in heatmap pixels and 'score' (N, M, T, V) float32. With
                     test_clips or test_flip, validation batches have a view axis: (N, K, M, T, V, ...).
        keypoint_2d  'keypoint' (N, M, T, 17, 3) float32: x, y, score of H36M joints, prepared as in MotionBERT.
        keypoint_3d  'keypoint' (N, M, T, 25, 3) float32: x, y, z relative to the spine base in the first frame; with
                     preparation mamp in metres, relative to the middle of the spine there.

    Absent persons are zeros (with keypoint_2d, zeros scaled along with the rest, as in MotionBERT).

    split: 'train' or 'val'. augmentation: for training clips. size: height and width of the heatmap in pixels.
    The other arguments are the keys of config section `data`:

    input: kind of model input, see above.
    ann_file: PYSKL pickle, or a folder of pickles.
    benchmark: 'xsub' for the splits xsub_train and xsub_val, 'xview' likewise, or two split names [train, val].
    preparation: 'mamp' takes a part of each clip and resizes it linearly to clip_len frames, as in MAMP (heatmap,
    keypoint_3d); see above for keypoint_3d.
    clip_len: frames per clip, T. batch_size: clips per batch over all processes, N.
    seed: for clip order, frame sampling and augmentation.
    max_persons: M; further persons are dropped.
    test_clips: frame samples per validation clip. test_flip: whether to add mirrored views. Heatmap input only.
    store_dir: folder for the packed pickle; null: the folder of the pickle.
    class_names: text file with one class name per line; null: <name>_classes.txt beside the pickle.

    Raises UserError for unusable files, unknown splits and invalid values.
    """

    def __init__(
        self,
        split: str,
        augmentation: Augmentation | None = None,
        size: int = 56,
        *,
        input: Input = 'heatmap',
        preparation: Preparation = 'default',
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
            'preparation': (
                preparation == 'default' or (input != 'keypoint_2d' and test_clips == 1),
                'default with keypoint_2d or data.test_clips',
            ),
            'clip_len': (clip_len >= 1, 'at least 1'),
            'batch_size': (batch_size >= 1, 'at least 1'),
            'max_persons': (max_persons >= 1, 'at least 1'),
            'test_clips': (test_clips == 1 or (is_heatmap and test_clips > 1), 'at least 1, and 1 for keypoints'),
            'test_flip': (is_heatmap or not test_flip, f'false with data.input {input}'),
            'benchmark': (isinstance(benchmark, str) or len(benchmark) == 2, 'a name, or two split names [train, val]'),
        }
        check_values('data', locals(), rules)
        self.training = split == 'train'
        self.preparation = preparation
        self.input, self.size, self.clip_len, self.batch_size = input, size, clip_len, batch_size
        self.seed, self.max_persons = seed, max_persons
        self.test_clips, self.test_flip = test_clips, test_flip
        self.augmentation = augmentation or Augmentation()
        self.augmentation.check_input(input, preparation)

        self.store = open_store(ann_file, store_dir)
        self.split_name = f'{benchmark}_{split}' if isinstance(benchmark, str) else benchmark[0 if self.training else 1]
        if self.split_name not in self.store.splits:
            raise UserError(
                f'{ann_file} has no split {self.split_name!r} (data.benchmark is {benchmark!r}). Its splits are '
                f'{", ".join(self.store.splits)}. Set data.benchmark to a prefix such as xsub, or to two split names.'
            )
        self.indices = self.store.splits[self.split_name]
        self.min_clips = 2 if self.training else 1  # of a batch: batch norm needs two in training
        if len(self.indices) < self.min_clips:
            raise UserError(f'{ann_file}: split {self.split_name} has only {len(self.indices)} clips.')
        self.is_3d = self.store.is_3d
        self.skeleton = self._skeleton()
        self._rank, self._world_size = 0, 1

    def _skeleton(self) -> Skeleton:
        """Skeleton of the joints in a batch. Raises UserError if the pickle does not fit the input."""
        skeleton = skeleton_of(self.store.num_joints)
        if self.input == 'keypoint_2d':
            if self.is_3d or skeleton is not COCO17:
                raise UserError(
                    f'{self.store.ann_file} has {"3D" if self.is_3d else "2D"} keypoints of {skeleton.name}, but '
                    'data.input keypoint_2d needs 2D keypoints of COCO-17: use the 2D pickle (_hrnet.pkl).'
                )
            return H36M17
        if self.input == 'keypoint_3d' and not self.is_3d:
            raise UserError(
                f'{self.store.ann_file} has 2D keypoints, but data.input keypoint_3d needs 3D keypoints: use the 3D '
                'pickle (_3danno.pkl).'
            )
        return skeleton

    @property
    def num_joints(self) -> int:
        """Joints per person, V."""
        return len(self.skeleton.joints)

    @property
    def num_clips(self) -> int:
        """Number of clips in the split."""
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """The label of each clip of the split, (num_clips,) int64."""
        return self.store.label[self.indices]

    @cached_property
    def classes(self) -> np.ndarray:
        """Labels that occur in the split, sorted."""
        parts = np.array_split(self.labels, 16)  # np.unique copies its input
        return np.unique(np.concatenate([np.unique(part) for part in parts]))

    @property
    def description(self) -> str:
        """Dataset and model input, for the log."""
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
        crowded = np.count_nonzero(self.store.num_persons[self.indices] > self.max_persons)
        dropped = f'; {crowded:,} have more than {self.max_persons} persons: only the first are used' if crowded else ''
        return f'{self.split_name}, {self.num_clips:,} clips of {count} classes (chance {1 / count:.2%}){dropped}'

    def check_labels(self, num_classes: int) -> None:
        """Raises UserError, naming a clip, if a label is `num_classes` or more."""
        highest = self.classes[-1]
        if highest >= num_classes:
            first = self.indices[self.labels.argmax()]
            raise UserError(
                f'{self.store.ann_file}: clip {self.store.name(first)} has label {highest}, but model.num_classes is '
                f'{num_classes}; it must be {highest + 1} or more.'
            )

    def __len__(self) -> int:
        whole, rest = divmod(self.num_clips, self.batch_size)
        return whole + (rest >= self.min_clips)

    @property
    def num_steps(self) -> int:
        """Steps per epoch. Several processes skip a last training batch of fewer than two clips per process."""
        is_short = self._world_size > 1 and self.batch_sizes[-1] < 2 * self._world_size
        return len(self) - (self.training and is_short)

    @cached_property
    def batch_sizes(self) -> list[int]:
        """Number of clips in each batch of an epoch, over all processes."""
        last = min(self.num_clips - (len(self) - 1) * self.batch_size, self.batch_size)
        if self.training:  # equal shares for all processes
            last -= last % self._world_size
        return [self.batch_size] * (len(self) - 1) + [last]

    def batch_indices(self, epoch: int, b: int) -> np.ndarray:
        """Indices of the clips in batch b of an epoch, (N,) int."""
        if not 0 <= b < len(self):
            raise IndexError(b)
        batch = slice(b * self.batch_size, (b + 1) * self.batch_size)
        if not self.training:
            return self.indices[batch]
        return self.indices[epoch_order(self.seed, epoch, self.num_clips)[batch]]

    def names(self, epoch: int, b: int) -> list[str]:
        """frame_dir of each clip in a batch."""
        return [self.store.name(i) for i in self.batch_indices(epoch, b)]

    def single(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        """One clip, as a batch with N = 1."""
        return self._batch(np.array([index]), epoch)

    def for_rank(self, rank: int, world_size: int) -> Self:
        """Returns the share of one of several processes: `clips[epoch, b]` is every `world_size`-th clip of a batch.

        Training batches are trimmed to a multiple of `world_size`; validation shares may be empty. Raises UserError if
        no training batch has two clips per process.
        """
        shared = copy.copy(self)
        shared.__dict__.pop('batch_sizes', None)  # computed for another number of processes
        shared._rank, shared._world_size = rank, world_size
        if self.training and not shared.num_steps:
            raise UserError(
                f'{self.store.ann_file}: split {self.split_name} has {self.num_clips} clips, fewer than two per '
                f'process ({world_size} processes). Start fewer processes.'
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
        if self.preparation == 'mamp':
            frames, weight = self._part(index, random, least=self.clip_len)
            keypoint, score, present = self._read(index, frames)
            keypoint, score = interpolate(keypoint, score, weight)
        else:
            keypoint, score, present = self._read(index, self._frames(index, random))
        xy, score = np.moveaxis(keypoint, -1, 0).astype(np.float32, order='C'), score.astype(np.float32)
        if self.is_3d:
            xy = project(xy, np.zeros(len(index)) if random is None else self.augmentation.camera_angle(random))
        if random is not None:
            xy = self.augmentation.move_joints(xy, random)
        img_shape = np.maximum(self.store.img_shape[index].astype(np.int64), 1)  # zeros in a 3D pickle
        affine = AffineMap.identity(img_shape).compact(compact_box(*extent(xy), img_shape))
        if random is not None:  # crop_and_flip also resizes to self.size
            return self._placed(xy, score, present, *self.augmentation.crop_and_flip(affine, self.size, random))
        affine, everyone = affine.resize((self.size, self.size)), np.ones(len(index), bool)
        views = [self._placed(xy, score, present, affine, ~everyone)]
        if self.test_flip:
            views.append(self._placed(xy, score, present, affine.flip(everyone, of_pixels=True), everyone))
        return {name: self._views([view[name] for view in views]) for name in views[0]}

    def _placed(
        self, xy: np.ndarray, score: np.ndarray, present: np.ndarray, affine: AffineMap, flipped: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Maps the points to heatmap pixels and swaps left and right joints of the `flipped` (N,) clips."""
        keypoint, score = np.moveaxis(affine.apply(xy), 0, -1).copy(), score.copy()
        keypoint[~present] = 0
        for joints, axis in ((keypoint, -2), (score, -1)):
            joints[flipped] = joints[flipped].take(self.skeleton.flip_order, axis)
        return {'keypoint': keypoint, 'score': score}

    def _views(self, flips: list[np.ndarray]) -> np.ndarray:
        """[(N, M, K * T, ...), its mirror image] -> (N, 2 * K, M, T, ...); a single view gets no view axis."""
        if self.num_views == 1:
            return flips[0]
        n, m, _, *rest = flips[0].shape
        views = [np.moveaxis(flip.reshape(n, m, -1, self.clip_len, *rest), 2, 1) for flip in flips]
        return np.concatenate(views, axis=1)

    @property
    def num_views(self) -> int:
        """Views per validation clip, K."""
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
        # As in MotionBERT, scores stay in COCO order and are not affected by tracking.
        keypoint = np.concatenate([keypoint, score.astype(np.float32)[..., None]], axis=-1)
        return {'keypoint': crop_scale(keypoint, scale)}

    def _keypoint_3d(self, index: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        if self.preparation == 'mamp':
            return self._mamp(index, random)
        frames = self._frames(index, random)
        keypoint = self._tracked(self._read(index, frames)[0], index, frames).astype(np.float32)
        present = (keypoint != 0).any(axis=-1)
        keypoint = centre_and_scale(keypoint, present)
        if random is not None:
            keypoint = self.augmentation.move_keypoints(keypoint, random) * present[..., None]
        return {'keypoint': keypoint}

    def _mamp(self, index: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        frames, weight = self._part(index, random)
        # The origin is in the first frame of the clip, which may be cropped off.
        frames = np.concatenate([np.zeros_like(frames[:, :1]), frames], axis=1)
        keypoint = centre(self._read(index, frames)[0].astype(np.float32))
        before, after = np.split(keypoint[:, :, 1:], 2, axis=2)
        keypoint = before + (after - before) * weight[:, None, :, None, None]
        return {'keypoint': keypoint if random is None else self.augmentation.rotate_keypoints(keypoint, random)}

    def _part(
        self, index: np.ndarray, random: ClipRandom | None, least: int = MAMP_MINIMUM
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frames before and after each frame of the resized parts of clips, (N, 2 * T), and weights of the latter."""
        total_frames = self.store.total_frames[index]
        if random is None:
            first, count = crop_in_time(total_frames, TEST_SHARE)
        else:
            first, count = self.augmentation.crop_frames(total_frames, random, least)
        before, after, weight = between_frames(first, count, self.clip_len)
        return np.concatenate([before, after], axis=1), weight

    def _frames(self, index: np.ndarray, random: ClipRandom | None) -> np.ndarray:
        """Frame numbers (N, T); of validation clips with several samples (N, test_clips * T)."""
        total_frames, T = self.store.total_frames[index], self.clip_len
        if self.input != 'heatmap':
            return resampled_frames(total_frames, T, None if random is None else random.uniform(T))
        if random is None:
            return np.stack([evaluation_frames(int(count), T, self.test_clips) for count in total_frames])
        return self.augmentation.shift_frames(train_frames(total_frames, T, random.uniform(T + 1)), random)

    def _read(self, index: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reads keypoints (N, M, T, V, C), scores (N, M, T, V) and presence of persons (N, M) at frames (N, T).

        Absent persons are zeros.
        """
        person = np.arange(self.max_persons)
        present = person < self.store.num_persons[index][:, None]
        first_row = self.store.first_row[index][:, None] + person * present * self.store.total_frames[index][:, None]
        keypoint, score = self.store.gather(first_row[..., None] + frames[:, None])
        keypoint[~present], score[~present] = 0, 0
        return keypoint, score, present

    def _tracked(self, keypoint: np.ndarray, index: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Corrects identity swaps between the first two persons of keypoint (N, M, T, V, C)."""
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
