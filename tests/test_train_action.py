"""The three scripts as a user runs them, with tiny models and generated clips."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lib.models import MODELS
from tests import tiny
from tests.annotations import make_3d_annotations, make_annotations
from tests.pytorch.test_pretrained import FORMS, mamp_weights
from tests.tiny import assert_same_run, files, lines

ROOT = Path(__file__).parents[1]
# TensorFlow traces its graphs for seconds in each training.
TRAINING = ['mbert', 'vanilla', pytest.param('vivit', marks=pytest.mark.slow)]
OTHER = {'mbert': 'vanilla', 'vanilla': 'vivit', 'vivit': 'mbert'}


@pytest.fixture(params=tiny.SCRIPTS)
def kind(request):
    return request.param


@pytest.fixture
def config(kind, tmp_path):
    """Config file of a tiny model, beside its generated pickle."""
    return tiny.write_config(kind, tmp_path)


@pytest.fixture
def call(kind):
    """call(*argv) -> exit code of the script."""
    return tiny.caller(tiny.SCRIPTS[kind])


@pytest.fixture
def suffix(kind):
    return MODELS[kind].suffix


def test_trains_and_evaluates(call, config, tmp_path, capsys, suffix):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '-freq', 2) == 0
    output = capsys.readouterr().out
    for part in (
        'generated.pkl',
        'xsub_train, 20 clips of 4 classes (chance 25.00%)',
        'xsub_val, 10 clips',
        str(run),
        '2 epochs, 0 done, 3 steps each',
        'parameters',
        'clips/s',
        'peak memory ',
        'done: best top1',
    ):
        assert part in output, part
    written = {f'latest_epoch{suffix}', f'latest_epoch.1{suffix}', f'best_epoch{suffix}', 'logs', 'run.lock'}
    written |= {'config.yaml', 'metrics.jsonl', 'timing.jsonl'}
    assert {path.name for path in run.iterdir()} == written
    # Defaults are written too.
    assert yaml.safe_load((run / 'config.yaml').read_text())['augmentation']['view_angle'] == 30.0
    first, last = lines(run)
    assert (first['epoch'], last['epoch']) == (1, 2)
    assert list(last['lr'].values()) == pytest.approx([0.9e-3] * len(last['lr']))

    best = max((first, last), key=lambda line: line['val']['top1'])
    for name, line in ((f'latest_epoch{suffix}', last), (f'best_epoch{suffix}', best)):
        assert call('--evaluate', run / name) == 0
        val = line['val']
        assert f'Loss {val["loss"]:.4f} Acc@1 {100 * val["top1"]:.2f} ' in capsys.readouterr().out
        report = json.loads((run / 'evaluation.json').read_text())
        assert {key: report[key] for key in ('loss', 'top1', 'top5', 'mean_class')} == val

    assert call('--config', config, '-c', run) == 0  # a finished run is not changed
    assert 'done: best top1' in capsys.readouterr().out
    assert lines(run) == [first, last]


@pytest.mark.parametrize('kind', TRAINING)
def test_epochs_can_be_raised_and_a_file_resumed_in_another_folder(call, config, tmp_path, capsys, suffix):
    assert call('--config', config, '-c', tmp_path / 'whole', '--set', 'train.epochs=3') == 0
    part = tmp_path / 'part'
    assert call('--config', config, '-c', part, '--set', 'train.epochs=1') == 0
    arguments = ['--config', config, '--set', 'train.epochs=3', '-c']
    assert call(*arguments, tmp_path / 'other', '-r', part / f'latest_epoch{suffix}') == 0
    assert (tmp_path / 'other' / f'best_epoch{suffix}').is_file()
    capsys.readouterr()
    assert call(*arguments, part) == 0
    assert 'changed: train.epochs was 1, is 3' in capsys.readouterr().out
    for folder in (part, tmp_path / 'other'):
        assert_same_run(tmp_path / 'whole', folder)
    before = files(tmp_path / 'whole')
    assert call(*arguments, tmp_path / 'whole', '-r', part / f'latest_epoch{suffix}') == 2
    assert 'which resumes automatically' in capsys.readouterr().err
    assert files(tmp_path / 'whole') == before


@pytest.mark.parametrize('kind', ['mbert', 'vanilla'])
def test_every_step_has_its_own_dropout(call, config, tmp_path, monkeypatch):
    manual_seed, seeds = torch.manual_seed, []
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: seeds.append(seed) or manual_seed(seed))
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    assert len(set(seeds)) == len(seeds) == 1 + 2 * 3  # initial weights, then one seed per step


@pytest.mark.parametrize('kind', ['mbert', 'vanilla'])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoints(call, config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '--set', 'train.epochs=1') == 0
    before = {name: (run / name).read_bytes() for name in ('latest_epoch.bin', 'best_epoch.bin', 'metrics.jsonl')}
    assert call('--config', config, '-c', run, '--set', 'optimizer.lr_backbone=1.0e+38') == 1
    assert 'the loss became nan in epoch 2, step 2 of 3, with the clips S001C001P0' in capsys.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before


MISTAKES = {
    'missing pickle': (['--set', 'data.ann_file=data/action/nothing.pkl'], 'nothing.pkl'),
    'unknown benchmark': (['--set', 'data.benchmark=xview'], 'xview_train'),
    'label beyond the model': (['--set', 'model.num_classes=3'], 'has label 3, but model.num_classes is 3'),
    'clip too long': (['--set', 'data.clip_len=12'], 'data.clip_len'),
    'joints': (['--set', 'model.num_joints=25'], 'model.num_joints'),
    'kind of maps': (['--set', 'heatmap.kind=both'], 'set model.num_joints to 34'),
    'unknown key': (['--set', 'model.dpeth=2'], 'Did you mean depth'),
    'text for a number': (['--set', 'optimizer.weight_decay=1e-4'], 'write 1.0e-04'),
    'no config': (['--config', 'configs/nothing.yaml'], 'configs/nothing.yaml'),
    'no such input': (['--set', 'data.input=heatmaps'], 'one of heatmap, keypoint_2d, keypoint_3d'),
    'heatmap section for keypoints': (['--set', 'data.input=keypoint_2d'], 'Omit the section heatmap'),
    'no such file to resume': (['-r', 'nothing{suffix}'], 'nothing{suffix}'),
    'pretrained without finetune': (['-p', 'folder'], '--set train.finetune=true'),
    'finetune without pretrained': (['--set', 'train.finetune=true'], '--pretrained FOLDER'),
    'no pretrained file': (['--set', 'train.finetune=true', '-p', 'folder'], 'folder/latest_epoch{suffix}'),
    'negative decay': (['--set', 'optimizer.weight_decay=-1'], 'optimizer.weight_decay is -1'),
    'narrow mlp': (['--set', 'model.mlp_ratio=0.01'], 'model.mlp_ratio is 0.01'),
    'huge number': (['--set', 'train.seed=' + '9' * 23], 'train.seed must be a whole number'),
    'missing class names': (['--set', 'data.class_names=nothing.txt'], 'nothing.txt'),
}
PYTORCH_MISTAKES = {
    'negative rate': (['--set', 'optimizer.lr_head=-1'], 'optimizer.lr_head is -1'),
    'size': (['--set', 'heatmap.size=10'], 'model.dim_in is 144'),
    'part of no name': (['--set', 'train.partial_train=[nothing]'], 'train.partial_train'),
}
VIVIT_MISTAKES = {
    'negative rate': (['--set', 'optimizer.lr=-1'], 'optimizer.lr is -1'),
    'size': (['--set', 'heatmap.size=16'], 'heatmap.size is 16, but model.size is 12'),
}


@pytest.mark.parametrize(
    ('kind', 'mistake'),
    [
        (kind, mistake)
        for kind in tiny.SCRIPTS
        for mistake in MISTAKES | (VIVIT_MISTAKES if kind == 'vivit' else PYTORCH_MISTAKES)
    ],
)
def test_mistakes_stop_before_anything_is_written(kind, call, config, tmp_path, capsys, monkeypatch, mistake, suffix):
    monkeypatch.chdir(tmp_path)
    arguments, message = (MISTAKES | (VIVIT_MISTAKES if kind == 'vivit' else PYTORCH_MISTAKES))[mistake]
    arguments = [argument.format(suffix=suffix) for argument in arguments]
    arguments = arguments if '--config' in arguments else ['--config', config, *arguments]
    assert call('-c', tmp_path / 'run', *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert message.format(suffix=suffix) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('kind', TRAINING)
def test_wrong_folders_and_files_are_refused_and_not_touched(kind, call, config, tmp_path, capsys, suffix):
    run, bad = tmp_path / 'run', tmp_path / f'bad{suffix}'
    latest = run / f'latest_epoch{suffix}'
    assert call('--config', config, '-c', run, '--set', 'train.epochs=1') == 0
    before = files(run)
    for change in ('model.depth=2', 'data.seed=1', 'heatmap.sigma=0.7'):
        for arguments in (['-c', run], ['-e', latest]):
            assert call('--config', config, *arguments, '--set', change) == 2
            assert change.split('=')[0] in capsys.readouterr().err
    assert call('--config', config, '-c', run, '--set', 'data.batch_size=4') == 2
    assert 'train.accumulation_steps' in capsys.readouterr().err
    assert call('--config', config, '-c', run, '-r', tmp_path / f'nothing{suffix}') == 2
    assert 'there is no such file' in capsys.readouterr().err
    assert files(run) == before

    good = tiny.latest(run)

    def refused(message: str) -> None:
        for arguments in (['-e', bad], ['--config', config, '-c', tmp_path / 'new', '-r', bad]):
            assert call(*arguments) == 2
            error = capsys.readouterr().err
            assert str(bad) in error
            assert message in error
            assert len(error.strip().splitlines()) == 1
        assert not (tmp_path / 'new').exists()

    bad.write_bytes(latest.read_bytes()[:-1000])
    refused('truncated')
    bad.write_bytes(b'')
    refused('truncated')
    tiny.write_checkpoint(bad, {key: value for key, value in good.items() if key != 'format'})
    refused('is not a checkpoint of this version')
    tiny.write_checkpoint(bad, good | {'config': good['config'] | {'script': OTHER[kind]}})
    refused(f'use train_action_{OTHER[kind]}.py')
    name = next(name for name in good['model'] if name.startswith('head') or '/head/' in name)
    tiny.write_checkpoint(bad, good | {'model': {key: value for key, value in good['model'].items() if key != name}})
    refused(name)
    if kind == 'vivit':
        np.savez(bad, code=np.array([Path], dtype=object))
    else:
        torch.save({**good, 'code': Path}, bad)
    refused('')


@pytest.mark.parametrize('kind', ['mbert', 'vanilla'])
@pytest.mark.parametrize('form', ['keypoint_2d', 'keypoint_3d'])
def test_keypoint_inputs(kind, call, tmp_path, write_pickle, capsys, form):
    make, joints = (make_annotations, 17) if form == 'keypoint_2d' else (make_3d_annotations, 25)
    content = tiny.content(kind, tmp_path)
    del content['heatmap']
    content['data'] |= {'input': form, 'ann_file': str(write_pickle(make([5, 12, 40] * 10, persons=[1, 2, 2] * 10)))}
    content['model'] |= {'num_joints': joints, 'dim_in': 3}
    config = tmp_path / 'keypoint.yaml'
    config.write_text(yaml.safe_dump(content))
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    assert f'({"x, y, score" if joints == 17 else "x, y, z"})' in capsys.readouterr().out
    assert 'heatmap' not in yaml.safe_load((run / 'config.yaml').read_text())
    assert call('--evaluate', run / 'latest_epoch.bin') == 0
    assert f'Acc@1 {100 * lines(run)[-1]["val"]["top1"]:.2f}' in capsys.readouterr().out


@pytest.mark.parametrize('kind', ['vivit'])
def test_vivit_refuses_keypoint_inputs(tmp_path, call, config, capsys):
    content = yaml.safe_load(config.read_text())
    del content['heatmap']
    content['data']['input'] = 'keypoint_2d'
    config.write_text(yaml.safe_dump(content))
    assert call('--config', config, '-c', tmp_path / 'run') == 2
    assert 'set data.input to heatmap' in capsys.readouterr().err


@pytest.mark.parametrize('kind', TRAINING)
@pytest.mark.parametrize(('is_3d', 'maps', 'channels'), [(False, 'limb', 17), (False, 'both', 34), (True, 'both', 49)])
def test_limbs_and_3d_pickles(call, config, tmp_path, write_pickle, is_3d, maps, channels):
    make = make_3d_annotations if is_3d else make_annotations
    pickle_path = write_pickle(make([5, 12, 40] * 4), 'drawn.pkl')
    changes = f'data.ann_file={pickle_path}', f'heatmap.kind={maps}', f'model.num_joints={channels}', 'train.epochs=1'
    assert call('--config', config, '-c', tmp_path / 'run', *tiny.overrides(*changes)) == 0


@pytest.mark.parametrize('kind', ['mbert', 'vanilla'])
def test_fine_tuning(call, config, tmp_path, capsys):
    source, run = tmp_path / 'source', tmp_path / 'tuned'
    assert call('--config', config, '-c', source, '--set', 'train.epochs=1') == 0
    capsys.readouterr()
    options = ['train.finetune=true', 'model.num_classes=6', 'train.partial_train=[]', 'train.save_every=1']
    tune = ['--config', config, '-c', run, *tiny.overrides(*options)]
    pretrained = ['-p', source, '-ms', 'best_epoch.bin']
    assert call(*tune, *pretrained) == 0
    output = capsys.readouterr().out
    assert 'loaded' in output
    assert 'shape mismatch, initialised randomly: head.fc2' in output
    before, after = (
        torch.load(path, weights_only=True)['model'] for path in (source / 'best_epoch.bin', run / 'latest_epoch.bin')
    )
    for name, value in after.items():  # only the head was trained
        assert name.startswith('head.') or torch.equal(value, before[name]), name
    assert not torch.equal(after['head.fc1.weight'], before['head.fc1.weight'])
    # A run resumes from its own weights with or without the flag, even if it was interrupted in its first epoch.
    within_first = tmp_path / 'interrupted'
    within_first.mkdir()
    (run / 'latest_epoch.1.bin').rename(within_first / 'latest_epoch.bin')
    assert tiny.latest(within_first)['epoch'] == 1
    first = tiny.latest(within_first) | {'epoch': 0, 'step': 1, 'history': []}
    tiny.write_checkpoint(within_first / 'latest_epoch.bin', first)
    for folder, flags in ((run, pretrained), (run, []), (within_first, [])):
        assert call(*tune, *flags, '-c', folder, '--set', 'train.epochs=3') == 0
        assert 'loaded' not in capsys.readouterr().out
    # These change the optimizer's groups of parameters.
    for change in ('train.partial_train=null', 'optimizer.layer_decay=0.5'):
        assert call(*tune, *pretrained, '--set', change) == 2
        assert change.partition('=')[0] in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['vanilla'])
def test_fine_tuning_of_mamps_encoder(call, kind, tmp_path, write_pickle, capsys):
    """The row vanilla_finetune_3d with a small encoder: pretrained, resumed, evaluated."""
    row = yaml.safe_load((ROOT / 'configs/action/vanilla_finetune_3d.yaml').read_text())
    row['data'] |= {
        'ann_file': str(write_pickle(make_3d_annotations([5, 70, 120] * 6))),
        'clip_len': 8,
        'batch_size': 4,
    }
    row['model'] |= {'num_joints': 25, 'num_frames': 8, 'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_classes': 4}
    row['train'] |= {'epochs': 2, 'warmup_epochs': 1}
    config, run, weights = tmp_path / 'row.yaml', tmp_path / 'run', mamp_weights(num_joints=25)
    config.write_text(yaml.safe_dump(row))
    torch.save(FORMS['checkpoint of MAMP'](weights), tmp_path / 'checkpoint-399.pth')
    pretrained = ['-p', tmp_path, '-ms', 'checkpoint-399.pth']
    still = ['--set', 'optimizer.lr_backbone=0.0', '--set', 'train.epochs=1', '--set', 'train.warmup_epochs=0']
    assert call('--config', config, '-c', tmp_path / 'still', *pretrained, *still) == 0
    saved = tiny.latest(tmp_path / 'still')['model']
    assert all(torch.equal(weights[name], value) for name, value in saved.items() if not name.startswith('head.'))
    for epochs in (2, 3):
        assert call('--config', config, '-c', run, *pretrained, '--set', f'train.epochs={epochs}') == 0
    output = capsys.readouterr().out
    assert 'not in this model, ignored: decoder_' in output
    assert 'resuming' in output
    rates = [line['lr'] for line in lines(run)]
    assert all(rate.keys() == {'backbone', 'head'} and rate['backbone'] == rate['head'] for rate in rates)
    assert call('-e', run / 'best_epoch.bin') == 0
    assert call('--config', config, '-c', tmp_path / 'other') == 2
    assert '--pretrained FOLDER' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['mbert', 'vanilla'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_checkpoints_of_other_projects_are_evaluated_with_the_given_config(call, config, tmp_path, capsys, prefix):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    weights = torch.load(run / 'latest_epoch.bin', weights_only=True)['model']
    theirs = tmp_path / 'theirs' / 'best_epoch.bin'
    theirs.parent.mkdir()
    content = {'epoch': 3, 'lr': 1e-4, 'optimizer': {}, 'best_acc': np.float64(87.7)}
    torch.save(content | {'model': {prefix + name: value for name, value in weights.items()}}, theirs)
    capsys.readouterr()
    assert call('-e', theirs, '--config', config) == 0
    assert f'Acc@1 {100 * lines(run)[-1]["val"]["top1"]:.2f} ' in capsys.readouterr().out
    assert call('-e', theirs, '--config', config, '--set', 'model.dim_feat=32') == 2
    assert f'error: {theirs} does not fit' in capsys.readouterr().err


def test_runs_without_the_other_framework(kind):
    missing = ('torch', 'torchvision') if kind == 'vivit' else ('tensorflow', 'keras')
    code = f'import sys; sys.modules |= dict.fromkeys({missing}); import train_action_{kind}'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize('kind', ['vivit'], indirect=True)  # the others: tests/pytorch/test_gpu.py
def test_the_same_command_trains_on_a_gpu(call, config, tmp_path, capsys):
    tensorflow = pytest.importorskip('tensorflow')
    if not tensorflow.config.list_physical_devices('GPU'):
        pytest.skip('this TensorFlow sees no GPU')
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    assert 'on cuda' in capsys.readouterr().out


@pytest.mark.parametrize('kind', TRAINING)
def test_class_names_are_kept_in_the_checkpoint(kind, call, config, tmp_path):
    """They are independent of the file of class names; --set can select another file."""
    names, other = tmp_path / 'generated_classes.txt', tmp_path / 'other.txt'
    names.write_text('stand\nsit\njump\nrun\n')
    other.write_text('a\nb\nc\nd\n')
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '--set', 'train.epochs=1') == 0
    names.unlink()
    for change, expected in (([], 'stand'), (['--set', f'data.class_names={other}'], 'a')):
        assert call('--evaluate', run, *change) == 0
        assert json.loads((run / 'evaluation.json').read_text())['class_names'][0] == expected
    assert call('--config', config, '-c', run) == 0
    assert tiny.latest(run)['class_names'] == ['stand', 'sit', 'jump', 'run']
    named = ['--config', config, '-c', tmp_path / 'named']
    assert call(*named, '--set', 'train.epochs=1', '--set', f'data.class_names={other}') == 0
    assert call(*named) == 0
    assert tiny.latest(tmp_path / 'named')['class_names'] == ['a', 'b', 'c', 'd']
