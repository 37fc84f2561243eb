import json
from types import SimpleNamespace

import numpy as np
import pytest
from easydict import EasyDict
from PIL import Image

from lib.data.classes import NTU60, class_names
from lib.evaluation import confused_lines, draw_confusion, read_predictions, report_evaluation, write_predictions
from lib.metrics import confusion_matrix

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
TAKEN = np.array([0, 1, 1, 2, 1, 0, 2, 2])


def scores(taken: np.ndarray, num_classes: int) -> np.ndarray:
    return 4 * np.eye(num_classes, dtype=np.float32)[taken]


def config(num_classes: int, names: object = None) -> EasyDict:
    return EasyDict(data={'ann_file': 'set.pkl', 'class_names': names}, model={'num_classes': num_classes})


def clips_named(ids: list[str]) -> SimpleNamespace:
    """As far as a report asks for them."""
    store = SimpleNamespace(name=ids.__getitem__)
    return SimpleNamespace(list_name='xsub_val', num_clips=len(ids), num_views=1, clips=range(len(ids)), store=store)


def test_what_is_written_says_what_was_found(tmp_path, capsys):
    names = tmp_path / 'names.txt'
    names.write_text('stand\nsit down\njump\n')
    ids = [f'clip{i}' for i in range(8)]
    about = {'checkpoint': 'best_epoch.bin', 'kind': 'mbert', 'parameters': 7, 'epoch': 3}
    logits = scores(TAKEN, 3)
    report_evaluation(tmp_path / 'out', about, config(3, str(names)), clips_named(ids), logits, LABELS)

    told = capsys.readouterr().out
    assert 'Acc@1 50.00' in told
    assert [line.split() for line in told.splitlines() if 'taken for' in line] == [
        ['2', '50.0%', 'stand', 'taken', 'for', 'sit', 'down'],
        ['1', '25.0%', 'stand', 'taken', 'for', 'jump'],
        ['1', '50.0%', 'sit', 'down', 'taken', 'for', 'stand'],
    ]
    report = json.loads((tmp_path / 'out' / 'evaluation.json').read_text())
    assert report.items() >= {**about, 'list': 'xsub_val', 'num_clips': 8, 'views': 1, 'top1': 0.5}.items()
    assert report['class_names'] == ['stand', 'sit down', 'jump']
    assert report['per_class'] == {'0': 0.25, '1': 0.5, '2': 1.0}
    low, high = report['interval']['top1']
    assert 0 <= low < 0.5 < high <= 1
    read = read_predictions(tmp_path / 'out' / 'predictions.npz')
    for found, wanted in zip(read, (ids, LABELS, logits), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (tmp_path / 'out' / 'confusion_matrix.png').stat().st_size > 1000


def test_no_mistake_is_said():
    assert confused_lines(np.diag([3, 2]), ['a', 'b']) == ['no clip was taken for another class']


def test_a_matrix_of_60_classes_grows_and_shows_only_what_occurs(tmp_path):
    """Cells have at least 20 pixels each, so that their numbers can be read."""
    matrix = confusion_matrix(scores(np.arange(60).repeat(2), 60), np.arange(60).repeat(2))
    draw_confusion(matrix, NTU60, tmp_path / 'all.png')
    draw_confusion(np.where(np.arange(60) < 8, matrix, 0), NTU60, tmp_path / 'eight.png')
    assert min(Image.open(tmp_path / 'all.png').size) > 60 * 20
    assert max(Image.open(tmp_path / 'eight.png').size) < 60 * 20


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
def test_predictions_that_are_none_are_refused(tmp_path, change):
    arrays = {'ids': np.array(list('abcdefgh')), 'labels': LABELS, 'logits': scores(TAKEN, 3)} | change
    path = tmp_path / 'predictions.npz'
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=r'predictions\.npz does not hold predictions'):
        read_predictions(path)


def test_ids_of_any_text_come_back(tmp_path):
    ids = ['v_ApplyEyeMakeup_g01_c01', 'Übung/ä', '']
    write_predictions(tmp_path / 'p.npz', ids, np.zeros(3, int), np.zeros((3, 2)))
    assert read_predictions(tmp_path / 'p.npz')[0].tolist() == ids


def test_names_lie_beside_the_pickle(tmp_path):
    found = config(2)
    found.data.ann_file = str(tmp_path / 'own.pkl')
    assert class_names(found) == ['class 0', 'class 1']
    (tmp_path / 'own_classes.txt').write_text('walk\nrun\n')
    assert class_names(found) == ['walk', 'run']
    found.model.num_classes = 60  # as a config has it that nobody has told of the set
    with pytest.raises(ValueError, match=r'own_classes\.txt .* has 2 names.* set model\.num_classes to 2'):
        class_names(found)


def test_names_of_classes(tmp_path):
    assert class_names(config(60))[23] == 'kicking something'
    assert class_names(config(120))[:60] == list(NTU60)
    assert class_names(config(3)) == ['class 0', 'class 1', 'class 2']
    path = tmp_path / 'names.txt'
    path.write_text('a\nb\n')
    assert class_names(config(2, str(path))) == ['a', 'b']
    with pytest.raises(ValueError, match=r'names\.txt .* has 2 names, and model\.num_classes is 3'):
        class_names(config(3, str(path)))
    with pytest.raises(ValueError, match=r'nothing\.txt .* cannot be read'):
        class_names(config(2, 'nothing.txt'))
    for content in (b'', b'a\n\nb\n', b'\xff\xfe', b'a\x00b\nc', b'x\n' * 2**20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='is no text with one class name a line'):
            class_names(config(2, str(path)))
