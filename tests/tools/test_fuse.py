import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lib.evaluation import write_predictions
from lib.tools import fuse

IDS = [f'clip{i:02d}' for i in range(40)]
LABELS = np.arange(40) % 4


@pytest.fixture
def write(tmp_path):
    """write(name, confidence, right) -> predictions file. right: (40,) whether a clip is predicted correctly."""

    def write(name: str, confidence: float, right: np.ndarray, ids=IDS, labels=LABELS) -> Path:
        taken = np.where(right, labels, (labels + 1) % 4)
        path = tmp_path / f'{name}.npz'
        write_predictions(path, ids, labels, confidence * np.eye(4)[taken])
        return path

    return write


FIRST_HALF = np.arange(40) < 20


def test_weights_determine_the_result(write, capsys):
    sure, unsure = write('sure', 5, FIRST_HALF), write('unsure', 1, ~FIRST_HALF)
    assert fuse.main([str(sure), str(unsure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('Acc@1 ')[1].split()[0] for line in lines[1:4]] == ['50.00', '50.00', '50.00']
    assert fuse.main([str(sure), str(unsure), '--weights', '0', '2']) == 0
    assert '0.00 1.00' in capsys.readouterr().out


OTHER_IDS = [f'other{i:02d}' for i in range(40)]


def test_weights_are_tuned_on_other_clips(write, capsys):
    """The second model is right on those clips, the first on the scored clips."""
    always = np.ones(40, bool)
    here = write('a', 3, always), write('b', 3, ~always)
    there = write('a2', 3, ~always, OTHER_IDS), write('b2', 3, always, OTHER_IDS)
    assert fuse.main([*map(str, here)]) == 0
    assert '\ntuned' not in capsys.readouterr().out
    assert fuse.main([*map(str, here), '--tune', *map(str, there)]) == 0
    assert re.search('tuned 0.49 0.51 +Acc@1 0.00', capsys.readouterr().out)


def test_tuning_on_scored_clips_is_refused(write, refused):
    here = write('a', 3, FIRST_HALF), write('b', 3, ~FIRST_HALF)
    one_shared = [*OTHER_IDS[:-1], IDS[0]]
    for there in (here, [write(name, 3, FIRST_HALF, one_shared) for name in ('a2', 'b2')]):
        assert f'of the 40 clips of {here[0]}, first clip00' in refused(fuse.main, *here, '--tune', *there)


def test_the_order_of_the_clips_does_not_matter(write):
    order = np.random.default_rng(0).permutation(40)
    a = write('a', 2, FIRST_HALF)
    b = write('b', 1, (~FIRST_HALF)[order], [IDS[i] for i in order], LABELS[order])
    streams = fuse.read_aligned([a, b])
    p, q = (np.exp(stream.logits) / np.exp(stream.logits).sum(1, keepdims=True) for stream in streams)
    np.testing.assert_allclose(fuse.fused(streams, (0.25, 0.75)), (p + 3 * q) / 4, rtol=1e-6)
    aligned = streams[1]
    np.testing.assert_array_equal(aligned.ids, IDS)
    np.testing.assert_array_equal(aligned.labels, LABELS)
    np.testing.assert_array_equal(aligned.logits.argmax(1) == LABELS, ~FIRST_HALF)


def test_predictions_that_do_not_match_are_refused(write, refused):
    a = write('a', 1, FIRST_HALF)
    refused = partial(refused, fuse.main, a)
    half = write('half', 1, FIRST_HALF[:20], IDS[:20], LABELS[:20])
    other = write('other', 1, FIRST_HALF, labels=np.roll(LABELS, 1))
    assert 'two or more' in refused()
    assert '20 are missing' in refused(half)
    assert 'different clips' in refused(write('twice', 1, FIRST_HALF, [*IDS[:39], IDS[0]], LABELS))
    assert 'different labels' in refused(other)
    for arguments in ((a, a, '--weights', 1, 2), (a, '--weights', 0, 0), (a, '--weights', 1, 'nan')):
        assert 'weights' in refused(*arguments)
    assert '--tune' in refused(a, a, '--tune', a, a)
    assert 'nothing.npz' in refused('nothing.npz')


def test_predictions_of_trained_runs_are_fused(trained_once, capsys):
    """Folders of runs of both frameworks."""
    assert fuse.main([str(trained_once(kind) / 'run') for kind in ('mbert', 'vivit')]) == 0
    assert capsys.readouterr().out.count('Acc@1') >= 3
