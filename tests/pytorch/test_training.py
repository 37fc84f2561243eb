"""Training in PyTorch: every config at full size, options, several processes, compilation, precision, real motion."""

import json
import os
import pickle
import signal
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train_action_mbert
import train_action_vanilla
from lib.config import read_config
from lib.data.batches import make_clips
from lib.metrics import mean_over_views
from lib.models import MODELS, load_config
from lib.pytorch import checkpoint, training
from lib.pytorch.distributed import World
from tests import tiny
from tests.annotations import make_3d_annotations, make_annotations
from tests.processes import children, torchrun, wait_for_line
from tests.tiny import assert_same_run, lines

ROOT = Path(train_action_mbert.__file__).parent
SCRIPTS = {'mbert': train_action_mbert, 'vanilla': train_action_vanilla}
CONFIGS = [path for path in sorted((ROOT / 'configs').rglob('*.yaml')) if read_config(path)['script'] in SCRIPTS]
ALONE = World(0, 1, torch.device('cpu'))


def make_model(config, num_joints: int):
    return training.make_model(config, num_joints, ALONE.device)


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


@pytest.fixture
def config(script, tmp_path):
    """Config file of a tiny model, beside its generated pickle."""
    return tiny.write_config(script.SCRIPT, tmp_path)


@pytest.fixture
def call(script):
    """call(*argv) -> exit code of the script."""
    return tiny.caller(script)


