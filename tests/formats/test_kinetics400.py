"""Conversion of a synthetic release of Kinetics-400, compared with a plain loop."""

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from lib.data.clips import Clips
from lib.data.pickles import load_annotations
from lib.errors import UserError
from lib.tools import make_pickle
from tests.formats.bodies import body

FILES, CLIPS = 12, 300


def make_release(folder: Path, clips: int = CLIPS, files: int = FILES) -> tuple[Path, Path, dict, dict]:
    """The index, the folder of kpfiles, and their content: persons appear and leave, some boxes score below .5.

    Kpfile 3 is missing, 4 is named by a path outside the folder; clip 7 is not in its kpfile, clip 8 has no good box.
    """
    random = np.random.default_rng(0)
    kpfiles, annotations = folder / 'release' / 'kpfiles', []
    kpfiles.mkdir(parents=True)
    contents: dict[str, dict] = {f'kp_{number:02d}.pkl': {} for number in range(files)}
    for clip in range(clips):
        number, frames = clip * files // clips, int(random.integers(10, 25))
        crowd = 14 if clip % 25 == 5 else 3
        counts = random.integers(0, crowd, frames) + (clip % 25 == 5) * (np.arange(frames) % 2) * 4
        counts[0] = max(counts[0], 1)
        inds = np.repeat(np.arange(frames), counts).astype(np.int16)
        poses = body(frames)[inds] + random.normal(0, 20, (len(inds), 1, 1)) * (1, 1, 0)
        poses[..., 2] = random.uniform(0.2, 1, poses.shape[:2])
        score = random.uniform(0.3, 1, len(inds)).astype(np.float16)
        score[0] = 0.9
        if clip == 8:
            score[:] = 0.4
        outside = '../elsewhere/' if number == 4 else 'data/k400/kpfiles/' if number % 2 else ''
        annotations.append(
            {
                'frame_dir': f'clip_{clip:03d}', 'label': clip % 4, 'total_frames': frames, 'img_shape': (720, 1280),
                'original_shape': (720, 1280), 'raw_file': f'{outside}kp_{number:02d}.pkl', 'frame_inds': inds,
                'box_score': score, 'valid': {0.5: len(set(inds[score >= 0.5]))},
            }
        )  # fmt: skip
        if clip != 7:
            contents[f'kp_{number:02d}.pkl'][f'clip_{clip:03d}'] = {'keypoint': poses.astype(np.float16)}
    for name, content in contents.items():
        (kpfiles / name).write_bytes(pickle.dumps(content))
    (kpfiles / 'kp_03.pkl').unlink()
    (folder / 'release' / 'elsewhere').mkdir()
    (kpfiles / 'kp_04.pkl').rename(folder / 'release' / 'elsewhere' / 'kp_04.pkl')
    names = [a['frame_dir'] for a in annotations]
    split = {'train': [n for i, n in enumerate(names) if i % 3], 'val': names[::3]}
    index = folder / 'k400_hrnet.pkl'
    index.write_bytes(pickle.dumps({'split': split, 'annotations': annotations}))
    return index, kpfiles, {a['frame_dir']: a for a in annotations}, contents


def by_plain_loop(annotation: dict, skeletons: np.ndarray, box_thr: float) -> list[list[np.ndarray]]:
    """The persons (17, 3) of each frame with persons."""
    frames = []
    for number in sorted(set(annotation['frame_inds'].tolist())):
        here = [
            skeletons[i]
            for i in range(len(skeletons))
            if annotation['frame_inds'][i] == number and annotation['box_score'][i] >= box_thr
        ]
        if len(here) > 10:
            here = sorted(here, key=lambda pose: -float(pose[:, 2].astype(float).sum()))[:10]
        if here:
            frames.append(here)
    return frames


@pytest.fixture(scope='module')
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp('k400'))


def convert(*arguments: object) -> int:
    with warnings.catch_warnings():
        return make_pickle.main([*map(str, arguments)])


