import copy
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from lib.errors import UserError
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.mbert import MotionBERT
from lib.pytorch.vanilla import VanillaTransformer
from lib.tools.benchmark import __main__ as benchmark
from lib.tools.benchmark import parts, steps
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('make', [MotionBERT, VanillaTransformer])
def test_the_straightforward_model_has_the_same_outputs_and_gradients(make):
    keypoint, score = map(torch.from_numpy, steps.random_keypoints(2, 2, 48, 17))
    inputs = keypoint / 3.5, score
    ours = make(num_joints=17, dim_in=256, dim_feat=32, depth=2, num_heads=4).eval()
    plain = copy.deepcopy(ours)
    steps.make_straightforward(plain)
    volume = steps.straightforward_maps(16, 0.6, *inputs, torch.float32)
    torch.testing.assert_close(volume, HeatmapRenderer(size=16)(*inputs), rtol=0, atol=2e-6)
    for model in (ours, plain):
        model.logits = model(volume)
        model.logits.square().sum().backward()
    torch.testing.assert_close(plain.logits, ours.logits, rtol=0, atol=1e-4)
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_two_sides_alternate():
    calls = []
    row = steps.compare(partial(calls.append, 'a'), partial(calls.append, 'b'), 3, 10)
    assert ''.join(calls) in ('abababbaab', 'ababbaabba')
    assert row['ratio'] > 0
    assert row['clips/s'] > 0
    assert steps.compare(lambda: None, None, 1, 10).keys() == {'clips/s'}


def test_a_failing_part_does_not_affect_the_others(monkeypatch, capsys):
    def run(function, *arguments):
        if arguments[0] == 'joint':
            raise ChildProcessError('killed')
        if arguments[0] == 'limb':
            raise UserError('no such device')
        return {'clips/s': 12.5, 'reference clips/s': 25.0, 'ratio': 2.25}

    monkeypatch.setattr(benchmark, 'in_new_process', run)
    assert benchmark.main(['render', 'data', '--json']) == 1
    printed = capsys.readouterr()
    rows = json.loads(printed.out)['rows']
    joint, limb, data = rows.values()
    assert (joint['error'], limb['error'], data['clips/s']) == ('killed', 'no such device', 12.5)
    assert benchmark.main(['render', 'data']) == 1
    table = capsys.readouterr().out
    assert 'failed: no such device' in table
    assert '12.5' in table
    assert '2.25' in table
    assert benchmark.main(['data']) == 0


def run_here(monkeypatch):
    """Runs measurements in this process, because a new one takes seconds to import the frameworks."""
    for module in (benchmark, parts):
        monkeypatch.setattr(module, 'in_new_process', lambda function, *arguments: function(*arguments))


@pytest.mark.parametrize('kind', tiny.SCRIPTS)
def test_training_steps_are_measured(kind, tmp_path, monkeypatch, capsys):
    run_here(monkeypatch)
    monkeypatch.setattr(steps, 'SIZE', 12)
    assert benchmark.main(['train', '--config', str(tiny.write_config(kind, tmp_path)), '--rounds', '2', '--json']) == 0
    (row,) = json.loads(capsys.readouterr().out)['rows'].values()
    assert row.keys() == {'clips/s', 'peak memory'} | (set() if kind == 'vivit' else {'reference clips/s', 'ratio'})
    assert all(size > 1e8 for size in row['peak memory'])


@pytest.mark.parametrize('kind', tiny.SCRIPTS)
def test_a_missing_gpu_is_not_replaced_by_the_cpu(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr('tensorflow.config.list_logical_devices', lambda kind: [])
    run_here(monkeypatch)
    command = ['train', 'render', '--device', 'cuda', '--config', str(tiny.write_config(kind, tmp_path))]
    assert benchmark.main(command) == 1
    assert capsys.readouterr().out.count('sees no GPU') == 3


def test_a_killed_process_is_an_error():
    with pytest.raises(ChildProcessError, match='exit code 9'):
        steps.in_new_process(os._exit, 9)
    with pytest.raises(ChildProcessError, match='exit code 1'):
        steps.in_new_process(int, 'no number')
    with pytest.raises(UserError, match='no such row'):
        steps.in_new_process(refuse, 'no such row')
    assert steps.in_new_process(int, '12') == 12


def refuse(text):
    raise UserError(text)


def test_ctrl_c_ends_the_measuring_process_too():
    """A terminal sends the signal to both."""
    command = [sys.executable, '-m', 'lib.tools.benchmark', 'data', '--rounds', '10000']
    unblocked = {'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), 'start_new_session': True}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **unblocked) as process:
        time.sleep(3)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 75
        assert 'stopped before the end.' in process.stderr.read()  # ends only if no other process holds the pipe


@pytest.mark.slow
def test_each_row_is_measured_in_a_separate_process():
    command = [
        sys.executable,
        '-m',
        'lib.tools.benchmark',
        'data',
        'train',
        '--set',
        'model.dim_feat=7',
        '--rounds',
        '1',
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    header, data, train = done.stdout.splitlines()
    assert 'clips/s' in header
    assert float(data.split()[3].replace(',', '')) > 100
    assert 'failed: ' in train
    assert 'dim_feat' in train