@pytest.fixture(scope='module')
def full_size_pickles(tmp_path_factory):
    """{is_3d: pickle of two training clips and a test clip}."""
    folder = tmp_path_factory.mktemp('pickles')
    for is_3d, make in ((False, make_annotations), (True, make_3d_annotations)):
        (folder / f'{is_3d}.pkl').write_bytes(pickle.dumps(make([60, 120, 300], persons=[1, 2, 2])))
    return {is_3d: folder / f'{is_3d}.pkl' for is_3d in (False, True)}


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_every_config_trains_a_step_and_evaluates_at_full_size(full_size_pickles, tmp_path, path):
    is_3d = '3danno' in path.read_text()
    overrides = [f'data.ann_file={full_size_pickles[is_3d]}', 'data.batch_size=2', 'train.epochs=1']
    overrides.append('train.warmup_epochs=0')
    config = load_config(path, overrides)
    options = training.TrainOptions(**config.train)
    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = make_model(config, train_clips.num_joints)
    optimizer = training.make_optimizer(model, **config.optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    forward = training.make_forward(render, model, options, ALONE)
    (_, batch), *_ = training.load_batches(train_clips, 0, options, ALONE)
    model.train()
    loss, _ = training.train_step(forward, optimizer, batch, options, 2, 0).tolist()
    assert 0 < loss < 10
    for name, p in model.named_parameters():
        assert p.requires_grad == (not name.startswith('backbone.head.'))
        # Batch norm subtracts the bias again with the mean: its gradient is only rounding.
        assert (p.grad is not None and p.grad.any()) == p.requires_grad or name == 'head.fc1.bias', name
        assert torch.equal(p, before[name]) != p.requires_grad, name
    logits = training.predict(forward, model, val_clips, options, ALONE)
    assert logits.shape == (1, 1, config.model.num_classes)


def decayed(script: str, depth: int, **rates):
    """Model and optimizer with layer decay 0.5, learning rates 1 (backbone) and 3 (head)."""
    sizes = {'num_joints': 5, 'dim_in': 3, 'dim_feat': 16, 'depth': depth, 'num_heads': 2}
    own = {'mbert': {'dim_rep': 16, 'maxlen': 8}, 'vanilla': {'num_frames': 8}}[script]
    model = MODELS[script].load_classifier()(**sizes, **own)
    rates = {'lr_backbone': 1.0, 'lr_head': 3.0, 'weight_decay': 0.0, 'layer_decay': 0.5} | rates
    return model, training.make_optimizer(model, **rates)


DECAYED = {
    'mbert': {
        'backbone.joints_embed.weight': 4, 'backbone.pos_embed': 4, 'backbone.temp_embed': 4,
        'backbone.blocks_st.0.attn_s.qkv.weight': 3, 'backbone.blocks_ts.0.mlp_t.fc1.bias': 3,
        'backbone.ts_attn.0.weight': 3, 'backbone.blocks_st.1.norm1_s.weight': 2, 'backbone.ts_attn.2.bias': 1,
        'backbone.blocks_ts.2.mlp_t.fc2.weight': 1, 'backbone.norm.weight': 0, 'backbone.pre_logits.fc.weight': 0,
    },
    'vanilla': {
        'joints_embed.proj.weight': 4, 'pos_embed': 4, 'temp_embed': 4, 'blocks.0.attn.qkv.weight': 3,
        'blocks.1.norm1.weight': 2, 'blocks.2.mlp.fc2.bias': 1, 'norm.weight': 0,
    },
}  # fmt: skip


@pytest.mark.parametrize('name', DECAYED)
def test_layer_decay_scales_the_update_of_every_layer(name):
    model, optimizer = decayed(name, depth=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # the first step of AdamW moves each weight by its learning rate
    moved = {name: (before[name] - p).mean().item() for name, p in model.named_parameters()}
    for parameter, layers in DECAYED[name].items():
        assert moved[parameter] == pytest.approx(0.5**layers, rel=1e-4), parameter
    assert {round(value, 4) for name, value in moved.items() if name.startswith('head.')} == {3}
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(before) - 2 * (name == 'mbert')
    run = checkpoint.Run.__new__(checkpoint.Run)
    run.optimizer = optimizer
    assert run.learning_rates() == {'backbone': 1, 'head': 3}


@pytest.mark.parametrize('name', DECAYED)
def test_without_layer_decay_there_are_two_groups_in_the_order_of_the_model(name):
    model, optimizer = decayed(name, depth=3, layer_decay=1.0)
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    backbone, head = ([names[p] for p in group['params']] for group in optimizer.param_groups)
    assert [group['name'] for group in optimizer.param_groups] == ['backbone', 'head']
    assert [group['lr'] for group in optimizer.param_groups] == [1, 3]
    assert backbone == [name for name in names.values() if not name.startswith('head.')]
    assert head == [name for name in names.values() if name.startswith('head.')]


@pytest.mark.parametrize('value', [0.0, -0.5, 1.1])
def test_a_layer_decay_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=rf'optimizer\.layer_decay is {value}'):
        decayed('vanilla', depth=1, layer_decay=value)


def test_recipe_options_reach_the_training(script, call, config, tmp_path, monkeypatch):
    seen = {'norms': [], 'rates': [], 'smoothing': set()}
    clip, loss = torch.nn.utils.clip_grad_norm_, torch.nn.functional.cross_entropy

    def clip_grad_norm_(parameters, max_norm):
        before = clip(parameters, max_norm)
        after = torch.stack([p.grad.norm() for p in parameters]).norm()
        seen['norms'].append((float(before), float(after)))

    def cross_entropy(logits, label, **options):
        seen['smoothing'].add(options.get('label_smoothing'))
        return loss(logits, label, **options)

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.nn.utils, 'clip_grad_norm_', clip_grad_norm_)
    monkeypatch.setattr(training.F, 'cross_entropy', cross_entropy)
    monkeypatch.setattr(
        torch.optim.AdamW, 'step', lambda self: (seen['rates'].append(self.param_groups[1]['lr']), step(self))
    )
    options = ['lr_schedule=cosine', 'warmup_epochs=1', 'label_smoothing=0.1', 'max_grad_norm=0.5']
    overrides = tiny.overrides(*(f'train.{option}' for option in options), 'model.drop_path_rate=0.2', 'model.depth=2')
    assert call('--config', config, '-c', tmp_path / 'run', *overrides) == 0
    assert max(before for before, _ in seen['norms']) > 0.5
    assert max(after for _, after in seen['norms']) < 0.501
    assert seen['smoothing'] == {0.1}
    assert seen['rates'] == pytest.approx([1e-3 * x for x in (1 / 3, 2 / 3, 1, 1, 0.75, 0.25)])


