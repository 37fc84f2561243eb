"""The packed form of a PYSKL pickle: a folder of flat .npy arrays beside it, made once and memory-mapped afterwards.

    keypoint_0000.npy (R, V, C)   float16 as PYSKL writes (float32 if the pickle has more); R = frames of all persons:
                                  clip after clip, in it person after person, in it frame after frame
    score_0000.npy    (R, V)      0 for a missing joint
    first_row.npy     (N,) int64  where clip i begins
    total_frames.npy  (N,) int32
    num_persons.npy   (N,) int32
    label.npy         (N,) int64
    img_shape.npy     (N, 2) int32, (h, w) in pixels; zeros for 3D
    frame_dir.npy     uint8, the UTF-8 names of all clips in a row
    name_end.npy      (N,) int64  where clip i's name ends in it
    split_0000.npy    (S,) int32  the clips of the first split, in the order of the pickle; split_0001.npy of the second
    meta.json         which pickle it was made from, the names of its splits, the number of shards, (V, C); size and
                      checksum of each file, of the header alone for keypoints and scores; a checksum of itself

Keypoints and scores go on in keypoint_0001.npy, score_0001.npy, ... (shards) where a file would grow beyond SHARD_BYTES
or the type of the numbers changes; rows are counted over all shards, and a clip lies in one of them.

Sizes, headers (each of HEADER_BYTES, and known to the byte) and checksums are compared before anything is mapped; a
store in which they differ is packed again. What is mapped must keep its length: the first touch of what a file lacks
would end the process.

However many processes open it, they share one copy in the page cache.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import math
import mmap
import os
import shutil
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from lib.data.pickles import load_annotations, require_pickle
from lib.errors import UserError, shown, shown_text
from lib.files import sync_folder

MAGIC = 'packed skeletons'
FORMAT = 3  # raise it whenever the arrays change their meaning
SHARD_BYTES = 4 * 2**30  # of keypoints
BUFFER_BYTES = 2**20  # of every file that is being written or summed up
META_BYTES = 2**22  # of meta.json, at most: it takes some 90 for a shard, 50 for a pickle
HEADER_BYTES = 128
INDEX = {  # the arrays that hold something of each clip: type and shape of it
    'first_row': (np.int64, ()),
    'total_frames': (np.int32, ()),
    'num_persons': (np.int32, ()),
    'label': (np.int64, ()),
    'img_shape': (np.int32, (2,)),
    'name_end': (np.int64, ()),
}
log = logging.getLogger(__name__)


class DamagedStoreError(ValueError):
    """A store that must not be mapped. The text names the file and what is wrong with it."""


@dataclass(frozen=True)
class Store:
    """The mapped arrays (see the module's docstring) of one set, and the clips (int32 indices) of each split.

    folder: where they lie. keypoints, scores: one array of each shard.
    """

    ann_file: Path
    folder: Path
    keypoints: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    first_row: np.ndarray
    total_frames: np.ndarray
    num_persons: np.ndarray
    label: np.ndarray
    img_shape: np.ndarray
    frame_dir: np.ndarray
    name_end: np.ndarray
    splits: dict[str, np.ndarray]

    @property
    def num_joints(self) -> int:
        return self.keypoints[0].shape[1]

    @property
    def is_3d(self) -> bool:
        return self.keypoints[0].shape[2] == 3

    @property
    def nbytes(self) -> int:
        """Bytes of all keypoints and scores."""
        return sum(shard.nbytes for shard in self.keypoints + self.scores)

    def name(self, clip: int) -> str:
        """frame_dir of a clip."""
        start = self.name_end[clip - 1] if clip else 0
        return self.frame_dir[start : self.name_end[clip]].tobytes().decode()

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (*rows.shape, V, C) and scores (*rows.shape, V) of the rows: copies, of one type in all the store.

        rows: (P,) or (P, T) int; the T rows of an item lie in one shard, as the frames of a clip do.
        Raises UserError for rows beyond the end.
        """
        try:
            keypoint = self._gather(self._flat_keypoints, rows).reshape(*rows.shape, *self.keypoints[0].shape[1:])
            return keypoint, self._gather(self.scores, rows)
        except IndexError as error:
            raise UserError(
                f'{self.folder}: its index names a row that its keypoints lack ({error}). Delete the folder: it is '
                'packed again at the next start.'
            ) from None

    def _gather(self, shards: tuple[np.ndarray, ...], rows: np.ndarray) -> np.ndarray:
        if len(shards) == 1:
            return shards[0].take(rows, axis=0)
        found = np.empty((*rows.shape, shards[0].shape[1]), np.result_type(*shards))
        shard_of = np.searchsorted(self._shard_start, rows if rows.ndim == 1 else rows[:, 0], side='right') - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            found[here] = shards[shard].take(rows[here] - self._shard_start[shard], axis=0)
        return found

    @cached_property
    def _flat_keypoints(self) -> tuple[np.ndarray, ...]:
        return tuple(shard.reshape(len(shard), -1) for shard in self.keypoints)  # a frame is one contiguous copy

    @cached_property
    def _shard_start(self) -> np.ndarray:
        lengths = [len(shard) for shard in self.keypoints]
        return np.cumsum([0, *lengths[:-1]])


def open_store(ann_file: str | os.PathLike, store_dir: str | os.PathLike | None = None) -> Store:
    """Maps the packed form of a PYSKL pickle; packs it first where there is none or the pickle has changed.

    ann_file: a pickle, or a folder: all its *.pkl files, sorted by name, are one set then, whose lists of the same name
    are joined. Each list names clips of its own file. They are read one after another, so that memory is bounded by the
    largest. store_dir: where the packed form lies, the folder that `ann_file` lies in by default. One process packs,
    others wait for it. A packed form that is damaged is packed again, with a warning that names the file.
    Raises UserError (see `load_annotations`); a failed packing leaves nothing behind.
    """
    ann_file = Path(ann_file)
    folder = store_folder(ann_file, store_dir)
    with contextlib.suppress(DamagedStoreError):
        if store := open_packed(ann_file, folder):
            return store
    with _packing_lock(folder):
        try:
            if store := open_packed(ann_file, folder):  # another process packed it while this one waited
                return store
        except DamagedStoreError as damage:
            warnings.warn(f'{damage}. {ann_file} is packed again.', stacklevel=2)
        _pack(ann_file, folder)
        try:
            store = open_packed(ann_file, folder)
        except DamagedStoreError as damage:
            raise UserError(
                f'{damage}, though it was packed just now: check the disk, or name another folder with '
                '`--set data.store_dir=FOLDER`.'
            ) from None
    if store is None:
        raise UserError(f'{ann_file} was changed while it was packed. Start again once it is complete.')
    return store


def store_folder(ann_file: Path, store_dir: str | os.PathLike | None = None) -> Path:
    """Where the packed form of a pickle or of a folder of pickles lies."""
    ann_file = ann_file.absolute()
    name = ann_file.name if ann_file.is_dir() else ann_file.stem
    return (Path(store_dir) if store_dir else ann_file.parent) / f'{name}.store'


def pickles_of(ann_file: Path) -> list[Path]:
    """The pickle, or those of a folder, in their order. Raises UserError where there are none."""
    if not ann_file.is_dir():
        require_pickle(ann_file)
        return [ann_file]
    if files := sorted(file for file in ann_file.glob('*.pkl') if file.is_file()):
        return files
    raise UserError(f'{ann_file} is a folder without a *.pkl file. Name a PYSKL pickle, or a folder of them.')


def fingerprint(ann_file: Path) -> dict[str, Any]:
    """What tells whether a store was made from these very pickles. Raises UserError where there are none."""
    status = {file.name: file.stat() for file in pickles_of(ann_file)}
    return {name: [s.st_size, s.st_mtime_ns] for name, s in status.items()}


def open_packed(ann_file: Path, folder: Path) -> Store | None:
    """The mapped store, or None where there is none that was made from these very pickles. Raises DamagedStoreError."""
    meta = _read_meta(folder, fingerprint(ann_file))
    if meta is None:
        return None
    # The system reads 128 kB around a page that it lacks: many times a clip, where most clips are read from the disk.
    beyond_memory = meta['shards'] > 1 and hasattr(mmap, 'MADV_RANDOM')
    arrays = {}
    with contextlib.ExitStack() as stack:  # what was checked is what is mapped, whatever lies there meanwhile
        found = _checked_files(folder, meta, stack)
        for name, (file, dtype, shape) in found.items():
            mapping = mmap.mmap(file.fileno(), _npy_bytes(dtype, shape), access=mmap.ACCESS_READ)
            file.close()  # the mapping has a handle of its own, and a process may have a thousand
            if beyond_memory and _is_shard(name):
                mapping.madvise(mmap.MADV_RANDOM)
            arrays[name] = np.ndarray(shape, dtype, mapping, HEADER_BYTES)
    return Store(
        ann_file,
        folder,
        keypoints=tuple(arrays[f'keypoint_{i:04d}'] for i in range(meta['shards'])),
        scores=tuple(arrays[f'score_{i:04d}'] for i in range(meta['shards'])),
        frame_dir=arrays['frame_dir'],
        **{name: arrays[name] for name in INDEX},
        splits={name: arrays[f'split_{i:04d}'] for i, name in enumerate(meta['splits'])},
    )


# --- what makes a folder a store -------------------------------------------------------------------------------------


def write_meta(folder: Path, source: dict[str, Any], splits: list[str], shards: int, layout: tuple[int, int]) -> None:
    """Writes meta.json, which makes a folder of complete files a store.

    source: `fingerprint` of what it was made from. splits: their names. shards: how many. layout: (V, C).
    """
    meta = {
        'magic': MAGIC,
        'format': FORMAT,
        'source': source,
        'splits': splits,
        'shards': shards,
        'layout': list(layout),
        'files': {},
    }
    for name in _kinds(meta):
        with (folder / f'{name}.npy').open('rb') as file:
            meta['files'][f'{name}.npy'] = [os.fstat(file.fileno()).st_size, _checksum(file, name)]
    content = json.dumps(meta | {'checksum': _checksum_of(meta)})
    if len(content) > META_BYTES:
        raise UserError(f'{folder}: {shards} shards of {len(source)} files are too many for one set. Join the files.')
    (folder / 'meta.json').write_text(content)


def _kinds(meta: dict[str, Any]) -> dict[str, tuple[tuple[type, ...], tuple[int, ...]]]:
    """Every array of a store, by the name of its file: the types that it may have, the shape of an item."""
    joints, coordinates = meta['layout']
    floats = np.float16, np.float32
    kinds = {name: ((dtype,), shape) for name, (dtype, shape) in INDEX.items()}
    kinds['frame_dir'] = (np.uint8,), ()
    kinds |= {f'split_{i:04d}': ((np.int32,), ()) for i in range(len(meta['splits']))}
    for i in range(meta['shards']):
        kinds |= {f'keypoint_{i:04d}': (floats, (joints, coordinates)), f'score_{i:04d}': (floats, (joints,))}
    return kinds


def _is_shard(name: str) -> bool:
    return name.startswith(('keypoint', 'score'))


def _checksum(file: BinaryIO, name: str) -> int:
    """CRC-32 of a file; of its header alone where there may be hundreds of gigabytes behind it."""
    file.seek(0)
    if _is_shard(name):
        return zlib.crc32(file.read(HEADER_BYTES))
    checksum = 0
    while piece := file.read(BUFFER_BYTES):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _checksum_of(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta).encode())


