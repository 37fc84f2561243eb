import json

import numpy as np
import pytest

from lib.data import store as store_module
from lib.data.clips import Clips
from lib.data.store import open_store
from lib.tools.benchmark import common, scale
from lib.tools.benchmark.__main__ import main


def test_data_reports_rates_and_what_opening_costs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('os.sched_setaffinity', lambda *_: None, raising=False)  # pytest keeps its cores
    main(['data', '--clips', '200', '--batch', '8', '--rounds', '2', '--folder', str(tmp_path), '--json'])
    report = json.loads(capsys.readouterr().out)
    threads = ['train, 1 loader thread', 'train, 2 loader threads']
    assert list(report['rates']) == ['train', 'val', 'train with Aug', *threads]
    assert all(rate['min'] > 0 for rate in report['rates'].values())
    assert 0 < report['opening']['milliseconds']['median'] < 1000
    assert report['opening']['private MB of 8 processes']['max'] < 50
    assert not list(tmp_path.iterdir())
    assert 'private MB' in common.as_text(report)


def test_scale_reports_every_size_and_draws_it(tmp_path, capsys):
    out, folder = tmp_path / 'out', tmp_path / 'folder'
    folder.mkdir()
    command = ['scale', '--sizes', '40', '300', '--batch', '8', '--batches', '3', '--folder', str(folder)]
    main([*command, '--out', str(out), '--json'])
    report = json.loads(capsys.readouterr().out)
    assert {f'{n} clips{which}' for n in (40, 300) for which in ('', ', first visit', ', shuffle')} == set(
        report['rates']
    )
    assert all(numbers['min'] > 0 for numbers in report['rates'].values())
    assert '300 clips, bytes a clip' in common.as_text(report)
    assert json.loads((out / 'scale.json').read_text())['sizes'].keys() == {'40', '300'}
    assert (out / 'scale.png').stat().st_size > 10_000
    assert not list(folder.iterdir())


@pytest.mark.parametrize('chunk', [2**18, 37])
def test_the_sparse_store_is_a_store(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(store_module, 'SHARD_BYTES', 2_000_000)
    monkeypatch.setattr(scale, 'CHUNK', chunk)
    num_bytes = scale.write_sparse_store(tmp_path / 'made_up.pkl', 500)
    store = open_store(tmp_path / 'made_up.pkl')
    assert store.nbytes == num_bytes
    rows = store.total_frames.astype(np.int64) * store.num_persons
    np.testing.assert_array_equal(store.first_row, np.cumsum(rows) - rows)
    lengths = [len(shard) for shard in store.keypoints]
    assert len(lengths) > 3
    assert sum(lengths) == rows.sum()
    assert set(np.cumsum(lengths)) <= set(np.cumsum(rows))  # no clip crosses
    assert max(shard.nbytes for shard in store.keypoints) <= 2_000_000
    assert [store.name(clip) for clip in (0, 499)] == ['00000000', '00000499']
    clips = Clips('train', ann_file=tmp_path / 'made_up.pkl', benchmark='xsub', clip_len=16, batch_size=32, seed=0)
    assert not any(clips[0, b]['score'].any() for b in range(len(clips)))
    on_disk = sum(file.stat().st_blocks * 512 for file in (tmp_path / 'made_up.store').iterdir())
    assert on_disk < num_bytes / 5
