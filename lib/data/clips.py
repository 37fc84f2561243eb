"""Batches of clips: from the packed pickle to what a model's device is sent.

N clips of a batch, K views of a clip, M persons, P person rows (the persons of all clips, ragged), T = clip_len frames,
V joints.
"""

import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np

from lib.data.geometry import (
    AffineMap,
    as_complex,
    compact_box,
    extent,
    jitter,
    random_crop_box,
    rotate,
    short_edge_shape,
    view,
)
from lib.data.keypoints import (
    MOVES_2D,
    MOVES_3D,
    centre_and_scale,
    coco_to_h36m,
    crop_scale,
    identity_swaps,
    random_move,
    to_camera,
)
from lib.data.sampling import (
    ClipRandom,
    epoch_order,
    evaluation_frames,
    resampled_frames,
    shifted_frames,
    train_frames,
)
from lib.data.skeletons import COCO17, H36M17, Skeleton, skeleton_of
from lib.data.store import Store, open_store
from lib.errors import UserError

Input = Literal['heatmap', 'keypoint_2d', 'keypoint_3d']

TEST_SCALE = 2.0  # MotionBERT's: the window of a test clip, in lengths of the persons' box
PIECE = 2**16  # clips of a split that are looked at together, where all of them are

# The keys that only some inputs read.
INPUT_KEYS = {
    'heatmap': (
        'crop_area',
        'crop_ratio',
        'flip_ratio',
        'rotation',
        'joint_noise',
        'temporal_shift',
        'view_angle',
        'test_clips',
        'test_flip',
    ),
    'keypoint_2d': ('random_move', 'scale_range'),
    'keypoint_3d': ('random_move',),
}