def _read_meta(folder: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """meta.json, None where there is no store or it is of another format or source. Raises DamagedStoreError."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder, and the packed form of the data goes there: move it away.')
    path = folder / 'meta.json'
    with _regular_file(path) as file:
        content = file.read(META_BYTES + 1)
    if len(content) > META_BYTES:
        raise DamagedStoreError(f'{path} has more than {META_BYTES} bytes')
    try:
        meta = json.loads(content)
        if isinstance(meta, dict) and {'source'} <= meta.keys() <= {'source', 'splits', 'shards'}:
            return None  # as formats 1 and 2 wrote it
        sound = isinstance(meta, dict) and meta.pop('checksum', None) == _checksum_of(meta)
    except (ValueError, RecursionError) as error:
        raise DamagedStoreError(f'{path} cannot be read ({shown_text(str(error))})') from None
    if not sound or meta.get('magic') != MAGIC:
        raise DamagedStoreError(f'{path} is not what was written')
    if meta.get('format') != FORMAT or meta.get('source') != source:
        return None
    if not _has_form(meta):
        raise DamagedStoreError(f'{path} does not describe a store')
    return meta


def _has_form(meta: dict[str, Any]) -> bool:
    """Whether what meta.json says can be used at all, and names the files that it must name."""
    splits, shards, layout, files = (meta.get(key) for key in ('splits', 'shards', 'layout', 'files'))
    return (
        (type(files), type(splits), type(shards), type(layout)) == (dict, list, int, list)
        and shards > 0
        and len(files) == len(INDEX) + 1 + len(splits) + 2 * shards  # before so many names are made
        and all(type(value) is list and [type(number) for number in value] == [int, int] for value in files.values())
        and all(type(name) is str for name in splits)
        and len(set(splits)) == len(splits)
        and [type(number) for number in layout] == [int, int]
        and layout[0] > 0
        and layout[1] in (2, 3)
        and files.keys() == {f'{name}.npy' for name in _kinds(meta)}
    )


@contextlib.contextmanager
def _regular_file(path: Path) -> Iterator[BinaryIO]:
    """A file of a store, to read. Raises DamagedStoreError where there is none, or something else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise DamagedStoreError(f'{path} is missing') from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait, and a link leads anywhere
        raise DamagedStoreError(f'{path} is not a plain file')
    with path.open('rb') as file:
        yield file


def _checked_files(
    folder: Path, meta: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, tuple[BinaryIO, np.dtype, tuple[int, ...]]]:
    """Every file of the store, opened, with the type and shape of its array. Raises DamagedStoreError."""
    found = {}
    for name, (dtypes, item) in _kinds(meta).items():
        path = folder / f'{name}.npy'
        file = stack.enter_context(_regular_file(path))
        size, written = os.fstat(file.fileno()).st_size, meta['files'][path.name][0]
        if size != written:
            raise DamagedStoreError(f'{path} has {size} bytes, and {shown(written)} were written')
        header = file.read(HEADER_BYTES)
        for dtype in map(np.dtype, dtypes):
            shape = (size - HEADER_BYTES) // _item_bytes(dtype, item), *item
            if header == _npy_header(dtype, shape) and size == _npy_bytes(dtype, shape):
                found[name] = file, dtype, shape
        if name not in found:
            kind = ' or '.join(np.dtype(dtype).name for dtype in dtypes)
            raise DamagedStoreError(f'{path} does not begin as items {shown(item)} of {kind} in {size} bytes do')

    count = {name: shape[0] for name, (_, _, shape) in found.items()}
    clips, shards = count['label'], range(meta['shards'])
    rows = [count[f'keypoint_{i:04d}'] for i in shards]
    if not (
        all(count[name] == clips for name in INDEX)
        and [count[f'score_{i:04d}'] for i in shards] == rows
        and all(count[f'split_{i:04d}'] <= clips for i in range(len(meta['splits'])))
        and 0 < clips <= sum(rows)
        and min(rows) > 0
    ):
        raise DamagedStoreError(f'{folder}: its files disagree about the number of clips or of rows')

    for name, (file, _, _) in found.items():
        if _checksum(file, name) != meta['files'][f'{name}.npy'][1]:
            raise DamagedStoreError(f'{folder / name}.npy is not what was written: its checksum differs')
    return found


@contextlib.contextmanager
def _packing_lock(folder: Path) -> Iterator[None]:
    lock = folder.with_suffix('.lock')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open('w')
    except OSError as error:
        raise UserError(
            f'{folder.parent} cannot be written ({error.strerror}), and the packed form of the data must lie '
            'somewhere: name a folder with `--set data.store_dir=FOLDER`.'
        ) from None
    with file:  # the lock goes with the process, however it ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info('waiting for another process that packs %s', folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pack(ann_file: Path, folder: Path) -> None:
    log.info('packing %s into %s (once)', ann_file, folder)
    source = fingerprint(ann_file)  # before reading: a pickle replaced meanwhile is packed again next time
    temporary = folder.with_suffix('.packing')  # what a killed process left there is taken over: we hold the lock
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with StoreWriter(temporary) as writer:
            for file in pickles_of(ann_file):
                _add_pickle(writer, file)
        writer.write_meta(source)
        for file in temporary.iterdir():
            with file.open('rb') as written:
                os.fsync(written.fileno())
        sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f'{folder.parent} is full, and the packed form of {ann_file} takes as much room as the pickle: make room '
            'there, or name another folder with `--set data.store_dir=FOLDER`.'
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if writer.num_missing:
        warnings.warn(
            f'{ann_file}: {writer.num_missing} joints with coordinates or scores that are not finite (NaN) count as '
            'missing.',
            stacklevel=2,
        )


def _add_pickle(writer: 'StoreWriter', file: Path) -> None:
    data = load_annotations(file)
    annotations = data['annotations']
    layout = annotations[0]['keypoint'].shape[2:]
    if writer.layout not in (None, layout):
        raise UserError(
            f'{file} has (joints, coordinates) = {layout}, and the files of {file.parent} before it {writer.layout}; '
            'a folder holds one set of one layout. Move one of them to a folder of its own.'
        )

    def dtype(key: str) -> type:
        half = all(a[key].dtype == np.float16 for a in annotations if a.get(key) is not None)
        return np.float16 if half else np.float32

    first, dtypes = writer.num_clips, (dtype('keypoint'), dtype('keypoint_score'))
    for annotation in annotations:
        writer.add(annotation, *dtypes)
    frame_dirs = [annotation['frame_dir'] for annotation in annotations]
    for name, ids in data['split'].items():
        wanted = set(ids)
        writer.add_to_split(name, [first + i for i, frame_dir in enumerate(frame_dirs) if frame_dir in wanted])
        if lost := len(wanted.difference(frame_dirs)):
            warnings.warn(f'{file}: {lost} clips of split {name} have no annotation and are left out.', stacklevel=2)


class StoreWriter:
    """Writes a store as a stream: annotations are added one after another, and none is kept in memory.

        with StoreWriter(folder) as writer:
            writer.add(annotation)
            writer.add_to_split('xsub_train', [0])
        writer.write_meta(source)

    folder: an empty one. shard_bytes: of keypoints, at most, unless one clip alone has more.
    num_clips: clips added so far. num_missing: their joints that were not finite. layout: (V, C), None before the
    first clip.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.num_clips = self.num_missing = self.num_shards = 0
        self.layout: tuple[int, int] | None = None
        self._row = self._name_end = 0
        self._splits: dict[str, NpyStream] = {}
        self._shard: tuple[NpyStream, NpyStream] | None = None
        self._frame_dir = NpyStream(folder / 'frame_dir.npy', np.uint8)
        self._index = {name: NpyStream(folder / f'{name}.npy', *kind) for name, kind in INDEX.items()}

    def add(self, annotation: dict[str, Any], keypoint_dtype: type = np.float16, score_dtype: type = np.float16) -> int:
        """Adds a checked annotation (see `load_annotations`), its arrays in the given types; returns its number."""
        persons, frames, *layout = annotation['keypoint'].shape
        self.layout = self.layout or tuple(layout)
        assert self.layout == tuple(layout)
        count = persons * frames
        keypoint = annotation['keypoint'].reshape(count, *layout)
        score = annotation.get('keypoint_score')
        score = (keypoint != 0).any(axis=2) if score is None else score.reshape(count, layout[0])
        sound = np.isfinite(keypoint).all(axis=2) & np.isfinite(score)
        if not sound.all():
            self.num_missing += int((~sound).sum())
            keypoint, score = np.where(sound[..., None], keypoint, 0), np.where(sound, score, 0)
        for stream, rows in zip(self._shard_for(count, keypoint_dtype, score_dtype), (keypoint, score), strict=True):
            stream.append(rows)

        name = annotation['frame_dir'].encode()
        self._frame_dir.append(np.frombuffer(name, np.uint8))
        self._name_end += len(name)
        values = {
            'first_row': self._row,
            'total_frames': frames,
            'num_persons': persons,
            'label': annotation['label'],
            'img_shape': annotation.get('img_shape', (0, 0)),
            'name_end': self._name_end,
        }
        for key, value in values.items():
            self._index[key].append([value])
        self._row += count
        self.num_clips += 1
        return self.num_clips - 1

    def add_to_split(self, name: str, clips: Sequence[int]) -> None:
        """Adds clips, by their numbers, to the end of a split, which is made where it is new."""
        if name not in self._splits:
            self._splits[name] = NpyStream(self.folder / f'split_{len(self._splits):04d}.npy', np.int32)
        self._splits[name].append(clips)

    def _shard_for(self, count: int, *dtypes: type) -> 'tuple[NpyStream, NpyStream]':
        """The shard that takes `count` more rows: the last one, or a new one."""
        if self._shard is not None:
            keypoint, score = self._shard
            fits = (keypoint.count + count) * keypoint.item_bytes <= self.shard_bytes
            if fits and (keypoint.dtype, score.dtype) == dtypes:
                return self._shard
            for stream in self._shard:
                stream.close()
        self._shard = tuple(
            NpyStream(self.folder / f'{name}_{self.num_shards:04d}.npy', dtype, shape)
            for name, dtype, shape in zip(('keypoint', 'score'), dtypes, (self.layout, self.layout[:1]), strict=True)
        )
        self.num_shards += 1
        return self._shard

    def write_meta(self, source: dict[str, Any]) -> None:
        """Writes meta.json, which makes the closed folder a store. source: `fingerprint` of what it was made from."""
        write_meta(self.folder, source, list(self._splits), self.num_shards, self.layout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in itertools.chain(
            self._index.values(), self._splits.values(), self._shard or (), (self._frame_dir,)
        ):
            stream.close()


class NpyStream:
    """A .npy file that grows at its end: (count, *shape). Little of it is ever in memory."""

    def __init__(self, path: Path, dtype: type, shape: tuple[int, ...] = ()) -> None:
        self.dtype, self.shape, self.count = np.dtype(dtype), shape, 0
        self.item_bytes = _item_bytes(self.dtype, shape)
        self._file = path.open('wb', BUFFER_BYTES)
        self._write_header()

    def append(self, items: np.typing.ArrayLike) -> None:
        """Adds items (n, *shape), converted to the file's type."""
        items = np.ascontiguousarray(items, self.dtype)
        self._file.write(items.data)
        self.count += len(items)

    def append_zeros(self, count: int) -> None:
        """Adds items of zeros as a hole in the file, which takes no room on the disk."""
        self._file.truncate(self._file.tell() + count * self.item_bytes)
        self._file.seek(0, os.SEEK_END)
        self.count += count

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        self._file.write(_npy_header(self.dtype, (self.count, *self.shape)))


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Version 1.0 of the header of an array, of one length for all, so that it may be written again and compared."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    return (
        b'\x93NUMPY\x01\x00'
        + (HEADER_BYTES - 10).to_bytes(2, 'little')
        + text.ljust(HEADER_BYTES - 11).encode()
        + b'\n'
    )


def _item_bytes(dtype: np.dtype, item: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(item)


def _npy_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of the file of an array."""
    return HEADER_BYTES + _item_bytes(dtype, shape)
