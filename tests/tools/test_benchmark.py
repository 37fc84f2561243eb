import json
import subprocess
import sys
import time

import numpy as np
import pytest

from lib.data.heatmap import limb_heatmaps
from lib.tools.benchmark import common, render, vivit
from lib.tools.benchmark.__main__ import main


def test_render_reports_rates_and_ratios(capsys):
    main(['render', '--batch', '2', '--persons', '1', '--pairs', '3', '--json'])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {'title', 'unit', 'setting', 'rates', 'ratios'}
    assert set(report['setting']) == {'device', 'threads', 'torch', 'pairs'}
    assert set(report['rates']) == {'fill', 'compiled', 'eager', 'oracle'}
    assert set(report['ratios']) == {'compiled/fill', 'eager/fill', 'compiled/oracle'}
    for numbers in (*report['rates'].values(), *report['ratios'].values()):
        assert 0 < numbers['min'] <= numbers['lower'] <= numbers['median'] <= numbers['upper'] <= numbers['max']

    table = common.as_text(report)
    for name in (*report['rates'], *report['ratios'], 'clips/s', f'threads {report["setting"]["threads"]}'):
        assert name in table


def test_limbs_are_compared_with_numpy_without_loops(capsys):
    main(['render', '--kind', 'limb', '--batch', '1', '--pairs', '1', '--json'])
    report = json.loads(capsys.readouterr().out)
    assert report['rates']['numpy']['median'] > 0
    assert report['ratios']['compiled/numpy']['median'] > 0
    keypoint, score = common.walking_skeletons(2, 2)
    maps = render.limbs_in_numpy(keypoint, score)
    for i in range(2):
        expected = limb_heatmaps(keypoint[i], score[i], img_shape=(56, 56))
        np.testing.assert_allclose(maps[i], expected, rtol=0, atol=2e-5)


def test_vivit_is_compared_with_the_same_architecture(capsys, monkeypatch):
    assert vivit.stock_vivit(0.1).count_params() == 8_650_300
    # Full-size steps are run for their memory, in processes of their own. Those that are timed would take a minute.
    for name in ('ours', 'stock'):
        monkeypatch.setattr(vivit, name, lambda dropout, args: lambda: time.sleep(1e-3))
    monkeypatch.setattr(vivit, 'MATRIX', 64)
    main(['vivit', '--batch', '1', '--steps', '1', '--rounds', '1', '--json'])
    report = json.loads(capsys.readouterr().out)
    assert set(report['rates']) == {'ours', 'stock', 'ours, no drop', 'stock, no drop'}
    assert report['ratios']['time ours/stock']['median'] > 0
    assert 0.2 < report['ratios']['memory ours/stock']['median'] < 2
    assert report['memory']['ours']['median'] > 100
    assert 'without dropout' in common.as_text(report)


def test_candidates_are_timed_in_alternating_order():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = common.time_in_turn(candidates, 3, lambda: None)
    assert ''.join(calls) == 'abab' + 'abbaab'
    assert {name: len(times) for name, times in seconds.items()} == {'a': 3, 'b': 3}


def test_skeletons_are_plausible():
    keypoint, score = common.walking_skeletons(8, 2)
    assert keypoint.shape == (8, 2, 48, 17, 2)
    assert score.shape == (8, 2, 48, 17)
    assert keypoint.dtype == score.dtype == np.float32
    inside = ((keypoint >= 0) & (keypoint < 56)).all(-1)
    assert 0.7 < inside.mean() < 1
    assert 0 < (score == 0).mean() < 0.05
    assert score.max() <= 1
    assert not keypoint[score == 0].any()
    np.testing.assert_array_equal(keypoint, common.walking_skeletons(8, 2)[0])


@pytest.mark.parametrize('arguments', [['render', '--batch', '0'], ['render', '--kind', 'bones'], []])
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    assert 'error' in capsys.readouterr().err


def test_help_imports_no_framework():
    code = (
        'import sys; from lib.tools.benchmark.__main__ import main\n'
        'try: main(["render", "--help"])\n'
        'finally: assert not {"torch", "tensorflow"} & set(sys.modules)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert '--persons' in result.stdout
