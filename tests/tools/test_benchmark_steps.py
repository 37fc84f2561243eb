import copy
import json
from argparse import Namespace

import pytest
import torch

from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.mbert import MotionBERT
from lib.pytorch.vanilla import VanillaTransformer
from lib.tools.benchmark import common, steps
from lib.tools.benchmark.__main__ import main

SMALL = {'num_joints': 17, 'dim_in': 256, 'dim_feat': 32, 'depth': 2, 'num_heads': 4}


@pytest.fixture
def batch():
    keypoint, score = map(torch.from_numpy, common.walking_skeletons(2, 2))
    return keypoint / 3.5, score


@pytest.mark.parametrize('make', [MotionBERT, VanillaTransformer])
def test_straightforward_model_gives_the_same_outputs_and_gradients(make, batch):
    ours = make(**SMALL, dropout_ratio=0.0)
    plain = copy.deepcopy(ours)
    steps.make_straightforward(plain)
    draw = HeatmapRenderer(size=16)
    for model, volume in ((ours, draw(*batch)), (plain, steps.straightforward_maps(*batch, 16, 0.6))):
        logits = model(volume)
        logits.square().sum().backward()
        model.logits = logits.detach()
    torch.testing.assert_close(plain.logits, ours.logits, rtol=0, atol=1e-4)
    expected = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4, msg=name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())


def test_straightforward_maps_are_ours(batch):
    maps = steps.straightforward_maps(*batch, 16, 0.6)
    torch.testing.assert_close(maps, HeatmapRenderer(size=16)(*batch), rtol=0, atol=2e-6)


def test_both_train_alike():
    args = Namespace(row='vanilla', batch=2, precision='fp32', compile=False, device='cpu')
    model, draw = steps.make_parts(args)
    losses = {}
    for name in ('ours', 'straightforward'):
        step = steps.make_step(name, copy.deepcopy(model), draw, args)
        losses[name] = [float(step()) for _ in range(2)]
    assert losses['ours'][1] < losses['ours'][0]
    assert losses['ours'] == pytest.approx(losses['straightforward'], abs=1e-3)


def test_steps_reports_rates_memory_and_distance_from_the_peak(capsys, monkeypatch):
    monkeypatch.setattr(steps, 'MATRIX', 64)
    main(['steps', '--row', 'vanilla', '--batch', '1', '--rounds', '1', '--json'])
    report = json.loads(capsys.readouterr().out)
    assert set(report['rates']) == {'ours', 'straightforward', 'draw'}
    assert set(report['memory']) == {'ours', 'straightforward'}
    assert report['memory']['ours']['median'] > 50
    assert report['ratios']['time ours/straightforward']['median'] > 0
    assert report['ratios']['memory ours/straightforward']['median'] < 1
    table = common.as_text(report)
    for name in ('peak MB', 'ours/peak', 'draw/ours'):
        assert name in table
