"""The PyTorch scripts as a user runs them, on tiny models and made-up clips; a step at full size; real motion."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train_action_mbert
import train_action_vanilla
from lib.config import load_config
from lib.pytorch import checkpoint, engine
from lib.pytorch.distributed import World
from lib.run import make_clips
from lib.runlog import RunLog
from tests import tiny
from tests.annotations import make_3d_annotations, make_annotations
from tests.processes import torchrun
from tests.tiny import assert_same_run, lines

ROOT = Path(train_action_mbert.__file__).parent
SCRIPTS = {'mbert': train_action_mbert, 'vanilla': train_action_vanilla}
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.yaml') if not path.stem.startswith('vivit'))
ALONE = World(0, 1, torch.device('cpu'))
MACHINE = ('accumulation_steps', 'activation_checkpointing', 'num_workers', 'save_every', 'keep')


def script_of(config: Path):
    """The script that a config's header names."""
    return SCRIPTS['vanilla' if 'train_action_vanilla.py' in config.read_text() else 'mbert']


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


@pytest.fixture
def config(script, tmp_path):
    """A config file for a tiny model on made-up clips, the pickle beside it."""
    return tiny.write_config(script.KIND, tmp_path)


@pytest.fixture
def call(script):
    """call(*argv) -> the exit code of the script."""
    return tiny.caller(script)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_trains_then_evaluates(call, config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '-freq', 2) == 0
    told = capsys.readouterr().out
    for part in ('made_up.pkl', 'xsub_train, 20 clips of 4 classes (chance 25.00%)', 'xsub_val, 10 clips', 'parameters',
                 '2 epochs, 0 done, 3 steps each', str(run), 'clips/s', 'done: best top1'):  # fmt: skip
        assert part in told, part
    written = {'latest_epoch.bin', 'latest_epoch.1.bin', 'best_epoch.bin', 'logs', 'run.lock'}
    written |= {'config.yaml', 'metrics.jsonl', 'timing.jsonl'}
    assert {path.name for path in run.iterdir()} == written
    assert yaml.safe_load((run / 'config.yaml').read_text())['data']['view_angle'] == 30.0  # defaults are written too
    first, last = lines(run)
    assert (first['epoch'], last['epoch']) == (1, 2)
    assert last['lr'] == pytest.approx(0.9e-3)
    assert set(last['val']) == {'loss', 'top1', 'top5', 'mean_class'}

    for name, line in (('latest_epoch.bin', last), ('best_epoch.bin', max(lines(run), key=lambda x: x['val']['top1']))):
        assert call('--evaluate', run / name) == 0
        told, val = capsys.readouterr().out, line['val']
        assert (
            f'Loss {val["loss"]:.4f} Acc@1 {100 * val["top1"]:.2f} Acc@5 {100 * val["top5"]:.2f} '
            f'MeanClass {100 * val["mean_class"]:.2f}\n'
        ) in told
        report = json.loads((run / 'evaluation.json').read_text())
        assert {key: report[key] for key in val} == val
        assert len(report['per_class']) == 4


def test_a_run_in_two_parts_equals_one_run_to_the_bit(script, call, config, tmp_path, capsys):
    assert call('--config', config, '-c', tmp_path / 'whole', '--set', 'train.epochs=3') == 0
    parts = tmp_path / 'parts'
    assert call('--config', config, '-c', parts, '--set', 'train.epochs=1') == 0
    capsys.readouterr()
    assert call('--config', config, '-c', parts, '--set', 'train.epochs=3') == 0
    told = capsys.readouterr().out
    assert f'goes on from {parts / "latest_epoch.bin"}, after epoch 1' in told
    assert 'changed since: train.epochs was 1, is 3' in told
    assert_same_run(tmp_path / 'whole', parts)


