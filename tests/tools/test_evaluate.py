import json

import numpy as np
import pytest

from lib.tools import evaluate
from tests.tiny import MODELS, SCRIPTS, caller, write_config

WRITTEN = ('evaluation.json', 'predictions.npz', 'confusion_matrix.png')


@pytest.mark.parametrize('kind', MODELS)
def test_the_tool_and_the_script_find_the_same(tmp_path, capsys, kind):
    """Of all three models, whose kind the checkpoint tells; another list of the set can be named."""
    run, out = tmp_path / 'run', tmp_path / 'out'
    call = caller(SCRIPTS[kind])
    assert call('--config', write_config(kind, tmp_path), '-c', run, '--set', 'train.epochs=1') == 0
    best = next(run.glob('best_epoch.*'))
    capsys.readouterr()
    assert call('--evaluate', best) == 0
    by_script = capsys.readouterr().out
    assert evaluate.main([str(run), '--out', str(out)]) == 0
    assert capsys.readouterr().out.replace(str(out), str(run)) == by_script
    for name in WRITTEN[:2]:
        assert (run / name).read_bytes() == (out / name).read_bytes()
    assert all((out / name).is_file() for name in WRITTEN)
    found = json.loads((out / 'evaluation.json').read_text())
    assert found['kind'] == kind
    assert found['class_names'] == ['class 0', 'class 1', 'class 2', 'class 3']

    assert evaluate.main([str(best), '--out', str(out), '--set', 'data.benchmark=[xsub_train,xsub_train]']) == 0
    with np.load(out / 'predictions.npz') as predictions:
        assert len(predictions['ids']) == 20


def test_what_is_no_checkpoint_is_an_error_of_a_line(tmp_path, capsys):
    (tmp_path / 'best_epoch.txt').write_text('')

    def refused(*arguments: object) -> str:
        assert evaluate.main(list(map(str, arguments))) == 2
        told = capsys.readouterr().err
        assert told.count('\n') == 1
        return told

    assert 'holds no checkpoint' in refused(tmp_path)
    assert 'is no checkpoint' in refused(tmp_path / 'best_epoch.txt')
    assert 'holds best_epoch.txt' in refused(tmp_path / 'best_epoch.bin')
