import json

import numpy as np
import pytest

from lib.tools import evaluate
from tests.tiny import MODELS


@pytest.mark.parametrize('kind', MODELS)
def test_the_tool_and_the_script_write_the_same(trained_once, tmp_path, kind):
    """The tool finds out the kind of model; another split of the set can be named."""
    run = trained_once(kind) / 'run'
    assert evaluate.main([str(run), '--out', str(tmp_path)]) == 0
    for name in ('evaluation.json', 'predictions.npz'):
        assert (run / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (tmp_path / 'confusion_matrix.png').is_file()
    assert json.loads((tmp_path / 'evaluation.json').read_text())['kind'] == kind

    command = ['--out', str(tmp_path), '--set', 'data.benchmark=[xsub_train,xsub_train]']
    assert evaluate.main([str(next(run.glob('best_epoch.*'))), *command]) == 0
    with np.load(tmp_path / 'predictions.npz') as predictions:
        assert len(predictions['ids']) == 20


def test_other_files_are_refused_in_a_line(tmp_path, capsys):
    (tmp_path / 'best_epoch.txt').write_text('')
    for path in (tmp_path, tmp_path / 'best_epoch.txt', tmp_path / 'best_epoch.bin'):
        assert evaluate.main([str(path)]) == 2
        error = capsys.readouterr().err
        assert str(path) in error
        assert error.count('\n') == 1