def test_another_folder_can_go_on_from_a_file(script, call, config, tmp_path):
    for name in ('a', 'b'):
        assert call('--config', config, '-c', tmp_path / name, '--set', f'train.epochs={2 if name == "a" else 1}') == 0
    assert call('--config', config, '-c', tmp_path / 'c', '-r', tmp_path / 'b' / 'latest_epoch.bin') == 0
    assert_same_run(tmp_path / 'a', tmp_path / 'c')
    assert (tmp_path / 'c' / 'best_epoch.bin').is_file()
    before = files(tmp_path / 'a')
    assert call('--config', config, '-c', tmp_path / 'a', '-r', tmp_path / 'b' / 'latest_epoch.bin') == 2
    assert files(tmp_path / 'a') == before


def test_a_finished_run_is_left_as_it_is(call, config, tmp_path, capsys):
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    before = lines(tmp_path / 'run')
    capsys.readouterr()
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    assert 'done: best top1' in capsys.readouterr().out
    assert lines(tmp_path / 'run') == before


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(call, config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '--set', 'train.epochs=1') == 0
    before = {name: (run / name).read_bytes() for name in ('latest_epoch.bin', 'best_epoch.bin', 'metrics.jsonl')}
    assert call('--config', config, '-c', run, '--set', 'optimizer.lr_backbone=1.0e+38') == 1
    told = capsys.readouterr().err
    assert 'the loss became nan in epoch 2, step 2 of 3, with the clips S001C001P0' in told
    assert {name: (run / name).read_bytes() for name in before} == before


def mistakes(kind: str):
    """Name -> (arguments, message)."""
    longest = {'mbert': 'maxlen', 'vanilla': 'num_frames'}[kind]
    return {
        'missing pickle': (['--set', 'data.ann_file=data/action/nothing.pkl'], 'python -m lib.data.sample'),
        'unknown benchmark': (['--set', 'data.benchmark=xview'], "no list 'xview_train'"),
        'label beyond the model': (['--set', 'model.num_classes=3'], 'has label 3, but model.num_classes is 3'),
        'clip too long': (['--set', f'model.{longest}=4'], f'data.clip_len 8 is over model.{longest} 4'),
        'joints': (['--set', 'model.num_joints=25'], 'model.num_joints is 25'),
        'size': (['--set', 'heatmap.size=10'], 'model.dim_in is 144, but the input has 100 numbers per joint'),
        'unknown key': (['--set', 'model.dpeth=2'], 'Did you mean depth'),
        'text for a number': (['--set', 'optimizer.lr_head=1e-4'], 'write 1.0e-04'),
        'no config': (['--config', 'configs/nothing.yaml'], 'there is no such config'),
        'no such input': (
            ['--set', 'data.input=heatmaps'],
            'data.input must be one of heatmap, keypoint_2d, keypoint_3d',
        ),
        'several inputs': (['--set', 'data.input=[heatmap]'], 'data.input must be one of heatmap'),
        'heatmap without drawing': (['--set', 'data.input=keypoint_2d'], 'the section heatmap must go'),
        'decay beside cosine': (['--set', 'train.lr_schedule=cosine'], 'train.lr_decay has no effect'),
        'pretrained without finetune': (['-p', 'folder'], '--set train.finetune=true'),
        'finetune without pretrained': (['--set', 'train.finetune=true'], '--pretrained FOLDER'),
        'no pretrained file': (
            ['--set', 'train.finetune=true', '-p', 'folder'],
            'folder/latest_epoch.bin',
        ),
        'part of no name': (['--set', 'train.partial_train=[nothing]'], 'train.partial_train'),
        'no such file to resume': (['-r', 'nothing.bin'], 'nothing.bin: there is no such file'),
    }