def test_views_of_a_test_clip_are_averaged(script, call, config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    views = ['--set', 'data.test_clips=2', '--set', 'data.test_flip=true']
    assert call('-e', run / 'latest_epoch.bin', *views) == 0
    report = json.loads((run / 'evaluation.json').read_text())
    assert report['views'] == 4
    assert '4 views of each test clip' in capsys.readouterr().out

    config = load_config(config, views[1::2])
    clips, options = make_clips(config, 'val'), training.TrainOptions(**config.train)
    render, model = make_model(config, clips.num_joints)
    checkpoint.load_weights(model, checkpoint.load(run / 'latest_epoch.bin', script.SCRIPT)['model'], run)
    forward = training.make_forward(render, model, options, ALONE)
    logits, label = mean_over_views(training.predict(forward, model, clips, options, ALONE)), clips.labels
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)
    with torch.inference_mode():
        batches = [clips[0, b] for b in range(len(clips))]
        singles = [  # each view alone, in batches of other clips' same view
            np.concatenate(
                [forward(torch.tensor(b['keypoint'][:, k]), torch.tensor(b['score'][:, k])).softmax(1) for b in batches]
            )
            for k in range(4)
        ]
    np.testing.assert_allclose(np.exp(logits), np.mean(singles, axis=0), rtol=1e-4)
    assert np.ptp(singles, axis=0).max() > 1e-4
    assert report['loss'] == pytest.approx(-np.log(np.mean(singles, axis=0)[np.arange(len(label)), label]).mean(), 1e-4)


def test_learning_rates_cover_every_group(script, tmp_path):
    """With train.partial_train [] only the head is trained, and its rate is logged."""
    run = checkpoint.Run(tmp_path, None)
    model = torch.nn.ModuleDict({'backbone': torch.nn.Linear(2, 2), 'head': torch.nn.Linear(2, 2)})
    for trained, expected in ((False, {'head': 1e-3}), (True, {'backbone': 1e-4, 'head': 1e-3})):
        model.backbone.requires_grad_(trained)
        run.optimizer = training.make_optimizer(model, lr_backbone=1e-4, lr_head=1e-3, weight_decay=0.0)
        assert run.learning_rates() == expected


def test_maps_per_person_are_trained_drawn_and_evaluated(call, config, tmp_path):
    """The features of the persons are averaged: the same as a map for all, if a second person is never there."""
    options = ['--config', config, '--set', 'train.epochs=1', '--set', 'data.max_persons=1', '-c']
    assert call(*options, tmp_path / 'shared') == 0
    assert call(*options, tmp_path / 'alone', '--set', 'heatmap.per_person=true') == 0
    assert lines(tmp_path / 'alone')[0] == lines(tmp_path / 'shared')[0]
    assert call(*options, tmp_path / 'two', '--set', 'heatmap.per_person=true', '--set', 'data.max_persons=2') == 0
    assert lines(tmp_path / 'two')[0]['val'] != lines(tmp_path / 'alone')[0]['val']


@pytest.mark.parametrize(('name', 'classes'), [('sbu', 8), ('cmu', 7)])
def test_learns_on_real_motion(script, motion, config, tmp_path, name, classes):
    """A few epochs on 48 clips: a model with correct input fits them."""
    overrides = [
        f'data.ann_file={motion(f"{name}_hrnet.pkl")}', f'data.store_dir={tmp_path}', f'model.num_classes={classes}',
        'heatmap.size=24', 'model.dim_in=576', 'model.dropout_ratio=0.0',
        'augmentation.crop_area=[1.0, 1.0]', 'augmentation.crop_ratio=[1.0, 1.0]', 'augmentation.flip_ratio=0.0',
    ]  # fmt: skip
    config = load_config(config, overrides)
    clips = make_clips(config, 'train')
    render, model = make_model(config, clips.num_joints)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        for b in range(6):  # always the 48 clips of epoch 0, with the same frames
            batch = {key: torch.from_numpy(value) for key, value in clips[0, b].items()}
            loss = torch.nn.functional.cross_entropy(model(render(batch['keypoint'], batch['score'])), batch['label'])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-6:]) / 6 < 0.5 * sum(losses[:6]) / 6


