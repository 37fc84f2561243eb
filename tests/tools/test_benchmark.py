import copy
import json

import pytest
import torch

from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.mbert import MotionBERT
from lib.pytorch.vanilla import VanillaTransformer
from lib.tools.benchmark import common, everything, steps
from lib.tools.benchmark.__main__ import main, parse_args


@pytest.mark.parametrize('make', [MotionBERT, VanillaTransformer])
def test_the_straightforward_model_has_the_same_outputs_and_gradients(make):
    """What our speed is compared with."""
    keypoint, score = map(torch.from_numpy, common.walking_skeletons(2, 2))
    inputs = keypoint / 3.5, score
    ours = make(num_joints=17, dim_in=256, dim_feat=32, depth=2, num_heads=4, dropout_ratio=0.0)
    plain = copy.deepcopy(ours)
    steps.make_straightforward(plain)
    volume, expected = steps.straightforward_maps(*inputs, 16, 0.6), HeatmapRenderer(size=16)(*inputs)
    torch.testing.assert_close(volume, expected, rtol=0, atol=2e-6)
    for model in (ours, plain):
        model.logits = model(volume)
        model.logits.square().sum().backward()
    torch.testing.assert_close(plain.logits, ours.logits, rtol=0, atol=1e-4)
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    'command',
    [
        ['data', '--clips', '200', '--batch', '8', '--rounds', '1'],
        ['data', '--sparse', '--clips', '300', '--batch', '8', '--rounds', '1'],
        pytest.param(['render', '--batch', '2', '--persons', '1', '--pairs', '2'], marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_reports_have_rates(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr('os.sched_setaffinity', lambda *_: None, raising=False)  # pytest keeps its cores
    main([*command, *(['--folder', str(tmp_path)] if command[0] != 'render' else []), '--json'])
    rates = json.loads(capsys.readouterr().out)['rates']
    assert rates
    for numbers in rates.values():
        assert 0 < numbers['min'] <= numbers['lower'] <= numbers['median'] <= numbers['upper'] <= numbers['max']
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_commands_of_everything_are_valid(device):
    for command in everything.commands(device):
        parse_args([*command, '--json'])
