"""The GPU benchmark, tried out on the CPU with small models."""

import json
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.errors import UserError
from lib.tools.benchmark import __main__ as benchmark
from lib.tools.benchmark import correctness, gpu, rows, speed

TURN = """
import sys
from pathlib import Path
from lib.tools.benchmark.rows import Setup
Setup('cpu', True, Path(sys.argv[1])).take_turn()
print('mine', flush=True)
sys.stdin.read()
"""
PIPES = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True, 'cwd': Path(__file__).parents[2]}
FACTS = {'name': 'CPU', 'torch': '2'}


@pytest.fixture
def setup(tmp_path):
    return rows.Setup('cpu', True, tmp_path / 'correctness.jsonl')


def test_a_failure_is_a_row_and_affects_no_other(setup):
    with setup.row('a'):
        raise UserError('this CPU does not support it')
    with setup.row('b'):
        raise RuntimeError('CUDA error:\n  an illegal memory access')
    with setup.row('c'):
        setup.add('c', error=0.5, limit=0.1)
    skipped, failed, wrong = rows.read(setup.file)
    assert skipped == {'name': 'a', 'skipped': 'this CPU does not support it'}
    assert failed == {'name': 'b', 'failed': 'RuntimeError: CUDA error: an illegal memory access'}
    table = rows.as_table('correctness', FACTS, skipped, failed, wrong, {'name': 'd', 'error': 0.05, 'limit': 0.1})
    assert table.count('WRONG') == table.count('ok') == 1


def test_an_inaccurate_gradient_is_found(setup):
    rng = np.random.default_rng(0)
    expected = {'logits': rng.normal(size=(2, 5)), 'a': rng.normal(size=100), 'b': rng.normal(size=100)}
    correctness.add_errors(setup, 'model', expected, expected | {'b': expected['b'] + 0.01 * rng.normal(size=100)})
    logits, gradients = rows.read(setup.file)
    assert logits['error'] == 0
    assert gradients['parameter'] == 'b'
    assert gradients['error'] == pytest.approx(0.01, rel=0.3)
    assert rows.is_wrong(gradients)
    assert not rows.is_wrong(logits)


def test_nan_is_wrong_and_the_rounding_of_a_zero_gradient_is_not(setup):
    expected = {'logits': np.ones(3), 'a': np.ones(5), 'zero': np.full(5, 1e-9)}
    correctness.add_errors(setup, 'model', expected, expected | {'zero': np.full(5, -1e-10)})
    correctness.add_errors(setup, 'model', expected, expected | {'logits': np.full(3, np.nan), 'a': np.full(5, np.nan)})
    assert [rows.is_wrong(row) for row in rows.read(setup.file)] == [False, False, True, True]


@pytest.mark.parametrize(
    ('row', 'code'),
    [({'error': 0.2}, 1), ({'error': 0.1}, 0), ({'error': float('nan')}, 1), ({'failed': 'OSError'}, 1)],
)
def test_wrong_results_and_failures_have_exit_code_1(row, code, tmp_path, monkeypatch, capsys, refused):
    monkeypatch.setattr(gpu, 'in_new_process', lambda function, device: FACTS)
    monkeypatch.setitem(gpu.PARTS, 'correctness', lambda setup: setup.add('x', limit=0.1, **{'error': 0.0} | row))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    command = ['gpu', '--out', str(tmp_path / 'out'), '--part', 'correctness', '--device', 'cpu']
    assert benchmark.main(command) == code
    assert capsys.readouterr().out.rstrip() == (tmp_path / 'out' / 'results.md').read_text().rstrip()
    assert 'correctness.jsonl exists' in refused(benchmark.main, *command)


def test_a_missing_gpu_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(gpu, 'in_new_process', lambda function, device: function(device))
    assert 'sees no GPU' in refused(benchmark.main, 'gpu', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_compiled_code_waits_for_its_turn_when_it_is_run(setup, monkeypatch):
    turns = []
    monkeypatch.setattr(rows.Setup, 'take_turn', lambda self: turns.append(True))
    monkeypatch.setattr('torch._inductor.compile_fx.compile_fx', lambda graph, inputs, config_patches: graph.forward)
    doubled = speed.compile_before_turn(setup)(lambda x: 2 * x)
    assert not turns
    assert doubled(torch.ones(2)).tolist() == [2, 2]
    assert turns


def test_processes_measure_in_turn(setup):
    """The second one only after the first has ended."""
    first, second = (subprocess.Popen([sys.executable, '-c', TURN, setup.file], **PIPES) for _ in range(2))
    readable, _, _ = select.select([first.stdout, second.stdout], [], [], 60)
    (winner,) = (process for process in (first, second) if process.stdout in readable)
    other = second if winner is first else first
    assert not select.select([other.stdout], [], [], 0.3)[0]
    winner.communicate('end')
    assert other.communicate('end', timeout=60)[0] == 'mine\n'


def test_models_are_measured_once():
    names = [rows.label(path) for path in rows.different_models()]
    assert names[:2] == ['MB_train', 'vanilla']
    assert 'pretrain/vanilla' in names
    assert not {'MB_train_aug', 'vanilla_big_aug', 'vivit'} & {*names}  # the models of others, or of TensorFlow


@pytest.mark.slow
def test_every_row_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr(speed, 'MEASURED', ('vanilla', 'vivit'))
    for module in (correctness, speed):
        models = [rows.ACTION / 'vanilla.yaml', rows.ACTION / 'vanilla_2d.yaml']
        monkeypatch.setattr(module, 'different_models', lambda models=models: models)
    assert benchmark.main(['gpu', '--out', str(tmp_path), '--device', 'cpu', '--quick']) == 0
    found = {
        part: {row['name']: row for row in map(json.loads, (tmp_path / f'{part}.jsonl').read_text().splitlines())}
        for part in gpu.PARTS
    }
    assert len(found['correctness']) == 1 + 12 + 2 * 2 + 2 + 3
    for name in ('resume, different tensors', 'resume, train.compile=true, different tensors'):
        resume = found['correctness'][name]
        assert (resume['tensors'] > 50, resume['from_step']) == (True, 4)
    assert {row['skipped'][:24] for row in found['speed'].values() if 'skipped' in row} <= {
        'train.precision is tf32,',
        'train.precision is bf16,',
    }
    for name in ('vanilla, fp32, 4 clips', 'vivit, fp32, 2 clips', 'joint maps, float32, 2 clips'):
        assert found['speed'][name]['clips/s'] > 0
    kinds = {name.rpartition(', ')[0] if name.endswith('clips') else name for name in found['speed']}
    steps = {f'{name}, {kind}' for name in ('vanilla', 'vivit') for kind in ('fp32', 'tf32', 'bf16', 'bf16 compiled')}
    assert steps | {'vanilla_2d, bf16 compiled'} <= kinds
    assert {'run of MB_train', '2 epochs, extrapolated'} & kinds  # skipped, or measured
    assert (tmp_path / 'results.md').read_text().count('\n| ') > 40
