"""The script as a user runs it, on a tiny model and made-up clips; a step at full size; real motion."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import train_action_mbert as script
from lib import cli
from lib.config import load_config
from lib.pytorch import checkpoint, engine
from tests.annotations import make_annotations

ROOT = Path(script.__file__).parent
CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.yaml') if path.stem.lower().startswith(('mb_', 'mbert')))
CPU = torch.device('cpu')


@pytest.fixture
def config(tmp_path, write_pickle):
    """A config file for a tiny model on 30 made-up clips, the pickle beside it."""
    pickle_path = write_pickle(make_annotations([5, 12, 40] * 10, persons=[1, 2, 1] * 10), 'made_up.pkl')
    content = {
        'data': {'ann_file': str(pickle_path), 'benchmark': 'xsub', 'clip_len': 6, 'batch_size': 8, 'seed': 0},
        'heatmap': {'size': 12},
        'model': {'num_joints': 17, 'maxlen': 6, 'dim_in': 144, 'dim_feat': 16, 'dim_rep': 16, 'depth': 1,
                  'num_heads': 2, 'mlp_ratio': 2, 'dropout_ratio': 0.5, 'num_classes': 4},
        'optimizer': {'lr_backbone': 1e-3, 'lr_head': 1e-3, 'weight_decay': 0.01},
        'train': {'epochs': 2, 'lr_decay': 0.9},
    }  # fmt: skip
    path = tmp_path / 'tiny.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def call(*argv: str | Path) -> int:
    args = cli.parse_args(script.__doc__, script.DEFAULT_CONFIG, [str(a) for a in argv])
    return cli.run(script.evaluate if args.evaluate else script.train, args)


def command(*argv: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / 'train_action_mbert.py'), *map(str, argv)]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def assert_same_run(one: Path, other: Path) -> None:
    """Same metrics and, to the bit, same weights and moments."""
    assert (one / 'metrics.jsonl').read_text() == (other / 'metrics.jsonl').read_text()
    a, b = (checkpoint.load(folder / checkpoint.LATEST, 'mbert') for folder in (one, other))
    for name, value in a['model'].items():
        assert torch.equal(value, b['model'][name]), name
    for i, moments in a['optimizer']['state'].items():
        for name, value in moments.items():
            assert torch.equal(value, b['optimizer']['state'][i][name]), (i, name)


def test_trains_then_evaluates(config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '-freq', 2) == 0
    told = capsys.readouterr().out
    for part in ('made_up.pkl', 'xsub_train, 20 clips of 4 classes (chance 25.00%)', 'xsub_val, 10 clips', 'parameters',
                 '2 epochs, 0 of them done, 3 steps each', str(run), 'clips/s', 'done: best top1'):  # fmt: skip
        assert part in told, part
    assert {'config.yaml', 'metrics.jsonl', 'timing.jsonl', 'latest_epoch.bin', 'best_epoch.bin', 'logs'} == {
        path.name for path in run.iterdir()
    }
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


def test_a_run_in_two_parts_equals_one_run_to_the_bit(config, tmp_path, capsys):
    assert call('--config', config, '-c', tmp_path / 'whole', '--set', 'train.epochs=3') == 0
    parts = tmp_path / 'parts'
    assert call('--config', config, '-c', parts, '--set', 'train.epochs=1') == 0
    capsys.readouterr()
    assert call('--config', config, '-c', parts, '--set', 'train.epochs=3') == 0
    told = capsys.readouterr().out
    assert f'goes on from {parts / "latest_epoch.bin"}, after epoch 1' in told
    assert 'changed since: train.epochs was 1, is 3' in told
    assert_same_run(tmp_path / 'whole', parts)


def test_another_folder_can_go_on_from_a_file(config, tmp_path):
    for name in ('a', 'b'):
        assert call('--config', config, '-c', tmp_path / name, '--set', f'train.epochs={2 if name == "a" else 1}') == 0
    assert call('--config', config, '-c', tmp_path / 'c', '-r', tmp_path / 'b' / 'latest_epoch.bin') == 0
    assert_same_run(tmp_path / 'a', tmp_path / 'c')
    assert (tmp_path / 'c' / 'best_epoch.bin').is_file()
    before = files(tmp_path / 'a')
    assert call('--config', config, '-c', tmp_path / 'a', '-r', tmp_path / 'b' / 'latest_epoch.bin') == 2
    assert files(tmp_path / 'a') == before


def test_a_finished_run_is_left_as_it_is(config, tmp_path, capsys):
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    before = lines(tmp_path / 'run')
    capsys.readouterr()
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    assert 'done: best top1' in capsys.readouterr().out
    assert lines(tmp_path / 'run') == before


def test_ctrl_c_in_an_epoch_then_the_same_command(config, tmp_path):
    assert call('--config', config, '-c', tmp_path / 'whole', '--set', 'train.epochs=10') == 0
    again = command('--config', config, '-c', tmp_path / 'run', '--set', 'train.epochs=10', '-freq', 1)
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    # A shell's background job ignores SIGINT, and so would its children.
    with subprocess.Popen(again, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        for line in process.stdout:
            if line.startswith('epoch 3/10  ') and 'clips,' in line:  # in the middle of the third epoch
                process.send_signal(signal.SIGINT)
                break
        _, told = process.communicate()
    assert process.returncode == 75, told
    latest = tmp_path / 'run' / 'latest_epoch.bin'
    assert f'The same command goes on from {latest}' in told
    assert 'Traceback' not in told
    finished = subprocess.run(again, capture_output=True, text=True, check=True).stdout
    assert f'goes on from {latest}, after epoch ' in finished
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '--set', 'train.epochs=1') == 0
    before = {name: (run / name).read_bytes() for name in ('latest_epoch.bin', 'best_epoch.bin', 'metrics.jsonl')}
    assert call('--config', config, '-c', run, '--set', 'optimizer.lr_backbone=1.0e+38') == 1
    told = capsys.readouterr().err
    assert 'the loss became nan in epoch 2, step 2 of 3, with the clips S001C001P0' in told
    assert {name: (run / name).read_bytes() for name in before} == before


def mistakes():
    """Name -> (arguments, message). Those with a run are made in a folder that holds a finished one."""
    return {
        'missing pickle': (['--set', 'data.ann_file=data/action/nothing.pkl'], 'python -m lib.data.sample'),
        'unknown benchmark': (['--set', 'data.benchmark=xview'], "no list 'xview_train'"),
        'label beyond the model': (['--set', 'model.num_classes=3'], 'has label 3, but model.num_classes is 3'),
        'clip_len over maxlen': (['--set', 'model.maxlen=5'], 'data.clip_len 6 is over model.maxlen 5'),
        'joints': (['--set', 'model.num_joints=25'], 'model.num_joints is 25'),
        'size': (['--set', 'heatmap.size=10'], 'model.dim_in is 144, but heatmap.size 10'),
        'unknown key': (['--set', 'model.dpeth=2'], 'Did you mean depth'),
        'text for a number': (['--set', 'optimizer.lr_head=1e-4'], 'write 1.0e-04'),
        'no config': (['--config', 'configs/nothing.yaml'], 'there is no such config'),
        'no such file to resume': (['-r', 'nothing.bin'], 'nothing.bin: there is no such checkpoint'),
    }


@pytest.mark.parametrize('mistake', mistakes())
def test_mistakes_stop_before_anything_is_written(config, tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    arguments, message = mistakes()[mistake]
    before = files(tmp_path / 'run')
    arguments = arguments if '--config' in arguments else ['--config', config, *arguments]
    assert call('-c', tmp_path / 'run', *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith('error: ')
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert files(tmp_path / 'run') == before == {}


def test_unsound_pickles_stop_before_anything_is_written(config, tmp_path, capsys, write_pickle):
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


def test_a_folder_with_another_run_is_not_touched(config, tmp_path, capsys):
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


def test_files_that_are_no_checkpoint_of_this_model_are_refused(config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    good = torch.load(run / 'latest_epoch.bin', weights_only=True)
    bad = tmp_path / 'bad.bin'

    def refused(message: str) -> None:
        for arguments in (['-e', bad], ['--config', config, '-c', tmp_path / 'new', '-r', bad]):
            assert call(*arguments) == 2
            told = capsys.readouterr().err
            assert str(bad) in told
            assert message in told
        assert not (tmp_path / 'new').exists()

    bad.write_bytes((run / 'latest_epoch.bin').read_bytes()[:-1000])
    refused('cut short')
    bad.write_bytes(b'')
    refused('cut short')
    torch.save({'model': good['model']}, bad)
    refused('no checkpoint of this project')
    torch.save(good | {'kind': 'vanilla'}, bad)
    refused('a checkpoint of vanilla: use train_action_vanilla.py')
    torch.save(good | {'model': {k: v for k, v in good['model'].items() if k != 'head.fc2.bias'}}, bad)
    refused('head.fc2.bias is missing')
    torch.save({**good, 'code': Path}, bad)
    refused('cannot be read as a checkpoint')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_every_config_is_sound(path):
    config = load_config(path, script.SECTIONS)
    model = script.MotionBERT(**config.model)
    channels = script.HeatmapRenderer(**config.heatmap).num_channels(config.model.num_joints)
    model.check_input(clip_len=config.data.clip_len, channels=channels, size=config.heatmap.size)


def test_published_configs_write_every_key():
    path = ROOT / 'configs' / 'action' / 'MB_train.yaml'
    written, resolved = yaml.safe_load(path.read_text()), load_config(path, script.SECTIONS)
    assert {(s, k) for s in written for k in written[s]} == {(s, k) for s in resolved for k in resolved[s]} - {
        ('data', 'store_dir')
    }


def test_the_published_row_trains_at_full_size(write_pickle):
    path = write_pickle(make_annotations([60, 120, 30, 200, 90, 50], persons=[1, 2, 1, 2, 1, 1], num_classes=4))
    config = load_config(
        ROOT / 'configs' / 'action' / 'MB_train.yaml', script.SECTIONS, [f'data.ann_file={path}', 'data.batch_size=2']
    )
    render, model, (clips,) = script.build(config, CPU, 'train')
    assert sum(p.numel() for p in model.parameters()) == 63_532_678
    optimizer = engine.make_optimizer(model, **config.optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    for batch in list(engine.batches(clips, 0, CPU)):
        volume = render(batch['keypoint'], batch['score'])
        assert volume.shape == (2, 48, 17, 56, 56)
        loss = torch.nn.functional.cross_entropy(model(volume), batch['label'])
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = {name for (name, p), old in zip(model.named_parameters(), before, strict=True) if not torch.equal(p, old)}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        'backbone.head.weight',
        'backbone.head.bias',
    }


@pytest.mark.parametrize(('name', 'classes'), [('sbu', 8), ('cmu', 7)])
def test_learns_on_real_motion(motion, config, tmp_path, name, classes):
    """A few epochs on 48 of its clips: a model that gets the right input fits them."""
    overrides = [
        f'data.ann_file={motion(f"{name}_hrnet.pkl")}', f'data.store_dir={tmp_path}', f'model.num_classes={classes}',
        'heatmap.size=24', 'model.dim_in=576', 'data.clip_len=12', 'model.maxlen=12', 'model.dropout_ratio=0.0',
        'data.crop_area=[1.0, 1.0]', 'data.crop_ratio=[1.0, 1.0]', 'data.flip_ratio=0.0',
    ]  # fmt: skip
    render, model, (clips,) = script.build(load_config(config, script.SECTIONS, overrides), CPU, 'train')
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
def test_the_same_command_trains_on_a_gpu(config, tmp_path, capsys):
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    assert 'on cuda' in capsys.readouterr().out


def test_runs_without_tensorflow():
    code = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; import train_action_mbert"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
