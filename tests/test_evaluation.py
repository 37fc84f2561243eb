import json
from types import SimpleNamespace

import numpy as np
import pytest

from lib import console
from lib.evaluation import read_predictions, report_evaluation

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
TAKEN = np.array([0, 1, 1, 2, 1, 0, 2, 2])


def scores(taken: np.ndarray, num_classes: int) -> np.ndarray:
    return 4 * np.eye(num_classes, dtype=np.float32)[taken]


def clips_named(ids: list[str]) -> SimpleNamespace:
    """Clips with the attributes that a report reads."""
    store = SimpleNamespace(name=ids.__getitem__)
    return SimpleNamespace(
        split_name='xsub_val', num_clips=len(ids), num_views=1, indices=range(len(ids)), labels=LABELS, store=store
    )


def test_evaluation_writes_metrics_predictions_and_the_confusion_matrix(tmp_path, capsys):
    ids = ['v_ApplyEyeMakeup_g01_c01', 'Übung/ä', '', *(f'clip{i}' for i in range(5))]
    names = ['stand', 'sit down', 'jump']
    about = {'checkpoint': 'best_epoch.bin', 'script': 'mbert', 'parameters': 7, 'epoch': 3, 'class_names': names}
    logits = scores(TAKEN, 3)
    with console.messages():
        report_evaluation(tmp_path / 'out', about, clips_named(ids), logits)

    printed = capsys.readouterr().out
    assert 'Acc@1 50.00' in printed
    confused = [line.split()[:3] for line in printed.splitlines() if 'sit' in line or 'jump' in line]
    assert confused == [['2', '50.0%', 'stand'], ['1', '25.0%', 'stand'], ['1', '50.0%', 'sit']]
    report = json.loads((tmp_path / 'out' / 'evaluation.json').read_text())
    assert report.items() >= {**about, 'split': 'xsub_val', 'num_clips': 8, 'views': 1, 'top1': 0.5}.items()
    assert report['class_names'] == ['stand', 'sit down', 'jump']
    assert report['per_class'] == {'0': 0.25, '1': 0.5, '2': 1.0}
    low, high = report['interval']['top1']
    assert 0 <= low < 0.5 < high <= 1
    read = read_predictions(tmp_path / 'out' / 'predictions.npz')
    for found, wanted in zip(read, (ids, LABELS, logits), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (tmp_path / 'out' / 'confusion_matrix.png').stat().st_size > 1000


@pytest.mark.parametrize(
    'change',
    [
        {'ids': np.arange(8)},
        {'labels': LABELS + 1},
        {'labels': LABELS.astype(float)},
        {'logits': scores(TAKEN, 3)[:7]},
        {'logits': np.full((8, 3), np.nan, np.float32)},
        {'logits': None},
    ],
    ids=lambda change: '_'.join(change),
)
def test_invalid_predictions_are_refused(tmp_path, change):
    arrays = {'ids': np.array(list('abcdefgh')), 'labels': LABELS, 'logits': scores(TAKEN, 3)} | change
    path = tmp_path / 'predictions.npz'
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=r'predictions\.npz'):
        read_predictions(path)