@pytest.mark.slow
@pytest.mark.parametrize('script', ['vanilla'], indirect=True)
@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_train_as_one(script, call, config, tmp_path, count):
    """Without batch norm and up to rounding, also if the number of processes changes between two epochs."""
    data = make_annotations([5, 12, 40] * 12, persons=[1, 2, 1] * 12)  # three full batches of 8 to train on
    (tmp_path / 'generated.pkl').write_bytes(pickle.dumps(data))
    changes = ['model.protocol=linprobe', 'optimizer.lr_head=1.0e-5', 'optimizer.lr_backbone=1.0e-5']
    content = yaml.safe_load(config.read_text())
    del content['model']['dropout_ratio']
    config.write_text(yaml.safe_dump(content))
    command = ['--config', config, '-freq', 1, *tiny.overrides(*changes)]
    one, many = tmp_path / 'one', tmp_path / 'many'
    assert call(*command, '-c', one) == 0
    first_epoch = torchrun(count, script.__file__, *command, '-c', many, '--set', 'train.epochs=1')
    output = subprocess.run(first_epoch, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.count(f'on {count} x cpu') == output.count('val loss') == output.count('24/24 clips') == 1

    assert call(*command, '-c', many) == 0
    one_epoch = tmp_path / 'one_epoch'
    assert call(*command, '-c', one_epoch, '--set', 'train.epochs=1') == 0
    second_epoch = torchrun(count, script.__file__, *command, '-c', one_epoch)
    subprocess.run(second_epoch, cwd=ROOT, capture_output=True, check=True)
    for folder in (many, one_epoch):
        for a, b in zip(lines(one), lines(folder), strict=True):
            assert a['train'] == pytest.approx(b['train'], abs=1e-4)
            assert a['val'] == pytest.approx(b['val'], abs=1e-4)
        a, b = tiny.latest(one), tiny.latest(folder)
        for name, value in a['model'].items():
            assert torch.allclose(value, b['model'][name], atol=2 * 6 * 1e-5), name
        for i, moments in a['optimizer']['state'].items():  # Adam's step is independent of the gradient's norm
            moment, other = moments['exp_avg'], b['optimizer']['state'][i]['exp_avg']
            assert (moment - other).abs().max() < 1e-3 * moment.abs().max() + 1e-5, i
        assert len(list((folder / 'logs').iterdir())) == 2  # one writer for each of the two runs


@pytest.mark.slow
@pytest.mark.parametrize('script', ['mbert'], indirect=True)
def test_several_processes_with_batch_norm_and_a_short_batch(script, config, tmp_path):
    """18 clips in batches of 8: the last batch has one clip for each of two processes and is skipped."""
    data = make_annotations([5, 12, 40] * 9, persons=[1, 2, 1] * 9)
    (tmp_path / 'generated.pkl').write_bytes(pickle.dumps(data))
    command = torchrun(2, script.__file__, '--config', config, '-freq', 1, '-c', tmp_path / 'run')
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'epoch 1/2   89 %  16/18 clips' in output
    assert [line['epoch'] for line in lines(tmp_path / 'run')] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize('script', ['vanilla'], indirect=True)
def test_a_killed_process_ends_the_job_and_the_same_command_resumes(script, config, tmp_path):
    run = tmp_path / 'run'
    command = torchrun(2, script.__file__, '--config', config, '-c', run, '-freq', 1, '--set')
    with subprocess.Popen(
        [*command, 'train.epochs=10000'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        wait_for_line(job, 'epoch 2/')
        os.kill(children(job.pid)[1], signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert 'Signal 9 (SIGKILL)' in errors
    done = len(lines(run))
    again = subprocess.run([*command, f'train.epochs={done + 1}'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'resuming from' in again.stdout
    assert len(lines(run)) == done + 1


@pytest.mark.slow
@pytest.mark.parametrize('script', ['vanilla'], indirect=True)
def test_processes_stop_together_when_one_of_them_gets_a_signal(script, config, tmp_path):
    """torchrun forwards its own signal too, so that one process gets two."""
    command = ['--config', config, '-freq', 1, '--set', 'train.epochs=8', '-c']
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    subprocess.run(torchrun(2, script.__file__, *command, whole), cwd=ROOT, capture_output=True, check=True)
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(torchrun(2, script.__file__, *command, run), cwd=ROOT, **pipes) as job:
        wait_for_line(job, 'epoch 2/')
        os.kill(children(job.pid)[1], signal.SIGTERM)  # not the main process, which writes
        os.kill(job.pid, signal.SIGTERM)
        _, errors = job.communicate(timeout=60)
    assert errors.count(f'The same command resumes from {run / "latest_epoch.bin"}') == 2
    assert len(lines(run)) < 8
    subprocess.run(torchrun(2, script.__file__, *command, run), cwd=ROOT, capture_output=True, check=True)
    assert_same_run(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize('script', ['vanilla'], indirect=True)
def test_a_batch_that_cannot_be_divided_is_refused(call, script, config, tmp_path, capsys):
    command = torchrun(2, script.__file__, '--config', config, '-c', tmp_path / 'run')
    done = subprocess.run([*command, '--set', 'data.batch_size=7'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1  # the exit code of torchrun
    assert 'error: data.batch_size 7' in done.stderr
    assert 'set data.batch_size to a multiple of 2' in done.stderr

    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.accumulation_steps=3') == 2
    assert 'set data.batch_size to a multiple of 3' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_batch_norm_needs_two_clips_at_a_time(script, call, config, tmp_path, capsys):
    parts = ['--set', 'train.accumulation_steps=5', '--set', 'data.batch_size=5']
    for size in (['--set', 'data.batch_size=1'], parts):
        assert call('--config', config, '-c', tmp_path / 'run', *size) == 2
        assert 'batch norm' in capsys.readouterr().err
        assert not (tmp_path / 'run').exists()
    if script.SCRIPT == 'vanilla':  # its other head has no batch norm
        linear = ['model.protocol=linprobe', 'model.dropout_ratio=null', 'data.batch_size=1', 'train.epochs=1']
        assert call('--config', config, '-c', tmp_path / 'run', *tiny.overrides(*linear)) == 0


@pytest.mark.parametrize('script', ['vanilla'], indirect=True)  # without batch norm, which normalises each micro-batch
def test_micro_batches_add_up_to_the_batch(call, config, tmp_path, monkeypatch):
    command = ['--config', config, '--set', 'model.protocol=linprobe', '--set', 'model.dropout_ratio=null']
    sizes = []
    micro_batches = training.micro_batches
    monkeypatch.setattr(
        training, 'micro_batches', lambda *args: [sizes.append(len(p['label'])) or p for p in micro_batches(*args)]
    )
    for parts in (1, 4):
        run = tmp_path / str(parts)
        assert call(*command, '-c', run, '--set', f'train.accumulation_steps={parts}', '--set', 'train.epochs=1') == 0
    assert sizes == [8, 8, 4] + [2] * 10
    one, four = (lines(tmp_path / name)[0] for name in '14')
    assert one['train'] == pytest.approx(four['train'], abs=1e-6)
    assert one['val'] == pytest.approx(four['val'], abs=1e-5)


def test_activation_checkpointing_changes_only_the_memory(call, script, config, tmp_path):
    kept = {'false': 0, 'true': 0}
    for checkpointing in kept:

        def keep(tensor: torch.Tensor, name: str = checkpointing) -> torch.Tensor:
            kept[name] += tensor.nbytes
            return tensor

        command = ['--config', config, '-c', tmp_path / checkpointing]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            assert call(*command, '--set', f'train.activation_checkpointing={checkpointing}') == 0
    assert lines(tmp_path / 'true') == lines(tmp_path / 'false')
    assert kept['true'] < kept['false']


def test_a_short_batch_causes_no_recompilation(call, config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.compile=true') == 0
    assert counters['stats']['unique_graphs'] == 2  # one for training, one for evaluation
    assert not counters['graph_break']
    assert call('--config', config, '-c', tmp_path / 'eager') == 0
    for compiled, eager in zip(lines(tmp_path / 'run'), lines(tmp_path / 'eager'), strict=True):
        assert compiled['train'] == pytest.approx(eager['train'], abs=1e-5)


def test_tf32_is_for_gpus_that_have_it(monkeypatch):
    gpu, tf32 = torch.device('cuda'), training.TrainOptions(epochs=1, precision='tf32')
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Tesla V100')
    for capability, device, name in (((7, 0), gpu, 'Tesla V100'), ((9, 0), torch.device('cpu'), 'this CPU')):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device, found=capability: found)
        with pytest.raises(ValueError, match=f'train.precision is tf32, but {name}'):
            tf32.set_precision(device)
        assert torch.get_float32_matmul_precision() == 'highest'
    tf32.set_precision(gpu)
    assert torch.get_float32_matmul_precision() == 'high'
    training.TrainOptions(epochs=1).set_precision(gpu)
    assert torch.get_float32_matmul_precision() == 'highest'


def test_bf16_keeps_weights_in_float32(call, script, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, 'cpu_has_bf16', lambda: False)
    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.precision=bf16') == 2
    assert 'train.precision is bf16, but this CPU' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()

    monkeypatch.setattr(training, 'cpu_has_bf16', lambda: True)
    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.precision=bf16') == 0
    assert call('--config', config, '-c', tmp_path / 'fp32') == 0
    half, full = lines(tmp_path / 'run')[-1], lines(tmp_path / 'fp32')[-1]
    assert half['train']['loss'] != full['train']['loss']
    assert half['train']['loss'] == pytest.approx(full['train']['loss'], abs=0.1)
    saved = checkpoint.load(tmp_path / 'run' / 'latest_epoch.bin', script.SCRIPT)
    assert {value.dtype for value in saved['model'].values()} <= {torch.float32, torch.int64}
