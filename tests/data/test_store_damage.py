"""Stores with any damage: what is opened is what the pickle holds, or what is wrong is named; nothing ends the process.

The numbers of keypoints and scores are not summed up, as there may be hundreds of gigabytes of them: changes in them
that leave the size as it was are seen as other numbers.
"""

import contextlib
import copy
import gc
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data import store as store_module
from lib.data.store import HEADER_BYTES, INDEX, META_BYTES, fingerprint, open_store, write_meta
from tests.annotations import make_3d_annotations, make_annotations

CASES = int(os.environ.get('HYPOTHESIS_CASES', 200))  # of each property
SECONDS, MEGABYTES = 2, 500
many = settings(max_examples=CASES, deadline=None)


@pytest.fixture(autouse=True, scope='module')
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda _: None)
        yield


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """A pickle of one shard, one in 3D, a folder of pickles that makes three shards; with copies of their stores."""
    folder = tmp_path_factory.mktemp('sets')
    flat = make_annotations([3, 4, 2], persons=[1, 2, 1])
    flat['split']['empty'] = []
    single = make_annotations([3, 4, 2], seed=1)
    for annotation in single['annotations']:
        for key in ('keypoint', 'keypoint_score'):
            annotation[key] = annotation[key].astype(np.float32) / 3
    (folder / 'many').mkdir()
    for name, data in {
        'flat.pkl': flat,
        'depth.pkl': make_3d_annotations([3, 2]),
        'many/a.pkl': flat,
        'many/b.pkl': single,
        'many/c.pkl': flat,
    }.items():
        (folder / name).write_bytes(pickle.dumps(data))
    return [Packed(folder / name) for name in ('flat.pkl', 'depth.pkl', 'many')]