def test_a_release_becomes_a_folder_of_pickles_to_train_on(release, tmp_path, capsys, monkeypatch):
    index, kpfiles, annotations, contents = release
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
    out = tmp_path / 'k400'
    assert convert(index, '--kpfiles', kpfiles, '--box_thr', 0.5, '--out', out) == 0
    printed = capsys.readouterr()
    assert f'{out}: 248 clips in 10 pickles' in printed.out
    lost = [line for line in printed.err.splitlines() if line.startswith('warning')]
    assert [line.split(': ')[2].split()[:2] for line in lost] == [['2', 'kpfiles'], ['1', 'clips'], ['1', 'clips']]
    found = {a['frame_dir']: a for file in out.glob('*.pkl') for a in load_annotations(file)['annotations']}
    assert set(annotations) - set(found) == {f'clip_{i:03d}' for i in (7, 8, *range(75, 125))}
    crowded = 0
    for name, clip in found.items():
        skeletons = contents[annotations[name]['raw_file'].split('/')[-1]][name]['keypoint']
        frames = by_plain_loop(annotations[name], skeletons, 0.5)
        persons = max(map(len, frames))
        crowded += persons == 10
        expected = np.zeros((persons, len(frames), 17, 3), np.float16)
        for t, here in enumerate(frames):
            expected[: len(here), t] = here
        np.testing.assert_array_equal(clip['keypoint'], expected[..., :2])
        np.testing.assert_array_equal(clip['keypoint_score'], expected[..., 2])
        assert (clip['total_frames'], clip['label']) == (len(frames), annotations[name]['label'])
        assert not {'raw_file', 'frame_inds', 'box_score', 'valid'} & clip.keys()
    assert crowded > 5
    settings = {'ann_file': str(out), 'benchmark': ['train', 'val'], 'clip_len': 8, 'batch_size': 4, 'seed': 0}
    assert Clips('train', **settings).num_clips + Clips('val', **settings).num_clips == 248


def test_invalid_releases_are_refused(release, tmp_path, refused, write_pickle):
    index, kpfiles, *_ = release
    (tmp_path / 'empty').mkdir()
    damaged = shutil.copytree(kpfiles, tmp_path / 'damaged')
    (damaged / 'kp_00.pkl').write_bytes(pickle.dumps({'clip_000': {'keypoint': np.zeros((1, 17, 3))}}))
    hostile = shutil.copytree(kpfiles, tmp_path / 'hostile')
    (hostile / 'kp_00.pkl').write_bytes(pickle.dumps({'clip_000': shutil.rmtree}))
    linked = shutil.copytree(kpfiles, tmp_path / 'linked')
    for file in linked.iterdir():
        file.unlink()
        file.symlink_to(kpfiles / file.name)  # files elsewhere are not opened
    ordinary = write_pickle({'split': {}, 'annotations': [{'frame_dir': 'a', 'keypoint': 1}]})
    for arguments, message in (
        ((index, '--kpfiles', tmp_path / 'nothing'), 'nothing is not a folder'),
        ((index, '--kpfiles', tmp_path / 'empty'), 'none of the 12 kpfiles'),
        ((index, '--kpfiles', linked), 'none of the 12 kpfiles'),
        ((index, '--kpfiles', kpfiles, '--box_thr', 2), 'Lower --box_thr'),
        ((index, '--kpfiles', damaged), 'kp_00.pkl: clip_000'),
        ((index, '--kpfiles', hostile), 'which could run code'),
        ((ordinary, '--kpfiles', kpfiles), 'Omit --kpfiles'),
    ):
        with warnings.catch_warnings(action='ignore'):
            assert message in refused(make_pickle.main, *arguments, '--out', tmp_path / 'out')
        assert not (tmp_path / 'out').exists()
    with pytest.raises(UserError, match=r'make_pickle .*--kpfiles FOLDER'):
        load_annotations(index)
