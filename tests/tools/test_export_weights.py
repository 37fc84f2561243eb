"""The weights of a checkpoint alone."""

import json

import pytest
import torch

from lib.tools import export_weights
from tests import tiny


@pytest.fixture(params=tiny.SCRIPTS)
def trained(request, tmp_path):
    """(kind, the config file, the latest checkpoint of a run of one epoch)."""
    kind = request.param
    config = tiny.write_config(kind, tmp_path)
    assert tiny.caller(tiny.SCRIPTS[kind])('--config', config, '-c', tmp_path / 'run', '--set', 'train.epochs=1') == 0
    (latest,) = (tmp_path / 'run').glob('latest_epoch.*')
    return kind, config, latest


def test_weights_are_evaluated_as_their_checkpoint_but_no_run_goes_on_from_them(trained, tmp_path, capsys):
    kind, config, latest = trained
    call, out = tiny.caller(tiny.SCRIPTS[kind]), tmp_path / f'weights{latest.suffix}'
    capsys.readouterr()
    assert export_weights.main([str(latest), str(out)]) == 0
    assert f'{out}: ' in capsys.readouterr().out
    assert out.stat().st_size < 0.45 * latest.stat().st_size

    reports = []
    for path in (latest, out):
        assert call('--evaluate', path) == 0
        reports.append(json.loads((path.parent / 'evaluation.json').read_text()) | {'checkpoint': None})
    assert reports[0] == reports[1]
    capsys.readouterr()
    assert call('--config', config, '-c', tmp_path / 'on', '--resume', out) == 2
    assert 'holds weights alone' in capsys.readouterr().err
    assert not (tmp_path / 'on').exists()

    if kind != 'vivit':
        assert torch.load(out, weights_only=True)['model'].keys() == tiny.latest(latest.parent)['model'].keys()
        tuned = ['--config', config, '-c', tmp_path / 'tuned', '-p', out.parent, '-ms', out.name]
        assert call(*tuned, '--set', 'train.finetune=true') == 0
        assert f'from {out}' in capsys.readouterr().out


def test_nothing_is_overwritten(trained, tmp_path, capsys):
    _, _, latest = trained
    before = latest.read_bytes()
    for out, message in ((latest, 'is there already'), (tmp_path / 'weights.pkl', f'must end in {latest.suffix}')):
        assert export_weights.main([str(latest), str(out)]) == 2
        assert message in capsys.readouterr().err
    assert latest.read_bytes() == before


def test_what_is_no_checkpoint_is_named(tmp_path, capsys):
    torch.save({'model': {'weight': torch.zeros(3)}}, tmp_path / 'others.bin')
    for name, message in (('others.bin', 'no checkpoint of this project'), ('nothing.npz', 'there is no such file')):
        assert export_weights.main([str(tmp_path / name), str(tmp_path / f'out{name[-4:]}')]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f'error: {tmp_path / name}')
        assert message in told
