"""Training and evaluation of tiny models on a CUDA GPU, against the CPU."""

import json

import pytest
import torch

from lib.data.batches import make_clips
from lib.models import load_config
from lib.pytorch import distributed, pretraining, training
from lib.tools.benchmark import correctness, rows
from tests import tiny

pytestmark = pytest.mark.gpu
KINDS = ('mbert', 'vanilla', 'pretrain')
OPTIONS = ('seed=0', 'precision=tf32', 'precision=bf16', 'accumulation_steps=2', 'activation_checkpointing=true',
           'compile=true', 'compile=true accumulation_steps=2',
           'compile=true activation_checkpointing=true')  # fmt: skip


def use_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('kind', KINDS)
def test_losses_are_those_of_the_cpu(kind, options, tmp_path, monkeypatch, capsys):
    """At a small learning rate: at 1e-3 these runs diverge from rounding errors alone, on one device too."""
    changes = ['optimizer.lr_backbone=0.0001', 'optimizer.lr_head=0.0001']
    if kind != 'pretrain':
        changes.append('model.dropout_ratio=0.0')
    command = ['--config', tiny.write_config(kind, tmp_path), *tiny.overrides(*changes)]
    call = tiny.caller(tiny.PROGRAMS[kind])
    more = tiny.overrides(*(f'train.{option}' for option in options.split()))
    assert call(*command, '-c', tmp_path / 'gpu', *more) == 0
    assert 'on cuda' in capsys.readouterr().out
    use_cpu(monkeypatch)
    assert call(*command, '-c', tmp_path / 'cpu') == 0
    assert 'on cpu' in capsys.readouterr().out
    # Batch norm sees micro-batches, and in pretraining the devices draw other masks.
    tolerance = 0.5 if 'accumulation' in options else 0.15 if kind == 'pretrain' else 0.03
    for gpu, cpu in zip(tiny.lines(tmp_path / 'gpu'), tiny.lines(tmp_path / 'cpu'), strict=True):
        for split in ('train', 'val'):
            assert gpu[split]['loss'] == pytest.approx(cpu[split]['loss'], abs=tolerance)


@pytest.mark.parametrize('path', rows.different_models(), ids=rows.label)
def test_every_model_computes_what_it_does_on_the_cpu(path, tmp_path):
    """Logits and gradients of one layer."""
    setup = rows.Setup('cuda', True, tmp_path / 'rows.jsonl')
    correctness.check_model(setup, path)
    assert [rows.is_wrong(row) for row in rows.read(setup.file)] == [False, False]


@pytest.mark.parametrize('option', ['seed=0', 'compile=true'])
@pytest.mark.parametrize('kind', ['mbert', 'vanilla'])
def test_several_views_are_evaluated_as_on_the_cpu(kind, option, trained, monkeypatch):
    run, call = trained(kind) / 'run', tiny.caller(tiny.SCRIPTS[kind])
    views, losses = tiny.overrides('data.test_clips=2', 'data.test_flip=true'), []
    for options in (tiny.overrides(f'train.{option}'), []):
        assert call('-e', run, *views, *options) == 0
        losses.append(json.loads((run / 'evaluation.json').read_text())['loss'])
        use_cpu(monkeypatch)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize('option', ['seed=0', 'precision=bf16', 'compile=true'])
@pytest.mark.parametrize('kind', KINDS)
def test_an_epoch_does_not_wait_for_the_gpu(kind, option, tmp_path, monkeypatch):
    """Neither a copy of a batch, from pinned memory, nor a step with the fused AdamW."""
    config, world = load_config(tiny.write_config(kind, tmp_path), [f'train.{option}']), distributed.init()
    options, clips = training.TrainOptions(**config.train), make_clips(config, 'train')
    render, model = training.make_model(config, clips.num_joints, world.device)
    optimizer = training.make_optimizer(model, **config.optimizer)
    forward = training.make_forward(render, model.train(), options, world)
    criterion = pretraining.motion_loss if kind == 'pretrain' else training.classification_loss
    prefetch, pinned = training.prefetch, []

    def watched(*args):
        for b, batch in prefetch(*args):
            pinned.extend(tensor.is_pinned() for tensor in batch.values())
            yield b, batch

    def train():
        for _, batch in training.load_batches(clips, 0, options, world):
            assert all(tensor.is_cuda for tensor in batch.values())
            training.train_step(forward, optimizer, batch, options, config.data.batch_size, 0, criterion)

    monkeypatch.setattr(training, 'prefetch', watched)
    for _ in range(3):  # the first steps create handles and states, and record CUDA graphs
        train()
    torch.cuda.set_sync_debug_mode('error')
    try:
        train()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert pinned
    assert all(pinned)
    assert all(group['fused'] for group in optimizer.param_groups)
    assert all(value.is_cuda for state in optimizer.state.values() for value in state.values())
