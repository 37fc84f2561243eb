import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.pytorch import distributed, training
from lib.tools import evaluate
from tests import tiny
from tests.processes import torchrun

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('kind', tiny.MODELS)
def test_the_tool_and_the_script_write_the_same(trained_once, tmp_path, capsys, kind):
    """The tool detects the model; --set selects another split."""
    run = trained_once(kind) / 'run'
    assert evaluate.main([str(run), '--out', str(tmp_path)]) == 0
    for name in ('evaluation.json', 'predictions.npz'):
        assert (run / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (tmp_path / 'confusion_matrix.png').is_file()
    assert tiny.caller(tiny.SCRIPTS[kind])('--evaluate', run, '-c', tmp_path / 'script') == 0
    assert (run / 'evaluation.json').read_bytes() == (tmp_path / 'script' / 'evaluation.json').read_bytes()
    assert json.loads((tmp_path / 'evaluation.json').read_text())['script'] == kind

    command = [str(next(run.glob('best_epoch.*'))), '--set', 'data.benchmark=[xsub_train,xsub_train]', '--out']
    assert evaluate.main([*command, str(tmp_path / 'train')]) == 0
    with np.load(tmp_path / 'train' / 'predictions.npz') as predictions:
        assert len(predictions['ids']) == 20
    assert evaluate.main([*command, str(tmp_path)]) == 2
    assert f'{tmp_path / "confusion_matrix.png"} exists' in capsys.readouterr().err


def test_other_files_are_refused_in_one_line(tmp_path, refused):
    (tmp_path / 'best_epoch.txt').write_text('')
    for path in (tmp_path, tmp_path / 'best_epoch.txt', tmp_path / 'best_epoch.bin'):
        assert str(path) in refused(evaluate.main, path)


def test_processes_evaluate_together_and_one_reports(trained_once, tmp_path):
    run = trained_once('vanilla') / 'run'
    command = torchrun(2, '-m', 'lib.tools.evaluate', run, '--out', tmp_path)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('Acc@1') == 2  # metrics and their interval
    with np.load(tmp_path / 'predictions.npz') as ours, np.load(run / 'predictions.npz') as alone:
        assert ours['ids'].tolist() == alone['ids'].tolist()
        np.testing.assert_allclose(ours['logits'], alone['logits'], rtol=1e-4, atol=1e-5)


def test_only_the_main_process_writes(trained_once, tmp_path, monkeypatch):
    run = trained_once('vanilla') / 'run'
    monkeypatch.setattr(distributed, 'init', lambda: distributed.World(1, 1, torch.device('cpu')))
    assert evaluate.main([str(run), '--out', str(tmp_path)]) == 0
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_clips_are_classified(trained_once, refused, monkeypatch):
    run = trained_once('vanilla') / 'run'
    monkeypatch.setattr(training, 'classify', lambda *arguments: pytest.fail('clips are classified'))
    monkeypatch.setattr('os.access', lambda path, mode: False)  # root may write anywhere
    assert f'{run} is read-only. Choose another folder for --out.' in refused(evaluate.main, run)
