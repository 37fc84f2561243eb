from pathlib import Path

import numpy as np
import pytest

from lib.evaluation import write_predictions
from lib.tools import fuse

IDS = [f'clip{i:02d}' for i in range(40)]
LABELS = np.arange(40) % 4


@pytest.fixture
def write(tmp_path):
    """write(name, confidence, right) -> predictions whose clips are right where `right` (40,) says so."""

    def write(name: str, confidence: float, right: np.ndarray, ids=IDS, labels=LABELS) -> Path:
        taken = np.where(right, labels, (labels + 1) % 4)
        path = tmp_path / f'{name}.npz'
        write_predictions(path, ids, labels, confidence * np.eye(4)[taken])
        return path

    return write


FIRST_HALF = np.arange(40) < 20


def test_the_surer_model_wins_and_weights_turn_it(write, capsys):
    sure, unsure = write('sure', 5, FIRST_HALF), write('unsure', 1, ~FIRST_HALF)
    assert fuse.main([str(sure), str(unsure)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split('Acc@1 ')[1].split()[0] for line in told[1:4]] == ['50.00', '50.00', '50.00']
    assert fuse.main([str(sure), str(unsure), '--weights', '0', '2']) == 0
    assert 'fused 0.00 1.00' in capsys.readouterr().out


def test_fused_probabilities_by_hand(write):
    streams = fuse.read_aligned([write('a', 2, FIRST_HALF), write('b', 1, ~FIRST_HALF)])
    a, b = (np.exp(stream.logits) / np.exp(stream.logits).sum(1, keepdims=True) for stream in streams)
    np.testing.assert_allclose(fuse.fused(streams, (0.25, 0.75)), (a + 3 * b) / 4, rtol=1e-6)


def test_the_best_weight_is_found_on_the_other_clips(write, capsys):
    """Where only the second model is right it gets all; the clips that are scored say the opposite."""
    here = write('a', 3, FIRST_HALF | True), write('b', 3, FIRST_HALF & False)
    there = write('a2', 3, FIRST_HALF & False), write('b2', 3, FIRST_HALF | True)
    assert fuse.main([*map(str, here)]) == 0
    assert 'Acc@1 100.00' in (best := capsys.readouterr().out.splitlines()[-1])
    assert 'flatters' in best
    assert fuse.main([*map(str, here), '--tune', *map(str, there)]) == 0
    best = capsys.readouterr().out.splitlines()[-1]
    assert 'Acc@1 0.00' in best
    assert '40 clips of --tune' in best


def test_the_order_of_the_clips_does_not_matter(write):
    order = np.random.default_rng(0).permutation(40)
    a = write('a', 2, FIRST_HALF)
    b = write('b', 1, (~FIRST_HALF)[order], [IDS[i] for i in order], LABELS[order])
    aligned = fuse.read_aligned([a, b])[1]
    np.testing.assert_array_equal(aligned.ids, IDS)
    np.testing.assert_array_equal(aligned.labels, LABELS)
    np.testing.assert_array_equal(aligned.logits.argmax(1) == LABELS, ~FIRST_HALF)


def test_a_folder_stands_for_its_predictions(write, tmp_path, capsys):
    a = write('a', 2, FIRST_HALF)
    (tmp_path / 'run').mkdir()
    a.rename(tmp_path / 'run' / 'predictions.npz')
    assert fuse.main([str(tmp_path / 'run'), str(write('b', 1, ~FIRST_HALF))]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(str(tmp_path / 'run' / 'predictions.npz'))
    assert fuse.main([str(tmp_path), str(tmp_path / 'run')]) == 2
    assert 'predictions.npz: there is no such file' in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(write, capsys):
    a = str(write('a', 1, FIRST_HALF))

    def refused(*arguments: object) -> str:
        assert fuse.main([a, *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert 'two or more' in refused()
    half = write('half', 1, FIRST_HALF[:20], IDS[:20], LABELS[:20])
    assert 'half.npz is of other clips' in (told := refused(half))
    assert '20 are missing' in told
    assert 'clip20 is missing there' in told
    twice = write('twice', 1, FIRST_HALF, [*IDS[:39], IDS[0]], LABELS)
    assert 'other clips' in refused(twice)
    other = write('other', 1, FIRST_HALF, labels=np.roll(LABELS, 1))
    assert 'other labels' in refused(other)
    assert '3 numbers' in refused(a, a, '--weights', 1, 2)
    assert 'not all 0' in refused(a, '--weights', 0, 0)
    assert 'not all 0' in refused(a, '--weights', 1, 'nan')
    assert '--tune' in refused(a, a, '--tune', a, a)
    assert 'no such file' in refused('nothing.npz')