class Packed:
    """A set, its store, and what is in it."""

    def __init__(self, ann_file):
        self.ann_file = ann_file
        self.content = content(open_store(ann_file))
        self.folder = ann_file.with_suffix('.store')
        self.sound = self.folder.with_suffix('.sound')
        self.keep()
        self.files = sorted(self.bytes)

    def keep(self):
        shutil.rmtree(self.sound, ignore_errors=True)
        shutil.copytree(self.folder, self.sound)
        self.bytes = {file.name: file.read_bytes() for file in self.sound.iterdir()}

    def restore(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, content in self.bytes.items():
            (self.folder / name).write_bytes(content)

    def open(self):
        """What is in the store now, and the texts of the warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            found = content(open_store(self.ann_file))
        return found, [str(warning.message) for warning in caught]

    def write_meta(self, meta):
        """As who wants it to be believed."""
        if isinstance(meta, dict):
            meta.pop('checksum', None)
            meta['checksum'] = zlib.crc32(json.dumps(meta).encode())
        (self.folder / 'meta.json').write_text(json.dumps(meta))


def content(store):
    """Everything that a store holds: of its numbers, and beside them."""
    clips = range(len(store.label))
    rows = [
        np.arange(first, first + persons * frames)
        for first, persons, frames in zip(store.first_row, store.num_persons, store.total_frames, strict=True)
    ]
    return {
        'numbers': [[array.tobytes() for array in store.gather(of_clip)] for of_clip in rows],
        'names': [store.name(clip) for clip in clips],
        'splits': {name: array.tolist() for name, array in store.splits.items()},
        'types': [(array.dtype, array.shape) for array in store.keypoints + store.scores],
        **{name: getattr(store, name).tolist() for name in INDEX},
    }


def without(found, *keys):
    return {key: value for key, value in found.items() if key not in keys}


# --- any change of any file ------------------------------------------------------------------------------------------


@st.composite
def damages(draw, size):
    """(what to do, with what): one change of a file."""
    place = st.integers(0, size - 1)
    what = draw(st.sampled_from(['cut', 'flip', 'extend', 'insert', 'delete', 'folder', 'link', 'swap']))
    value = {
        'cut': place,
        'flip': st.lists(st.tuples(place, st.integers(1, 255)), min_size=1, max_size=3, unique_by=lambda flip: flip[0]),
        'extend': st.binary(min_size=1, max_size=200) | st.just(2**20),
        'insert': st.tuples(place, st.binary(min_size=1, max_size=9)),
        'link': st.sampled_from(['same', 'nowhere', 'itself', 'endless', 'folder']),
        'folder': st.booleans(),
        'swap': st.integers(1, 50),
    }.get(what, st.none())
    return what, draw(value)


def damage(packed, name, what, value):
    path = packed.folder / name
    data = bytearray(path.read_bytes())
    if what == 'cut':
        path.write_bytes(data[:value])
    elif what == 'flip':
        for place, mask in value:
            data[min(place, len(data) - 1)] ^= mask  # another file may lie there now
        path.write_bytes(data)
    elif what == 'extend' and isinstance(value, int):
        os.truncate(path, len(data) + value)
    elif what == 'extend':
        path.write_bytes(data + value)
    elif what == 'insert':
        path.write_bytes(data[: value[0]] + value[1] + data[value[0] :])
    elif what == 'swap':
        other = packed.folder / packed.files[(packed.files.index(name) + value) % len(packed.files)]
        if is_plain(other):  # what a link leads to might never end
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
    else:
        path.unlink()
        if what == 'folder':
            path.mkdir()
            if value:
                (path / 'meta.json').write_text('{}')
        elif what == 'link':
            targets = {'same': packed.sound / name, 'itself': path, 'endless': '/dev/zero', 'folder': packed.sound}
            path.symlink_to(targets.get(value, 'nowhere'))


def is_plain(path):
    return path.is_file() and not path.is_symlink()


def changes(packed):
    """The files that differ from those of the sound store, and whether all they differ in are numbers of shards."""
    found, numbers = [], True
    for name in packed.files:
        path, sound = packed.folder / name, packed.bytes[name]
        plain = is_plain(path) and path.stat().st_size == len(sound)
        now = path.read_bytes() if plain else b''
        if now != sound:
            found.append(name)
            shard = name.startswith(('keypoint', 'score'))
            numbers &= plain and shard and now[:HEADER_BYTES] == sound[:HEADER_BYTES]
    return found, numbers


@many
@given(data=st.data())
def test_whatever_becomes_of_a_file_what_is_opened_is_what_the_pickle_holds(sets, data):
    packed = data.draw(st.sampled_from(sets), 'set')
    packed.restore()
    for name in data.draw(st.lists(st.sampled_from(packed.files), min_size=1, max_size=2, unique=True), 'files'):
        what, value = data.draw(damages(len(packed.bytes[name])), name)
        damage(packed, name, what, value)
    changed, numbers = changes(packed)
    found, warned = packed.open()
    if numbers:
        assert without(found, 'numbers') == without(packed.content, 'numbers')
        assert warned == []
    else:
        assert found == packed.content
        if changed and changed != ['meta.json']:  # a space may have become another
            assert len(warned) == 1
        assert all(text.startswith(str(packed.folder)) for text in warned)
        assert packed.open() == (packed.content, [])


# --- any meta.json ---------------------------------------------------------------------------------------------------

odd = st.sampled_from([10**9, 2**31, 2**63, 10**400, -1, True, '../flat.pkl', '/etc/passwd', '\ud800', 'label.npy'])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | odd,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=6,
)


def edit(meta, data):
    """Puts something else in one place of meta.json; returns the key above it."""
    key = data.draw(st.sampled_from([*meta, 'another']), 'key')
    owner, place = meta, key
    while isinstance(owner.get(place) if isinstance(owner, dict) else owner[place], dict | list) and data.draw(
        st.booleans(), 'into it'
    ):
        owner = owner[place]
        if not owner:
            return key
        place = data.draw(st.sampled_from([*owner] if isinstance(owner, dict) else range(len(owner))), 'place')
    if data.draw(st.integers(0, 4), 'or taken away') == 0 and (isinstance(owner, list) or place in owner):
        del owner[place]
    elif isinstance(owner, dict) and data.draw(st.integers(0, 4), 'or renamed') == 0 and place in owner:
        owner[data.draw(odd.map(str) | st.text(max_size=9), 'name')] = owner.pop(place)
    else:
        owner[place] = data.draw(json_values, 'value')
    return key


@many
@given(data=st.data())
def test_any_edit_of_meta_with_a_checksum_made_right_is_seen(sets, data):
    packed = data.draw(st.sampled_from(sets), 'set')
    packed.restore()
    sound = json.loads((packed.folder / 'meta.json').read_text())
    meta = copy.deepcopy(sound)
    edited = {edit(meta, data) for _ in range(data.draw(st.integers(1, 2), 'edits'))}
    packed.write_meta(meta)
    found, warned = packed.open()
    assert len(warned) <= 1
    assert all(text.startswith(str(packed.folder)) for text in warned)
    assert without(found, 'splits') == without(packed.content, 'splits')
    if 'splits' not in edited:
        assert found['splits'] == packed.content['splits']
    elif found['splits'] != packed.content['splits']:  # nothing but their names can be made up
        assert list(found['splits']) == meta['splits']
        assert list(found['splits'].values()) == list(packed.content['splits'].values())


@many
@given(data=st.data())
def test_anything_in_place_of_meta_is_seen(sets, data):
    packed = data.draw(st.sampled_from(sets[:2]), 'set')
    packed.restore()
    written = data.draw(json_values | st.binary(max_size=40), 'meta.json')
    if isinstance(written, bytes):
        (packed.folder / 'meta.json').write_bytes(written)
    else:
        if isinstance(written, dict) and data.draw(st.booleans(), 'of this kind'):
            written = {'magic': store_module.MAGIC, 'format': store_module.FORMAT} | written
            written['source'] = fingerprint(packed.ann_file)
        packed.write_meta(written)
    found, warned = packed.open()
    assert found == packed.content
    assert len(warned) <= 1


@many
@given(data=st.data())
def test_rows_of_an_index_that_is_made_up_are_numbers_or_refused(sets, data):
    packed = data.draw(st.sampled_from(sets), 'set')
    packed.restore()
    numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 40)
    for name in data.draw(st.lists(st.sampled_from(list(INDEX)), min_size=1, max_size=2), 'files'):
        array = np.load(packed.folder / f'{name}.npy', mmap_mode='r+')
        place = data.draw(st.integers(0, array.size - 1), 'place')
        array.reshape(-1)[place] = np.int64(data.draw(numbers, 'number')).astype(array.dtype)
        del array
    splits, layout, shards = (
        json.loads((packed.folder / 'meta.json').read_text())[key] for key in ('splits', 'layout', 'shards')
    )
    write_meta(packed.folder, fingerprint(packed.ann_file), splits, shards, layout)
    store = open_store(packed.ann_file)
    rows = store.first_row[:, None] + np.arange(3)
    for some in (store.first_row, rows, *rows[:, None]):
        try:
            keypoint, score = store.gather(some)
        except ValueError as error:
            assert str(packed.folder) in str(error)  # noqa: PT017 either is right
        else:
            assert keypoint.shape[: some.ndim] == score.shape[: some.ndim] == some.shape


# --- single cases ----------------------------------------------------------------------------------------------------


def limited(packed):
    """Opens a store, in a process of its own that is given little; ends with 0 where all of it is right."""
    with open('/proc/self/statm') as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEGABYTES * 10**6,) * 2)
    gc.freeze()  # else all that the tests hold is looked through again and again
    start = time.process_time()
    found, warned = packed.open()
    seconds = time.process_time() - start
    assert found == packed.content
    assert len(warned) == 1
    assert seconds < SECONDS, seconds


def assert_is_healed(packed):
    process = multiprocessing.get_context('fork').Process(target=limited, args=(packed,))
    process.start()
    process.join(30)  # whatever else the machine does
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0


@pytest.mark.parametrize('name', ['keypoint_0000', 'score_0000', 'first_row', 'frame_dir', 'split_0000'])
@pytest.mark.parametrize('left', [0, 100, HEADER_BYTES, HEADER_BYTES + 1])
def test_a_file_shorter_than_its_header_says_is_not_mapped(sets, name, left):
    packed = sets[0]
    packed.restore()
    os.truncate(packed.folder / f'{name}.npy', left)
    assert_is_healed(packed)


@pytest.mark.parametrize('name', ['meta.json', 'label.npy', 'keypoint_0000.npy'])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(sets, name):
    sets[0].restore()
    (sets[0].folder / name).unlink()
    os.mkfifo(sets[0].folder / name)
    assert_is_healed(sets[0])


def sparse(packed, name, dtype, item, size):
    """A file of about `size` bytes that takes no room, with a header, a size and a checksum that are right."""
    shape = size // store_module._item_bytes(np.dtype(dtype), item), *item
    header = store_module._npy_header(np.dtype(dtype), shape)
    with (packed.folder / f'{name}.npy').open('wb') as file:
        file.write(header)
        file.truncate(store_module._npy_bytes(np.dtype(dtype), shape))
        return [file.tell(), zlib.crc32(header)]


ABSURD = {
    'magic': lambda meta: meta.update(magic='something else'),
    'shards': lambda meta: meta.update(shards=10**9),
    'shards beyond numbers': lambda meta: meta.update(shards=10**4000),
    'joints': lambda meta: meta.update(layout=[10**4000, 2]),
    'splits': lambda meta: meta.update(splits=[str(i) for i in range(3 * 10**5)]),
    'splits of one name': lambda meta: meta.update(splits=['xsub_train'] * len(meta['splits'])),
    'splits without a name': lambda meta: meta.update(splits=list(range(len(meta['splits'])))),
    'splits with files': lambda meta: meta.update(
        splits=[str(i) for i in range(40_000)],
        files=meta['files'] | {f'split_{i:04d}.npy': [128, 0] for i in range(40_000)},
    ),
    'files': lambda meta: meta.update(files={str(i): [1, 1] for i in range(10**5)}),
    'path': lambda meta: meta['files'].update({'../../secret.npy': meta['files'].pop('label.npy')}),
    'no size': lambda meta: meta['files'].update({'label.npy': None}),
    'size': lambda meta: meta['files'].update({'label.npy': [2**62, 0]}),
    'many values': lambda meta: meta.update(shards=[{}] * (META_BYTES // 5)),
}


@pytest.mark.parametrize('case', ABSURD)
def test_absurd_meta_with_a_right_checksum_costs_nothing(sets, case):
    packed = sets[0]
    packed.restore()
    meta = json.loads((packed.folder / 'meta.json').read_text())
    ABSURD[case](meta)
    packed.write_meta(meta)
    assert_is_healed(packed)


@pytest.mark.parametrize('text', ['[' * 10**6, '{"a":' * 10**5, '9' * 10**6, '"\\ud800"', '\ufeff{}', 'NaN'])
def test_text_that_is_no_meta_costs_nothing(sets, text):
    sets[0].restore()
    (sets[0].folder / 'meta.json').write_text(text)
    assert_is_healed(sets[0])


def test_a_huge_meta_is_not_read(sets):
    sets[0].restore()
    os.truncate(sets[0].folder / 'meta.json', 2**40)
    assert_is_healed(sets[0])


@pytest.mark.parametrize(
    ('name', 'dtype', 'item'),
    [('split_0000', np.int32, ()), ('label', np.int64, ()), ('keypoint_0000', np.float16, (17, 2))],
)
def test_a_huge_file_with_a_header_and_a_checksum_made_right_is_not_read(sets, name, dtype, item):
    packed = sets[0]
    packed.restore()
    meta = json.loads((packed.folder / 'meta.json').read_text())
    meta['files'][f'{name}.npy'] = sparse(packed, name, dtype, item, 2**40)
    packed.write_meta(meta)
    assert_is_healed(packed)


@pytest.mark.parametrize('name', ['meta.json', 'label.npy', 'keypoint_0000.npy'])
def test_a_damaged_store_is_packed_again_with_one_warning_that_names_the_file(sets, name):
    packed = sets[2]
    packed.restore()
    path = packed.folder / name
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf'{name} .*\. .*many is packed again') as caught:
        open_store(packed.ann_file)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert packed.open() == (packed.content, [])
    assert sorted(file.name for file in packed.folder.iterdir()) == packed.files


def test_other_types_or_shapes_in_a_sound_file_are_seen(sets):
    packed = sets[0]
    label = np.load(packed.sound / 'label.npy')
    keypoint = np.load(packed.sound / 'keypoint_0000.npy')
    split = np.load(packed.sound / 'split_0000.npy')
    for name, array in {
        'label': [label.astype(np.float64), label.astype('>i8'), label[:, None], label[:2], label.astype(object)],
        'keypoint_0000': [keypoint.view(np.int16), keypoint[:-1], keypoint[..., :1], np.asfortranarray(keypoint)],
        'split_0000': [np.zeros(4, np.int32), split.astype(np.int64), split[None]],
    }.items():
        for other in array:
            packed.restore()
            np.save(packed.folder / f'{name}.npy', other)
            meta = json.loads((packed.folder / 'meta.json').read_text())
            file = (packed.folder / f'{name}.npy').read_bytes()
            covered = file[:HEADER_BYTES] if name.startswith('keypoint') else file
            meta['files'][f'{name}.npy'] = [len(file), zlib.crc32(covered)]
            packed.write_meta(meta)
            found, warned = packed.open()
            assert found == packed.content
            assert len(warned) == 1


def test_single_numbers_that_are_said_to_be_twice_as_many_half_ones_are_seen(sets):
    packed = sets[2]
    packed.restore()
    for name, item in {'keypoint_0001': (17, 2), 'score_0001': (17,)}.items():
        count = len(np.load(packed.sound / f'{name}.npy'))
        with (packed.folder / f'{name}.npy').open('r+b') as file:
            file.write(store_module._npy_header(np.dtype(np.float16), (2 * count, *item)))
    found, warned = packed.open()
    assert found == packed.content
    assert len(warned) == 1


@pytest.mark.parametrize(
    'change',
    [
        lambda packed: os.utime(packed.ann_file),
        lambda packed: shutil.rmtree(packed.folder),
        lambda packed: packed.write_meta(json.loads((packed.folder / 'meta.json').read_text()) | {'format': 2}),
        lambda packed: (packed.folder / 'meta.json').write_text(
            json.dumps({'source': {'format': 2, 'files': {}}, 'splits': ['xsub_train'], 'shards': 1})
        ),
    ],
    ids=['pickle', 'none', 'format', 'before there were checksums'],
)
def test_a_store_that_is_out_of_date_is_packed_again_without_a_warning(sets, change):
    packed = sets[0]
    packed.restore()
    change(packed)
    before = os.stat(packed.ann_file).st_mtime_ns
    assert packed.open() == (packed.content, [])
    meta = json.loads((packed.folder / 'meta.json').read_text())
    assert meta['source'] == {'flat.pkl': [packed.ann_file.stat().st_size, before]}
    assert meta['format'] == store_module.FORMAT
    packed.keep()


def test_what_another_process_healed_is_taken(sets, monkeypatch):
    packed = sets[0]
    packed.restore()
    (packed.folder / 'label.npy').unlink()

    @contextlib.contextmanager
    def healed_meanwhile(_):
        packed.restore()
        yield

    monkeypatch.setattr(store_module, '_packing_lock', healed_meanwhile)
    monkeypatch.setattr(store_module, '_pack', None)  # would fail if called
    assert packed.open() == (packed.content, [])


def test_a_disk_that_keeps_nothing_is_named(sets, monkeypatch):
    packed = sets[0]
    packed.restore()
    original = store_module._pack

    def lose(ann_file, folder):
        original(ann_file, folder)
        os.truncate(folder / 'label.npy', 3)

    monkeypatch.setattr(store_module, '_pack', lose)
    (packed.folder / 'label.npy').unlink()
    with (
        pytest.warns(UserWarning, match=r'label\.npy is missing'),
        pytest.raises(ValueError, match=r'label\.npy has 3 bytes, and \d+ were written, .* check the disk'),
    ):
        open_store(packed.ann_file)


def test_a_pickle_that_changes_meanwhile_is_named(sets, monkeypatch):
    packed = sets[0]
    shutil.rmtree(packed.folder)
    original = store_module._pack
    with monkeypatch.context() as patch:
        patch.setattr(store_module, '_pack', lambda *args: (original(*args), os.utime(packed.ann_file)))
        with pytest.raises(ValueError, match=r'flat\.pkl was changed while it was packed'):
            open_store(packed.ann_file)
    open_store(packed.ann_file)
    packed.keep()


def test_a_file_where_the_store_goes_is_named_and_kept(sets):
    packed = sets[0]
    shutil.rmtree(packed.folder)
    packed.folder.write_text('mine')
    with pytest.raises(ValueError, match=r'flat\.store is not a folder.*move it away'):
        open_store(packed.ann_file)
    assert packed.folder.read_text() == 'mine'
    packed.folder.unlink()


@pytest.mark.parametrize('which', [0, 2])
def test_a_row_beyond_the_end_names_the_folder_and_the_remedy(sets, which):
    packed = sets[which]
    packed.restore()
    store = open_store(packed.ann_file)
    last = sum(len(shard) for shard in store.keypoints) - 1
    assert store.gather(np.array([last]))[0].shape[0] == 1
    for rows in (np.array([last + 1]), np.array([[last, last + 1]])):
        with pytest.raises(ValueError, match=rf'{packed.folder.name}: .* Delete the folder'):
            store.gather(rows)


def test_files_then_folder_then_name_reach_the_disk(write_pickle, tmp_path, monkeypatch):
    path = write_pickle(make_annotations([3, 4]))
    steps = []

    def synced(descriptor):
        steps.append(os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')))

    monkeypatch.setattr(os, 'fsync', synced)
    open_store(path)
    files = sorted(file.name for file in (tmp_path / 'set.store').iterdir())
    assert sorted(steps[:-2]) == files
    assert steps[-2:] == ['set.packing', tmp_path.name]


def test_a_set_of_too_many_files_for_one_meta_is_refused(tmp_path):
    with store_module.StoreWriter(tmp_path) as writer:
        writer.add(make_annotations([3])['annotations'][0])
    with pytest.raises(ValueError, match='too many for one set'):
        writer.write_meta({f'{i:050d}.pkl': [2**40, 2**60] for i in range(50_000)})
    assert not (tmp_path / 'meta.json').exists()