class Clips:
    """The batches of one split: `clips[epoch, b]` for b in range(len(clips)).

    A batch is a pure function of (seed, epoch, b): training clips come in another order each epoch, validation clips
    always in the order of the file, and no number drawn depends on other clips. A last short batch is kept, but for a
    training batch of one clip (batch norm). It holds 'label' (N,) int64, and according to `input`

        heatmap      'keypoint' (N, M, T, V, 2) float32 in heatmap pixels and 'score' (N, M, T, V) float32, to be drawn.
                     With test_clips or test_flip, validation clips are (N, K, M, T, V, ...): K views of each.
        keypoint_2d  'keypoint' (N, M, T, 17, 3) float32: x, y and score of H36M's joints, as MotionBERT takes them.
        keypoint_3d  'keypoint' (N, M, T, 25, 3) float32: x, y, z about the spine at the clip's start.

    Absent persons are zeros (with keypoint_2d, zeros that have been scaled along with the rest, as in MotionBERT).

    split: 'train' or 'val'.                         size: edge of the heatmap in pixels.
    ann_file: PYSKL pickle.                          benchmark: 'xsub' for the lists xsub_train and xsub_val, 'xview'
    clip_len: frames of a clip, T.                       likewise, or the names of the two lists [train, val].
    batch_size: clips of a batch.                    max_persons: M; further persons of a clip are left out.
    store_dir: folder for the packed form of the pickle, by default the pickle's own.
    class_names: text file with a class name a line, by default <name>_classes.txt beside the pickle.

    Training on heatmaps: crop_area, crop_ratio: ranges of area and aspect ratio of the random resized crop.
    flip_ratio: share of clips that are mirrored. rotation: rad, either way, about the middle of the persons.
    joint_noise: deviation in diagonals of the person's box. temporal_shift: frames, either way.
    view_angle: degrees, either way, by which a 3D pickle is turned before it is drawn; a 2D pickle is drawn as it is.
    Testing on heatmaps: test_clips: samples of each clip. test_flip: whether each is also shown mirrored.
    Training on keypoints: random_move: whether rotation, scale and place drift over the clip. scale_range: the size of
    the window, in lengths of the persons' box.

    Raises UserError for files, lists and values that cannot be used.
    """

    def __init__(
        self,
        split: str,
        size: int = 56,
        *,
        input: Input = 'heatmap',
        ann_file: str,
        benchmark: str | list[str],
        clip_len: int,
        batch_size: int,
        seed: int,
        max_persons: int = 2,
        crop_area: tuple[float, float] = (0.56, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_ratio: float = 0.5,
        rotation: float = 0.0,
        joint_noise: float = 0.0,
        temporal_shift: int = 0,
        view_angle: float = 30.0,
        test_clips: int = 1,
        test_flip: bool = False,
        random_move: bool = True,
        scale_range: tuple[float, float] = (1.0, 3.0),
        store_dir: str | None = None,
        class_names: str | None = None,
    ) -> None:
        if split not in ('train', 'val'):
            raise UserError(f"split is {split!r}; it must be 'train' or 'val'.")

        def require(sound: bool, key: str, value: object, rule: str) -> None:
            if not sound:
                raise UserError(f'data.{key} is {value}; it must be {rule}.')

        require(input in get_args(Input), 'input', input, f'one of {", ".join(get_args(Input))}')
        counts = {'clip_len': clip_len, 'batch_size': batch_size, 'max_persons': max_persons, 'test_clips': test_clips}
        for key, value in counts.items():
            require(value >= 1, key, value, 'at least 1')
        amounts = {
            'rotation': rotation,
            'joint_noise': joint_noise,
            'temporal_shift': temporal_shift,
            'view_angle': view_angle,
        }
        for key, value in amounts.items():
            require(value >= 0, key, value, '0 or more')
        require(0 <= flip_ratio <= 1, 'flip_ratio', flip_ratio, 'between 0 and 1')
        area, ratio, scale = list(crop_area), list(crop_ratio), list(scale_range)
        require(0 < area[0] <= area[1] <= 1, 'crop_area', area, 'two rising shares of the area, at most 1')
        require(0 < ratio[0] <= ratio[1], 'crop_ratio', ratio, 'two rising positive ratios')
        require(0 < scale[0] <= scale[1], 'scale_range', scale, 'two rising positive lengths')
        self.training = split == 'train'
        self.input, self.size, self.clip_len, self.batch_size = input, size, clip_len, batch_size
        self.seed, self.max_persons = seed, max_persons
        self.crop_area, self.crop_ratio, self.flip_ratio = tuple(area), tuple(ratio), flip_ratio
        self.rotation, self.joint_noise, self.temporal_shift = rotation, joint_noise, temporal_shift
        self.view_angle = np.radians(view_angle)
        self.test_clips, self.test_flip = test_clips, test_flip
        self.random_move, self.scale_range = random_move, tuple(scale)

        self.store = open_store(ann_file, store_dir)
        self.list_name = _list_name(benchmark, split)
        if self.list_name not in self.store.splits:
            raise UserError(
                f'{ann_file} has no list {self.list_name!r} (data.benchmark is {benchmark!r}). Its lists are '
                f'{", ".join(self.store.splits)}; give a benchmark as xsub, or two names as [train1, test1].'
            )
        self.clips = self.store.splits[self.list_name]
        if len(self.clips) <= self.training:
            raise UserError(f'{ann_file}: the list {self.list_name} has {len(self.clips)} clips; that is too few.')
        self.is_3d = self.store.is_3d
        self.skeleton = self._skeleton()
        # An epoch, and the places in the list that its clips are taken from, in turn. All shares have this one list.
        self._order = [-1, self.clips]
        self._ordering = threading.Lock()
        self._rank, self._world_size = 0, 1

    @staticmethod
    def unused_keys(*, input: str = 'heatmap', **_: object) -> dict[str, str]:
        """The keys without effect beside the given ones, each with the reason."""
        keys = {key for keys in INPUT_KEYS.values() for key in keys}
        return dict.fromkeys(keys.difference(INPUT_KEYS.get(input, keys)), f'data.input {input} does not read it')

    def _skeleton(self) -> Skeleton:
        """The joints that a batch holds. Raises UserError where the pickle does not suit the input."""
        skeleton = skeleton_of(self.store.num_joints)
        if self.input == 'keypoint_2d':
            if self.is_3d or skeleton is not COCO17:
                raise UserError(
                    f'{self.store.ann_file} holds {"3D" if self.is_3d else "2D"} keypoints of {skeleton.name}, and '
                    'data.input keypoint_2d takes 2D ones of COCO-17: name the 2D pickle (_hrnet.pkl).'
                )
            return H36M17
        if self.input == 'keypoint_3d' and not self.is_3d:
            raise UserError(
                f'{self.store.ann_file} holds 2D keypoints, and data.input is keypoint_3d: name the 3D pickle '
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
        return len(self.clips)

    @property
    def labels(self) -> np.ndarray:
        """The label of each clip of the split, (num_clips,) int64."""
        return self.store.label[self.clips]

    @property
    def clips_per_epoch(self) -> int:
        """Clips that an epoch visits: all of the split, or one less (see __len__)."""
        return min(self.num_clips, len(self) * self.batch_size)

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur in the split, rising."""
        return np.unique(np.concatenate([np.unique(self.store.label[clips]) for clips in self._pieces()]))

    @property
    def description(self) -> str:
        """Which set this is and what is made of it, for the log."""
        form = {
            'heatmap': f'of {self.size}x{self.size} px',
            'keypoint_2d': '(x, y, score)',
            'keypoint_3d': '(x, y, z)',
        }
        views = '' if self.num_views == 1 else f', {self.num_views} views of each test clip'
        return f'{self.store.ann_file}, {self.skeleton.name}, {self.clip_len} frames {form[self.input]}{views}'

    @property
    def split_description(self) -> str:
        """Which list of the set this is, for the log."""
        count = len(self.classes)
        crowded = sum(int((self.store.num_persons[clips] > self.max_persons).sum()) for clips in self._pieces())
        left_out = f'; {crowded:,} have over {self.max_persons} persons, of whom the first are taken' if crowded else ''
        return f'{self.list_name}, {self.num_clips:,} clips of {count} classes (chance {1 / count:.2%}){left_out}'

    def check_labels(self, num_classes: int) -> None:
        """Raises UserError, naming the clip, for a label that a model of `num_classes` cannot learn."""
        highest = self.classes[-1]
        if highest >= num_classes:
            clip = next(clip for clips in self._pieces() for clip in clips[self.store.label[clips] == highest])
            raise UserError(
                f'{self.store.ann_file}: clip {self.store.name(clip)} has label {highest}, but model.num_classes is '
                f'{num_classes}; it must be {highest + 1} or more.'
            )

    def _pieces(self) -> Iterator[np.ndarray]:
        """The split's clips, some at a time: what is looked up of all of them at once may not fit in memory."""
        for start in range(0, self.num_clips, PIECE):
            yield self.clips[start : start + PIECE]

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

    def batch_clips(self, epoch: int, b: int) -> np.ndarray:
        """Which clips of the store make up batch b of an epoch, (N,) int."""
        if not 0 <= b < len(self):
            raise IndexError(b)
        batch = slice(b * self.batch_size, (b + 1) * self.batch_size)
        if not self.training:
            return self.clips[batch]
        with self._ordering:  # one loader thread shuffles, the others wait
            if self._order[0] != epoch:
                self._order[:] = epoch, epoch_order(self.seed, epoch, self.num_clips)
            return self.clips[self._order[1][batch]]

    def names(self, epoch: int, b: int) -> list[str]:
        """frame_dir of each clip of a batch."""
        return [self.store.name(clip) for clip in self.batch_clips(epoch, b)]

    def of_clip(self, clip: int, epoch: int) -> dict[str, np.ndarray]:
        """What the batch of an epoch holds of one clip of the store, N = 1."""
        return self._batch(np.array([clip]), epoch)

    def shared(self, rank: int, world_size: int) -> Self:
        """The same clips for one of several processes: `clips[epoch, b]` is its share, one clip in `world_size`.

        A short training batch is trimmed to a multiple of `world_size`. Shares may be empty. Raises UserError if no
        training batch has two clips for each process.
        """
        shared = copy.copy(self)
        shared.__dict__.pop('batch_sizes', None)  # computed for another number of processes
        shared._rank, shared._world_size = rank, world_size
        if self.training and not shared.num_steps:
            raise UserError(
                f'{self.store.ann_file}: the list {self.list_name} has {self.num_clips} clips, too few for two in each '
                f'of {world_size} processes. Start fewer processes.'
            )
        return shared

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        whole = self.batch_clips(*key)
        clip = whole[: self.batch_sizes[key[1]]][self._rank :: self._world_size]
        if not len(clip):
            return {name: array[:0] for name, array in self._batch(whole[:1], key[0]).items()}
        return self._batch(clip, key[0])

    def _batch(self, clip: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        random = ClipRandom(self.seed, epoch, clip) if self.training else None
        make = {'heatmap': self._heatmap, 'keypoint_2d': self._keypoint_2d, 'keypoint_3d': self._keypoint_3d}
        return make[self.input](clip, random) | {'label': self.store.label[clip]}

    def _heatmap(self, clip: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        persons = _Persons.of(self.store, clip, self.max_persons)
        keypoint, score = self._read(persons, self._frames(clip, random))
        if self.is_3d:
            keypoint = view(keypoint, self._either_way(self.view_angle, random, len(clip))[persons.clip])
        keypoint, score = keypoint.astype(np.float32), score.astype(np.float32)
        if random is not None:
            keypoint = self._augmented(persons, keypoint, random)

        img_shape = np.maximum(self.store.img_shape[clip].astype(np.int64), 1)  # a 3D pickle has none
        box = compact_box(*extent(keypoint, persons.count), img_shape)
        affine, edge = AffineMap.identity(img_shape).compact(box), (self.size, self.size)
        if random is None:
            affine = affine.resize(edge)
            everyone = np.ones(len(clip), bool)
            views = [self._placed(persons, keypoint, score, affine, ~everyone)]
            if self.test_flip:
                mirror = affine.flip(everyone, of_pixels=True)
                views.append(self._placed(persons, keypoint, score, mirror, everyone))
            return {name: self._views([seen[name] for seen in views]) for name in views[0]}
        affine = affine.resize(short_edge_shape(affine.shape))
        affine = affine.crop(random_crop_box(affine.shape, random, self.crop_area, self.crop_ratio))
        flipped = random.uniform(1)[:, 0] < self.flip_ratio
        return self._placed(persons, keypoint, score, affine.resize(edge).flip(flipped), flipped)

    def _augmented(self, persons: '_Persons', keypoint: np.ndarray, random: ClipRandom) -> np.ndarray:
        """Rotation and joint noise, on keypoint (P, T, V, 2)."""
        if self.rotation:
            angle = self._either_way(self.rotation, random, len(persons.count))
            edges = extent(keypoint, persons.count)  # infinite where nothing is there
            middle = sum(np.where(np.isfinite(edge), edge, 0) for edge in edges) / 2
            keypoint = rotate(keypoint, angle[persons.clip], middle[persons.clip])
        if self.joint_noise:
            count = keypoint[0, ..., 0].size * 3
            draws = random.uniform_parts(count, self.max_persons, persons.clip, persons.number)
            keypoint = jitter(keypoint, self.joint_noise, draws.reshape(*keypoint.shape[:3], 3))
        return keypoint

    def _placed(
        self, persons: '_Persons', keypoint: np.ndarray, score: np.ndarray, affine: AffineMap, flipped: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Keypoints moved into the heatmap, left and right exchanged in the clips `flipped` (N,); (N, M, ...)."""
        keypoint, mirrored = affine.apply(keypoint, persons.clip), flipped[persons.clip]
        if mirrored.any():
            row, order = np.flatnonzero(mirrored), self.skeleton.flip_order
            points, score = as_complex(keypoint), score.copy()
            points[row] = points[row].take(order, axis=2)
            score[row] = score[row].take(order, axis=2)
        return {'keypoint': persons.spread(keypoint), 'score': persons.spread(score)}

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

    def _keypoint_2d(self, clip: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        persons = _Persons.of(self.store, clip, self.max_persons)
        frames = self._frames(clip, random)
        keypoint, score = self._read(persons, frames)
        keypoint = to_camera(keypoint, self.store.img_shape[clip][persons.clip])
        keypoint = self._tracked(persons.spread(keypoint), clip, frames)
        keypoint = coco_to_h36m(keypoint).astype(np.float32)
        ratio = np.full(len(clip), TEST_SCALE)
        if random is not None:
            if self.random_move:
                keypoint = random_move(keypoint, random.uniform(2 * MOVES_2D).reshape(len(clip), MOVES_2D, 2))
            ratio = self.scale_range[0] + np.ptp(self.scale_range) * random.uniform(1)[:, 0]
        # MotionBERT's quirk: the scores stay in COCO's order, and with the person that they were given to.
        score = persons.spread(score.astype(np.float32))[..., None]
        return {'keypoint': crop_scale(np.concatenate([keypoint, score], axis=-1), ratio)}

    def _keypoint_3d(self, clip: np.ndarray, random: ClipRandom | None) -> dict[str, np.ndarray]:
        persons = _Persons.of(self.store, clip, self.max_persons)
        frames = self._frames(clip, random)
        keypoint = self._tracked(persons.spread(self._read(persons, frames)[0]), clip, frames).astype(np.float32)
        present = (keypoint != 0).any(axis=-1)
        keypoint = centre_and_scale(keypoint, present)
        if self.random_move and random is not None:
            keypoint = random_move(keypoint, random.uniform(2 * MOVES_3D).reshape(len(clip), MOVES_3D, 2))
            keypoint *= present[..., None]
        return {'keypoint': keypoint}

    def _frames(self, clip: np.ndarray, random: ClipRandom | None) -> np.ndarray:
        """Frame numbers (N, T); of validation clips with several samples (N, test_clips * T)."""
        total_frames, T = self.store.total_frames[clip], self.clip_len
        if self.input != 'heatmap':
            return resampled_frames(total_frames, T, None if random is None else random.uniform(T))
        if random is None:
            return np.stack([evaluation_frames(int(count), T, self.test_clips) for count in total_frames])
        frames = train_frames(total_frames, T, random.uniform(T + 1))
        return shifted_frames(frames, self.temporal_shift, random.uniform(1)) if self.temporal_shift else frames

    def _read(self, persons: '_Persons', frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (P, T, V, C) and scores (P, T, V) of the chosen frames, as the store has them."""
        return self.store.gather(persons.first_row[:, None] + frames[persons.clip])

    def _tracked(self, keypoint: np.ndarray, clip: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Exchanges the first two persons of keypoint (N, M, T, V, C) where the file has mixed them up."""
        pair = np.flatnonzero(self.store.num_persons[clip] >= 2)
        if self.max_persons < 2 or not len(pair):
            return keypoint
        total_frames = self.store.total_frames[clip[pair]]
        start = np.cumsum(total_frames) - total_frames
        clip_of = np.repeat(np.arange(len(pair)), total_frames)  # of every frame of every pair
        first_row = self.store.first_row[clip[pair]][clip_of] + np.arange(len(clip_of)) - start[clip_of]
        tracks = [self.store.gather(first_row + person * total_frames[clip_of])[0] for person in (0, 1)]
        if self.input == 'keypoint_2d':
            tracks = [to_camera(track[:, None], self.store.img_shape[clip[pair]][clip_of])[:, 0] for track in tracks]
        swapped = identity_swaps(*tracks, total_frames)[start[:, None] + frames[pair]]  # (pairs, T)
        keypoint[pair, :2] = np.where(swapped[:, None, :, None, None], keypoint[pair, 1::-1], keypoint[pair, :2])
        return keypoint

    def _either_way(self, most: float, random: ClipRandom | None, count: int) -> np.ndarray:
        """A number for each clip, (N,), between -most and most; 0 in validation."""
        return np.zeros(count) if random is None else most * (2 * random.uniform(1)[:, 0] - 1)


@dataclass(frozen=True)
class _Persons:
    """The persons of a batch, one row each: clip after clip, in it person after person.

    count: (N,) of each clip. clip: (P,) place of a person's clip in the batch. number: (P,) of the person in its clip.
    first_row: (P,) where the person begins in the store. limit: persons of a clip at most.
    """

    count: np.ndarray
    clip: np.ndarray
    number: np.ndarray
    first_row: np.ndarray
    limit: int

    @classmethod
    def of(cls, store: Store, clip: np.ndarray, limit: int) -> Self:
        count = np.minimum(store.num_persons[clip], limit)
        clip_of = np.repeat(np.arange(len(clip)), count)
        number = np.arange(len(clip_of)) - np.repeat(np.cumsum(count) - count, count)
        first_row = store.first_row[clip][clip_of] + number * store.total_frames[clip][clip_of]
        return cls(count, clip_of, number, first_row, limit)

    def spread(self, rows: np.ndarray) -> np.ndarray:
        """(P, ...) -> (N, M, ...), zeros for absent persons."""
        full = np.zeros((len(self.count), self.limit, *rows.shape[1:]), rows.dtype)
        full[self.clip, self.number] = rows
        return full


def _list_name(benchmark: str | list[str], split: str) -> str:
    if isinstance(benchmark, str):
        return f'{benchmark}_{split}'
    if len(benchmark) != 2:
        raise UserError(f'data.benchmark is {benchmark}; two list names are needed: [train, val].')
    return benchmark[split == 'val']