@pytest.mark.parametrize('mistake', mistakes('mbert'))
def test_mistakes_stop_before_anything_is_written(script, call, config, tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    arguments, message = mistakes(script.KIND)[mistake]
    before = files(tmp_path / 'run')
    arguments = arguments if '--config' in arguments else ['--config', config, *arguments]
    assert call('-c', tmp_path / 'run', *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith('error: ')
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert files(tmp_path / 'run') == before == {}


def test_unsound_pickles_stop_before_anything_is_written(call, config, tmp_path, capsys, write_pickle):
    data = make_annotations([20] * 6)
    data['annotations'][2].update(
        total_frames=0, keypoint=data['annotations'][2]['keypoint'][:, :0], keypoint_score=None
    )
    for content, message in (
        (write_pickle(data, 'empty_clip.pkl').read_bytes(), 'annotation 2 (S001C001P002R001A003) has zero frames'),
        (write_pickle(data, 'cut.pkl').read_bytes()[:-500], 'cut short'),
        (b'cos\nsystem\n(S"touch marker"\ntR.', 'asks for os.system'),
    ):
        path = tmp_path / 'bad.pkl'
        path.write_bytes(content)
        assert call('--config', config, '-c', tmp_path / 'run', '--set', f'data.ann_file={path}') == 2
        told = capsys.readouterr().err
        assert message in told
        assert str(path) in told
        assert not (tmp_path / 'run').exists()
        assert not Path('marker').exists()


def test_a_folder_with_another_run_is_not_touched(call, config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    before = files(run)
    for change in ('model.depth=2', 'data.seed=1', 'heatmap.sigma=0.7'):
        assert call('--config', config, '-c', run, '--set', change) == 2
        told = capsys.readouterr().err
        assert f'{change.split("=")[0]}: ' in told
        assert call('--config', config, '-e', run / 'latest_epoch.bin', '--set', change) == 2
        assert change.split('=')[0] in capsys.readouterr().err
    assert files(run) == before


def test_files_that_are_no_checkpoint_of_this_model_are_refused(script, call, config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    good = checkpoint.read(run / 'latest_epoch.bin')
    bad = tmp_path / 'bad.bin'

    def refused(message: str, *ways: str) -> None:
        for way in ways or ('-e', '-r'):
            arguments = ['-e', bad] if way == '-e' else ['--config', config, '-c', tmp_path / 'new', '-r', bad]
            assert call(*arguments) == 2
            told = capsys.readouterr().err
            assert str(bad) in told
            assert message in told
        assert not (tmp_path / 'new').exists()

    bad.write_bytes((run / 'latest_epoch.bin').read_bytes()[:-1000])
    refused('cannot be read as a checkpoint')
    bad.write_bytes(b'')
    refused('cut short')
    torch.save({'model': good['model']}, bad)
    refused('no checkpoint of this project', '-r')  # whose weights can be evaluated
    other = {'mbert': 'vanilla', 'vanilla': 'mbert'}[script.KIND]
    checkpoint.write(bad, good | {'kind': other})
    refused(f'a checkpoint of {other}: use train_action_{other}.py')
    checkpoint.write(bad, good | {'model': {k: v for k, v in good['model'].items() if k != 'head.fc2.bias'}})
    refused('head.fc2.bias is missing')
    torch.save({**good, 'code': Path}, bad)
    refused('asks for pathlib.Path, which was not run')


@pytest.fixture(scope='module')
def full_size_pickles(tmp_path_factory):
    """{is 3D: a pickle of two training clips and a test clip}."""
    folder = tmp_path_factory.mktemp('pickles')
    for is_3d, make in ((False, make_annotations), (True, make_3d_annotations)):
        (folder / f'{is_3d}.pkl').write_bytes(pickle.dumps(make([60, 120, 300], persons=[1, 2, 2])))
    return {is_3d: folder / f'{is_3d}.pkl' for is_3d in (False, True)}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_every_config_takes_a_step_at_full_size_and_evaluates(full_size_pickles, tmp_path, path):
    script = script_of(path)
    is_3d = '3danno' in path.read_text()
    overrides = [f'data.ann_file={full_size_pickles[is_3d]}', 'data.batch_size=2', 'train.epochs=1']
    config = load_config(path, script.SECTIONS, overrides)
    options = engine.TrainOptions(**config.train)
    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = engine.make_model(script.SECTIONS['model'], config, train_clips.num_joints, ALONE.device)
    if published := re.search(r'Published: .* ([\d,]+) parameters', path.read_text()):
        assert sum(p.numel() for p in model.parameters()) == int(published[1].replace(',', ''))
    else:
        assert path.parent.name == 'sample'
    optimizer = engine.make_optimizer(model, **config.optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    forward = engine.make_forward(render, model, options, ALONE)
    log, run = RunLog(tmp_path, {}, []), checkpoint.Run(tmp_path, script.KIND, config)
    metrics = engine.train_one_epoch(forward, model, optimizer, train_clips, run, options, ALONE, log, 1)
    assert 0 < metrics['loss'] < 10
    for name, p in model.named_parameters():
        assert p.requires_grad == (not name.startswith('backbone.head.'))
        # The bias before a batch norm is subtracted again with the mean: its gradient is rounding alone.
        assert (p.grad is not None and p.grad.any()) == p.requires_grad or name == 'head.fc1.bias', name
        assert torch.equal(p, before[name]) != p.requires_grad, name
    logits, labels = engine.predict(forward, model, val_clips, options, ALONE)
    assert logits.shape == (1, config.model.num_classes)
    assert labels == [2]


@pytest.mark.parametrize('path', [p for p in CONFIGS if p.parent.name == 'action'], ids=lambda path: path.stem)
def test_published_configs_write_every_key(path):
    written, resolved = yaml.safe_load(path.read_text()), load_config(path, script_of(path).SECTIONS)
    left_out = {('data', 'store_dir'), ('data', 'view_angle'), ('data', 'class_names')}
    # Speed, memory and safety are the machine's matter.
    left_out |= {('train', key) for key in MACHINE}
    assert {(s, k) for s in written for k in written[s]} == {(s, k) for s in resolved for k in resolved[s]} - left_out


def test_the_commands_of_the_configs_name_them():
    for path in CONFIGS:
        assert f'--config {path.relative_to(ROOT)} --checkpoint checkpoint/action/' in path.read_text()
    for script in SCRIPTS.values():
        assert (ROOT / script.DEFAULT_CONFIG).is_file()
        assert script.DEFAULT_CONFIG in script.__doc__


@pytest.mark.parametrize('kind', ['keypoint_2d', 'keypoint_3d'])
def test_keypoints_go_the_same_way(call, script, tmp_path, write_pickle, capsys, kind):
    make, joints = (make_annotations, 17) if kind == 'keypoint_2d' else (make_3d_annotations, 25)
    content = tiny.content(script.KIND, tmp_path)
    del content['heatmap']
    content['data'] |= {'input': kind, 'ann_file': str(write_pickle(make([5, 12, 40] * 10, persons=[1, 2, 2] * 10)))}
    content['model'] |= {'num_joints': joints, 'dim_in': 3}
    config = tmp_path / 'keypoint.yaml'
    config.write_text(yaml.safe_dump(content))
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    assert 'heatmap' not in yaml.safe_load((run / 'config.yaml').read_text())
    assert 'crop_area' not in (run / 'config.yaml').read_text()
    told = capsys.readouterr().out
    assert f'8 frames ({"x, y, score" if joints == 17 else "x, y, z"})' in told
    assert call('--evaluate', run / 'latest_epoch.bin') == 0
    assert f'Acc@1 {100 * lines(run)[-1]["val"]["top1"]:.2f}' in capsys.readouterr().out


@pytest.mark.parametrize(('is_3d', 'kind', 'channels'), [(False, 'limb', 17), (False, 'both', 34), (True, 'both', 49)])
def test_limbs_and_3d_pickles_are_drawn_the_same_way(
    call, config, tmp_path, write_pickle, capsys, is_3d, kind, channels
):
    make = make_3d_annotations if is_3d else make_annotations
    pickle_path = write_pickle(make([5, 12, 40] * 10), 'drawn.pkl')
    overrides = [f'data.ann_file={pickle_path}', f'heatmap.kind={kind}', 'train.epochs=1']
    overrides = [part for override in overrides for part in ('--set', override)]
    assert (
        call('--config', config, '-c', tmp_path / 'run', *overrides, '--set', f'model.num_joints={channels + 1}') == 2
    )
    assert f'set model.num_joints to {channels}' in capsys.readouterr().err
    assert call('--config', config, '-c', tmp_path / 'run', *overrides, '--set', f'model.num_joints={channels}') == 0


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
    monkeypatch.setattr(engine.F, 'cross_entropy', cross_entropy)
    monkeypatch.setattr(
        torch.optim.AdamW, 'step', lambda self: (seen['rates'].append(self.param_groups[1]['lr']), step(self))
    )
    options = ['lr_schedule=cosine', 'lr_decay=null', 'warmup_epochs=1', 'label_smoothing=0.1', 'max_grad_norm=0.5']
    overrides = [part for option in options for part in ('--set', f'train.{option}')]
    overrides += ['--set', 'model.drop_path_rate=0.2', '--set', 'model.depth=2']
    assert call('--config', config, '-c', tmp_path / 'run', *overrides) == 0
    assert max(before for before, _ in seen['norms']) > 0.5
    assert max(after for _, after in seen['norms']) < 0.501
    assert seen['smoothing'] == {0.1}
    assert seen['rates'] == pytest.approx([1e-3 * x for x in (1 / 3, 2 / 3, 1, 1, 0.75, 0.25)])


def test_views_of_a_test_clip_are_averaged(script, call, config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    views = ['--set', 'data.test_clips=10', '--set', 'data.test_flip=true']
    assert call('-e', run / 'latest_epoch.bin', *views) == 0
    report = json.loads((run / 'evaluation.json').read_text())
    assert report['views'] == 20
    assert '20 views of each test clip' in capsys.readouterr().out

    config = load_config(config, script.SECTIONS, views[1::2])
    clips, options = make_clips(config, 'val'), engine.TrainOptions(**config.train)
    render, model = engine.make_model(script.SECTIONS['model'], config, clips.num_joints, ALONE.device)
    checkpoint.load_weights(model, checkpoint.load(run / 'latest_epoch.bin', script.KIND)['model'], run)
    forward = engine.make_forward(render, model, options, ALONE)
    logits, label = engine.predict(forward, model, clips, options, ALONE)
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)
    with torch.inference_mode():
        batches = [clips[0, b] for b in range(len(clips))]
        singles = [  # each view alone, in batches of other clips' same view
            np.concatenate(
                [forward(torch.tensor(b['keypoint'][:, k]), torch.tensor(b['score'][:, k])).softmax(1) for b in batches]
            )
            for k in range(20)
        ]
    np.testing.assert_allclose(np.exp(logits), np.mean(singles, axis=0), rtol=1e-4)
    assert np.ptp(singles, axis=0).max() > 1e-4
    assert report['loss'] == pytest.approx(-np.log(np.mean(singles, axis=0)[np.arange(len(label)), label]).mean(), 1e-4)


def test_fine_tuning_begins_with_the_weights_of_another_run(script, call, config, tmp_path, capsys):
    source = tmp_path / 'source'
    assert call('--config', config, '-c', source, '--set', 'train.epochs=1') == 0
    capsys.readouterr()
    tuned = ['--config', config, '-c', tmp_path / 'tuned', '-p', source, '-ms', 'best_epoch.bin']
    tuned += ['--set', 'train.finetune=true', '--set', 'model.num_classes=6', '--set', 'train.partial_train=[]']
    assert call(*tuned) == 0
    told = capsys.readouterr().out
    assert 'best_epoch.bin' in told
    assert 'of another shape, start fresh: head.fc2' in told
    before, after = (
        torch.load(path, weights_only=True)['model']
        for path in (source / 'best_epoch.bin', tmp_path / 'tuned' / 'latest_epoch.bin')
    )
    for name, value in after.items():  # nothing but the head was trained
        assert name.startswith('head.') or torch.equal(value, before[name]), name
    assert not torch.equal(after['head.fc1.weight'], before['head.fc1.weight'])
    # A run that has begun goes on from its own weights, with or without the flag.
    for again in (tuned, [*tuned[:4], *tuned[8:]]):
        assert call(*again, '--set', 'train.epochs=3') == 0
        assert 'loaded' not in capsys.readouterr().out
    assert call(*tuned, '--set', 'train.partial_train=null') == 2
    assert 'train.partial_train' in capsys.readouterr().err


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_checkpoints_of_others_are_evaluated_with_the_config_that_is_named(
    script, call, config, tmp_path, capsys, prefix
):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    weights = torch.load(run / 'latest_epoch.bin', weights_only=True)['model']
    theirs = tmp_path / 'theirs' / 'best_epoch.bin'
    theirs.parent.mkdir()
    content = {'epoch': 3, 'lr': 1e-4, 'optimizer': {}, 'best_acc': np.float64(87.7)}
    torch.save(content | {'model': {prefix + name: value for name, value in weights.items()}}, theirs)
    capsys.readouterr()
    assert call('-e', theirs, '--config', config) == 0
    told = capsys.readouterr().out
    assert f'Acc@1 {100 * lines(run)[-1]["val"]["top1"]:.2f} ' in told
    assert f'not of this project; config {config}' in told
    assert call('-e', theirs, '--config', config, '--set', 'model.dim_feat=32') == 2
    assert 'is a checkpoint of another model' in capsys.readouterr().err


@pytest.mark.parametrize(('name', 'classes'), [('sbu', 8), ('cmu', 7)])
def test_learns_on_real_motion(script, motion, config, tmp_path, name, classes):
    """A few epochs on 48 of its clips: a model that gets the right input fits them."""
    overrides = [
        f'data.ann_file={motion(f"{name}_hrnet.pkl")}', f'data.store_dir={tmp_path}', f'model.num_classes={classes}',
        'heatmap.size=24', 'model.dim_in=576', 'model.dropout_ratio=0.0',
        'data.crop_area=[1.0, 1.0]', 'data.crop_ratio=[1.0, 1.0]', 'data.flip_ratio=0.0',
    ]  # fmt: skip
    config = load_config(config, script.SECTIONS, overrides)
    clips = make_clips(config, 'train')
    render, model = engine.make_model(script.SECTIONS['model'], config, clips.num_joints, ALONE.device)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        for b in range(6):  # the same 48 clips each epoch, in newly drawn frames
            batch = {key: torch.from_numpy(value) for key, value in clips[0, b].items()}
            loss = torch.nn.functional.cross_entropy(model(render(batch['keypoint'], batch['score'])), batch['label'])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-6:]) / 6 < 0.5 * sum(losses[:6]) / 6


@pytest.mark.gpu
def test_the_same_command_trains_on_a_gpu(call, config, tmp_path, capsys):
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    assert 'on cuda' in capsys.readouterr().out


def test_runs_without_tensorflow(script):
    code = f"import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; import {script.__name__}"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_several_processes_train_as_one(script, call, config, tmp_path):
    """To rounding the same losses, with a last batch in which some processes of four have no clip."""
    count = {'mbert': 4, 'vanilla': 2}[script.KIND]
    data = make_annotations([5, 12, 40] * 9 + [9, 9], persons=[1, 2, 1] * 9 + [1, 1])
    (tmp_path / 'made_up.pkl').write_bytes(pickle.dumps(data))
    # A small rate: where a gradient is rounding alone, before a batch norm, Adam makes whole steps of it.
    changes = ['model.dropout_ratio=0.0', 'optimizer.lr_head=1.0e-5', 'optimizer.lr_backbone=1.0e-5']
    command = ['--config', config, '-freq', 1, *(part for change in changes for part in ('--set', change))]
    one, many = tmp_path / 'one', tmp_path / 'many'
    assert call(*command, '-c', one) == 0
    first_epoch = torchrun(count, script.__file__, *command, '-c', many, '--set', 'train.epochs=1')
    told = subprocess.run(first_epoch, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.count(f'on {count} x cpu') == told.count('val loss') == 1
    assert told.count('19/19 clips') == 1

    # One process goes on with what several have written, and several with what one has written.
    assert call(*command, '-c', many) == 0
    one_epoch = tmp_path / 'one_epoch'
    assert call(*command, '-c', one_epoch, '--set', 'train.epochs=1') == 0
    second_epoch = torchrun(count, script.__file__, *command, '-c', one_epoch)
    subprocess.run(second_epoch, cwd=ROOT, capture_output=True, check=True)
    for folder in (many, one_epoch):
        for a, b in zip(lines(one), lines(folder), strict=True):
            assert a['train'] == pytest.approx(b['train'], abs=1e-4)
            assert a['val'] == pytest.approx(b['val'], abs=1e-4)
        a, b = (checkpoint.load(f / checkpoint.LATEST, script.KIND) for f in (one, folder))
        for name, value in a['model'].items():
            assert torch.allclose(value, b['model'][name], atol=2 * 6 * 1e-5), name
        for i, moments in a['optimizer']['state'].items():  # Adam's step does not depend on the gradient's length
            moment, other = moments['exp_avg'], b['optimizer']['state'][i]['exp_avg']
            assert (moment - other).abs().max() < 1e-3 * moment.abs().max() + 1e-5, i
        assert len(list((folder / 'logs').iterdir())) == 2  # one writer for each of the two runs


@pytest.mark.parametrize('script', ['vanilla'], indirect=True)
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(script, config, tmp_path):
    run = tmp_path / 'run'
    command = torchrun(2, script.__file__, '--config', config, '-c', run, '-freq', 1, '--set')
    with subprocess.Popen(
        [*command, 'train.epochs=10000'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        for line in job.stdout:
            if line.startswith('epoch 2/'):
                break
        children = Path(f'/proc/{job.pid}/task/{job.pid}/children').read_text().split()
        killed = time.monotonic()
        os.kill(int(children[1]), signal.SIGKILL)
        _, told = job.communicate(timeout=60)
        assert time.monotonic() - killed < 60
    assert job.returncode == 1
    assert 'Signal 9 (SIGKILL)' in told
    done = len(lines(run))
    again = subprocess.run([*command, f'train.epochs={done + 1}'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'goes on from' in again.stdout
    assert len(lines(run)) == done + 1


@pytest.mark.parametrize('script', ['vanilla'], indirect=True)
def test_processes_stop_together_when_one_of_them_is_asked_to(script, config, tmp_path):
    """As does torchrun, which hands on the signals that it is given, some of which the processes have got already."""
    command = ['--config', config, '-freq', 1, '--set', 'train.epochs=8', '-c']
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    subprocess.run(torchrun(2, script.__file__, *command, whole), cwd=ROOT, capture_output=True, check=True)
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(torchrun(2, script.__file__, *command, run), cwd=ROOT, **pipes) as job:
        for line in job.stdout:
            if line.startswith('epoch 2/'):
                break
        children = Path(f'/proc/{job.pid}/task/{job.pid}/children').read_text().split()
        os.kill(int(children[1]), signal.SIGTERM)  # which is not the one that writes
        os.kill(job.pid, signal.SIGTERM)
        _, told = job.communicate(timeout=60)
    assert told.count(f'The same command goes on from {run / "latest_epoch.bin"}') == 2
    assert len(lines(run)) < 8
    subprocess.run(torchrun(2, script.__file__, *command, run), cwd=ROOT, capture_output=True, check=True)
    assert_same_run(whole, run)


@pytest.mark.parametrize('script', ['vanilla'], indirect=True)
def test_a_batch_that_processes_or_parts_cannot_share_is_refused(call, script, config, tmp_path, capsys):
    command = torchrun(2, script.__file__, '--config', config, '-c', tmp_path / 'run')
    told = subprocess.run([*command, '--set', 'data.batch_size=7'], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1  # torchrun's own
    assert 'error: data.batch_size 7, which is that of all devices together, does not divide among 2' in told.stderr
    assert 'set data.batch_size to a multiple of 2' in told.stderr

    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.accumulation_steps=3') == 2
    assert 'set data.batch_size to a multiple of 3' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_batch_norm_asks_for_two_clips_at_once(script, call, config, tmp_path, capsys):
    parts = ['--set', 'train.accumulation_steps=5', '--set', 'data.batch_size=5']
    for size in (['--set', 'data.batch_size=1'], parts):
        assert call('--config', config, '-c', tmp_path / 'run', *size) == 2
        assert 'too small: batch norm takes 2 clips or more' in capsys.readouterr().err
        assert not (tmp_path / 'run').exists()
    if script.KIND == 'vanilla':  # whose other head has no batch norm
        linear = ['model.protocol=linprobe', 'model.dropout_ratio=null', 'data.batch_size=1', 'train.epochs=1']
        sets = [part for text in linear for part in ('--set', text)]
        assert call('--config', config, '-c', tmp_path / 'run', *sets) == 0


@pytest.mark.parametrize('script', ['vanilla'], indirect=True)  # without batch norm, which sees one part at a time
def test_parts_of_a_batch_add_up_to_it(call, config, tmp_path, monkeypatch):
    command = ['--config', config, '--set', 'model.protocol=linprobe', '--set', 'model.dropout_ratio=null']
    sizes = []
    monkeypatch.setattr(
        engine, 'split', lambda *a, split=engine.split: [sizes.append(len(p['label'])) or p for p in split(*a)]
    )
    for parts in (1, 4):
        run = tmp_path / str(parts)
        assert call(*command, '-c', run, '--set', f'train.accumulation_steps={parts}', '--set', 'train.epochs=1') == 0
    assert sizes == [8, 8, 4] + [2] * 10
    one, four = (lines(tmp_path / name)[0] for name in '14')
    assert one['train'] == pytest.approx(four['train'], abs=1e-6)
    assert one['val'] == pytest.approx(four['val'], abs=1e-5)


def test_activation_checkpointing_changes_memory_alone(call, script, config, tmp_path):
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


def test_a_short_batch_compiles_nothing_anew(call, config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.compile=true') == 0
    assert counters['stats']['unique_graphs'] == 2  # one to train, one to evaluate
    assert not counters['graph_break']
    assert call('--config', config, '-c', tmp_path / 'eager') == 0
    for compiled, eager in zip(lines(tmp_path / 'run'), lines(tmp_path / 'eager'), strict=True):
        assert compiled['train'] == pytest.approx(eager['train'], abs=1e-5)


def test_bf16_trains_with_weights_of_fp32(call, script, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, 'cpu_has_bf16', lambda: False)
    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.precision=bf16') == 2
    assert 'train.precision is bf16, but this CPU does not compute in bfloat16' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()

    monkeypatch.setattr(engine, 'cpu_has_bf16', lambda: True)
    assert call('--config', config, '-c', tmp_path / 'run', '--set', 'train.precision=bf16') == 0
    assert call('--config', config, '-c', tmp_path / 'fp32') == 0
    half, full = lines(tmp_path / 'run')[-1], lines(tmp_path / 'fp32')[-1]
    assert half['train']['loss'] != full['train']['loss']
    assert half['train']['loss'] == pytest.approx(full['train']['loss'], abs=0.1)
    saved = checkpoint.load(tmp_path / 'run' / checkpoint.LATEST, script.KIND)
    assert {value.dtype for value in saved['model'].values()} <= {torch.float32, torch.int64}
