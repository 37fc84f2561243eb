"""The TensorFlow script as a user runs it; what it shares with the others is tested with them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

import train_action_vivit as script
from lib.config import load_config
from lib.run import make_clips
from lib.runlog import RunLog
from lib.tensorflow import checkpoint, distributed, engine
from tests import tiny
from tests.annotations import make_annotations
from tests.tiny import assert_same_run, lines

ROOT = Path(script.__file__).parent
CONFIGS = sorted((ROOT / 'configs').rglob('vivit*.yaml'))


call = tiny.caller(script)


@pytest.fixture
def config(tmp_path):
    """A config file for a tiny model on made-up clips, the pickle beside it."""
    return tiny.write_config('vivit', tmp_path)


def alone() -> distributed.World:
    """This process without others, whatever TensorFlow has been told."""
    return distributed.World(tf.distribute.get_strategy())


def test_trains_then_evaluates(config, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '-freq', 2) == 0
    told = capsys.readouterr().out
    for part in ('made_up.pkl', 'xsub_train, 20 clips of 4 classes (chance 25.00%)', 'xsub_val, 10 clips', 'parameters',
                 '2 epochs, 0 done, 3 steps each', str(run), 'clips/s', 'done: best top1'):  # fmt: skip
        assert part in told, part
    written = {'latest_epoch.npz', 'latest_epoch.1.npz', 'best_epoch.npz', 'logs', 'run.lock'}
    written |= {'config.yaml', 'metrics.jsonl', 'timing.jsonl'}
    assert {path.name for path in run.iterdir()} == written
    last = lines(run)[-1]
    assert last['lr'] == pytest.approx(0.9e-3)
    assert call('--evaluate', run / 'latest_epoch.npz') == 0
    val = last['val']
    assert f'Loss {val["loss"]:.4f} Acc@1 {100 * val["top1"]:.2f} ' in capsys.readouterr().out
    report = json.loads((run / 'evaluation.json').read_text())
    assert {key: report[key] for key in val} == val


def test_the_first_loss_is_that_of_guessing(config, tmp_path):
    config = load_config(config, script.SECTIONS)
    clips = make_clips(config, 'train')
    options, world = engine.TrainOptions(**config.train), alone()
    render, model = engine.make_model(script.ViViT, config, clips.num_joints, world)
    optimizer = engine.make_optimizer(model, **config.optimizer)
    train_step = engine.make_train_step(render, model, optimizer, options, world)
    loss, *_ = train_step(world.distribute(next(engine.batches(clips, 0, options, world))))
    assert float(loss) == pytest.approx(np.log(4), abs=1e-3)


def test_parts_of_a_run_equal_one_run_to_the_bit(config, tmp_path, capsys):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    options = ['--set', 'train.warmup_epochs=1', '--set', 'train.label_smoothing=0.1', '--set', 'train.max_grad_norm=1']
    assert call('--config', config, '-c', whole, *options, '--set', 'train.epochs=4') == 0
    assert call('--config', config, '-c', parts, *options) == 0
    capsys.readouterr()
    command = ['--config', config, '-c', parts, *options, '--set', 'train.epochs=4']
    # As another process, whose random state and names of layers begin anew.
    told = subprocess.run(
        [sys.executable, script.__file__, *map(str, command)], capture_output=True, text=True, check=True
    ).stdout
    assert f'goes on from {parts / "latest_epoch.npz"}, after epoch 2' in told
    assert_same_run(whole, parts)


def test_recipe_options_reach_the_training(config, tmp_path, monkeypatch):
    options = ['lr_schedule=cosine', 'lr_decay=null', 'warmup_epochs=1', 'label_smoothing=0.1', 'max_grad_norm=0.01']
    config = load_config(config, script.SECTIONS, [f'train.{option}' for option in options])
    recipe = engine.TrainOptions(**config.train)
    clips = make_clips(config, 'train')
    world = alone()
    render, model = engine.make_model(script.ViViT, config, clips.num_joints, world)
    optimizer = engine.make_optimizer(model, **config.optimizer)
    norms, rates, apply = [], [], optimizer.apply

    def watched(gradients, variables):
        norms.append(tf.linalg.global_norm(gradients).numpy())
        rates.append(float(optimizer.learning_rate))
        apply(gradients, variables)

    monkeypatch.setattr(optimizer, 'apply', watched)
    tf.config.run_functions_eagerly(True)
    try:
        train_step = engine.make_train_step(render, model, optimizer, recipe, world)
        log = RunLog(tmp_path / 'run', {}, [])
        for epoch in (0, 1):
            run = checkpoint.Run(tmp_path, 'vivit', config, epoch=epoch)
            engine.train_one_epoch(train_step, optimizer, 1e-3, clips, run, recipe, world, log, 1)
        assert max(norms) == pytest.approx(0.01, rel=1e-3)
        assert rates == pytest.approx([1e-3 * x for x in (1 / 3, 2 / 3, 1, 1, 0.75, 0.25)])
        model.head.bias.assign([3.0, 0, 0, 0])  # guessing class 0: cross-entropy by hand
        model.head.kernel.assign(0 * model.head.kernel)
        batch = clips[0, 0]
        loss, hits, _ = train_step(world.distribute(next(engine.batches(clips, 0, recipe, world))))
    finally:
        tf.config.run_functions_eagerly(False)
    log_probability = np.array([3.0, 0, 0, 0]) - np.log(np.exp(3) + 3)
    smoothed = 0.9 * log_probability[batch['label']] + 0.1 * log_probability.mean()
    assert float(loss) == pytest.approx(-smoothed.mean(), rel=1e-5)
    assert int(hits) == (batch['label'] == 0).sum()


def test_weight_decay_makes_it_adamw(config):
    config = load_config(config, script.SECTIONS)
    _, model = engine.make_model(script.ViViT, config, make_clips(config, 'val').num_joints, alone())
    assert type(engine.make_optimizer(model, lr=1e-3, weight_decay=0.0)).__name__ == 'Adam'
    adamw = engine.make_optimizer(model, lr=1e-3, weight_decay=0.05)
    assert (type(adamw).__name__, adamw.weight_decay) == ('AdamW', 0.05)


def test_xla_computes_the_same(config, tmp_path):
    options = ['--set', 'train.epochs=1', '--set', 'model.attn_drop_rate=0.0', '--set', 'model.drop_path_rate=0.0']
    assert call('--config', config, '-c', tmp_path / 'graph', *options) == 0
    assert call('--config', config, '-c', tmp_path / 'xla', *options, '--set', 'train.compile=true') == 0
    graph, xla = (lines(tmp_path / name)[0] for name in ('graph', 'xla'))
    for split in ('train', 'val'):
        assert xla[split]['loss'] == pytest.approx(graph[split]['loss'], rel=1e-4)


def test_views_are_averaged(config, tmp_path):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run, '--set', 'train.epochs=1') == 0
    views = ['--set', 'data.test_clips=3', '--set', 'data.test_flip=true']
    assert call('-e', run / 'latest_epoch.npz', *views) == 0
    report = json.loads((run / 'evaluation.json').read_text())
    config = load_config(config, script.SECTIONS, views[1::2])
    clips = make_clips(config, 'val')
    render, model = engine.make_model(script.ViViT, config, clips.num_joints, alone())
    checkpoint.assign(model.variables, checkpoint.load(run / 'latest_epoch.npz', 'vivit')['model'], run)
    batches = [clips[0, b] for b in range(len(clips))]
    mean = np.mean(
        [
            np.concatenate([tf.nn.softmax(model(render(b['keypoint'][:, k], b['score'][:, k]))) for b in batches])
            for k in range(6)
        ],
        axis=0,
    )
    label = np.concatenate([b['label'] for b in batches])
    assert report['views'] == 6
    assert report['loss'] == pytest.approx(-np.log(mean[np.arange(len(label)), label]).mean(), 1e-4)


def test_views_that_are_sure_have_finite_scores(config):
    config = load_config(config, script.SECTIONS, ['data.test_clips=2'])
    clips = make_clips(config, 'val')
    sure = tf.constant([300.0, 0, 0, 0])
    logits, _ = engine.predict(
        lambda share: tf.tile(sure[None], (len(share['score']), 1)), clips, engine.TrainOptions(**config.train), alone()
    )
    np.testing.assert_allclose(logits[0], [0, -300, -300, -300], atol=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--set', 'data.ann_file=data/action/nothing.pkl'], 'python -m lib.data.sample'),
        (['--set', 'model.num_classes=3'], 'has label 3, but model.num_classes is 3'),
        (['--set', 'data.clip_len=12'], 'data.clip_len is 12, but model.clip_len is 8'),
        (['--set', 'heatmap.size=16'], 'heatmap.size is 16, but model.size is 12'),
        (['--set', 'heatmap.kind=both'], 'set model.num_joints to 34'),
        (['--set', 'model.temporal_depth=3'], 'model.temporal_depth has no effect'),
        (['--set', 'optimizer.lr=1e-4'], 'write 1.0e-04'),
        (['--set', 'optimizer.weight_decay=-1'], 'optimizer.weight_decay is -1'),
        (['-r', 'nothing.npz'], 'nothing.npz: there is no such file'),
    ],
)
def test_mistakes_stop_before_anything_is_written(config, tmp_path, capsys, arguments, message):
    assert call('--config', config, '-c', tmp_path / 'run', *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith('error: ')
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / 'run').exists()


def test_keypoint_inputs_are_refused(tmp_path, config, capsys):
    content = yaml.safe_load(config.read_text())
    del content['heatmap']
    content['data']['input'] = 'keypoint_2d'
    config.write_text(yaml.safe_dump(content))
    assert call('--config', config, '-c', tmp_path / 'run') == 2
    assert 'ViViT sees heatmaps alone' in capsys.readouterr().err


def test_files_that_are_no_checkpoint_of_this_model_are_refused(config, tmp_path, capsys):
    run, bad = tmp_path / 'run', tmp_path / 'bad.npz'
    assert call('--config', config, '-c', run, '--set', 'train.epochs=1') == 0
    latest = run / 'latest_epoch.npz'
    good = checkpoint.read(latest)
    capsys.readouterr()

    def refused(message: str) -> None:
        for arguments in (['-e', bad], ['--config', config, '-c', tmp_path / 'new', '-r', bad]):
            assert call(*arguments) == 2
            told = capsys.readouterr().err
            assert str(bad) in told
            assert message in told
        assert not (tmp_path / 'new').exists()

    bad.write_bytes(latest.read_bytes()[:-1000])
    refused('cut short')
    bad.write_bytes(b'')
    refused('cut short')
    np.savez(bad, a=np.zeros(3))
    refused('no checkpoint of this project')
    checkpoint.write(bad, good | {'kind': 'mbert'})
    refused('a checkpoint of mbert: use train_action_mbert.py')
    name = next(name for name in good['model'] if name.endswith('kernel'))
    checkpoint.write(bad, good | {'model': {key: value for key, value in good['model'].items() if key != name}})
    refused(f'{name} is missing')
    np.savez(bad, code=np.array([Path], dtype=object))
    refused('code')
    assert call('--config', config, '-c', run, '--set', 'model.depth=2') == 2
    assert 'model.depth: 1 there, 2 in this command' in capsys.readouterr().err


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_every_config_takes_a_step_at_full_size_and_evaluates(tmp_path, write_pickle, path):
    pickle_path = write_pickle(make_annotations([60, 120, 300], persons=[1, 2, 2]))
    overrides = [f'data.ann_file={pickle_path}', 'data.batch_size=2']
    config = load_config(path, script.SECTIONS, overrides)
    options, world = engine.TrainOptions(**config.train), alone()
    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = engine.make_model(script.ViViT, config, train_clips.num_joints, world)
    if parameters := re.search(r'ublished.* ([\d,]+) parameters', path.read_text()):
        assert model.count_params() == int(parameters[1].replace(',', ''))
    optimizer = engine.make_optimizer(model, **config.optimizer)
    train_step = engine.make_train_step(render, model, optimizer, options, world)
    predict_step = engine.make_predict_step(render, model, options, world)
    before = checkpoint.values(model.trainable_variables)
    log = RunLog(tmp_path / 'run', {}, [])

    def train(epoch: int) -> dict[str, float]:
        run = checkpoint.Run(tmp_path, 'vivit', config, epoch=epoch)
        return engine.train_one_epoch(
            train_step, optimizer, config.optimizer.lr, train_clips, run, options, world, log, 1
        )

    metrics = train(0)
    assert metrics['loss'] == pytest.approx(np.log(60), abs=1e-3)
    after = checkpoint.values(model.trainable_variables)
    changed = {name for name in after if (after[name] != before[name]).any()}
    assert changed == {'vivit/head/kernel', 'vivit/head/bias'}  # which is zero at first and stops all other gradients
    train(1)
    again = checkpoint.values(model.trainable_variables)
    # The bias of keys shifts all scores of a query alike, and the softmax takes that away: its gradient is rounding.
    assert {name for name in again if (again[name] == before[name]).all()} <= {n for n in again if 'key/bias' in n}
    logits, labels = engine.predict(predict_step, val_clips, options, world)
    assert logits.shape == (1, 60)
    assert labels == [2]


def test_published_configs_write_every_key():
    for path in (path for path in CONFIGS if path.parent.name == 'action'):
        written, resolved = yaml.safe_load(path.read_text()), load_config(path, script.SECTIONS)
        left_out = {('data', 'store_dir'), ('data', 'view_angle'), ('data', 'class_names')}
        # Speed, memory and safety are the machine's matter.
        left_out |= {('train', key) for key in ('accumulation_steps', 'num_workers', 'save_every', 'keep')}
        assert {(s, k) for s in written for k in written[s]} == {
            (s, k) for s in resolved for k in resolved[s]
        } - left_out
        assert f'--config {path.relative_to(ROOT)} --checkpoint checkpoint/action/' in path.read_text()


def test_runs_without_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None; import train_action_vivit"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.gpu
def test_the_same_command_trains_on_a_gpu(config, tmp_path, capsys):
    if not tf.config.list_physical_devices('GPU'):
        pytest.skip('this TensorFlow sees no GPU')
    assert call('--config', config, '-c', tmp_path / 'run') == 0
    assert 'on cuda' in capsys.readouterr().out
