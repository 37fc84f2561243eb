"""Training in TensorFlow: every config at full size, options, XLA, several views."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import train_action_vivit as script
from lib.data.batches import make_clips
from lib.models import load_config
from lib.tensorflow import checkpoint, distributed, training
from tests import tiny
from tests.annotations import make_annotations
from tests.tiny import lines

ROOT = Path(script.__file__).parent
CONFIGS = sorted((ROOT / 'configs').rglob('vivit*.yaml'))
call = tiny.caller(script)


@pytest.fixture
def config(tmp_path):
    """Config file of a tiny model, beside its generated pickle."""
    return tiny.write_config('vivit', tmp_path)


def alone() -> distributed.World:
    """A single worker with the default strategy."""
    return distributed.World(tf.distribute.get_strategy())


def test_every_step_has_its_own_dropout_seed(config):
    config = load_config(config)
    clips, options = make_clips(config, 'train'), training.TrainOptions(**config.train)
    batches = [shares for epoch in (0, 1) for _, shares in training.load_batches(clips, epoch, options, alone())]
    assert len({tuple(share['seed']) for (share,) in batches}) == len(batches) == 6


def test_recipe_options_reach_the_training(config, tmp_path, monkeypatch):
    options = ['lr_schedule=cosine', 'warmup_epochs=1', 'label_smoothing=0.1', 'max_grad_norm=0.01']
    config = load_config(config, [f'train.{option}' for option in options])
    recipe = training.TrainOptions(**config.train)
    clips = make_clips(config, 'train')
    world = alone()
    render, model = training.make_model(config, clips.num_joints, world)
    optimizer = training.make_optimizer(model, **config.optimizer)
    norms, apply = [], optimizer.apply

    def recorded(gradients, variables):
        norms.append(tf.linalg.global_norm(gradients).numpy())
        apply(gradients, variables)

    monkeypatch.setattr(optimizer, 'apply', recorded)
    tf.config.run_functions_eagerly(True)
    try:
        train_step = training.make_train_step(render, model, optimizer, recipe, world)
        _, shares = next(training.load_batches(clips, 0, recipe, world))
        train_step(world.distribute(shares))
        assert norms == pytest.approx([0.01], rel=1e-3)
        model.head.bias.assign([3.0, 0, 0, 0])  # always predicts class 0; its cross-entropy is computed by hand
        model.head.kernel.assign(0 * model.head.kernel)
        batch = clips[0, 0]
        loss, num_correct = train_step(world.distribute(shares))
    finally:
        tf.config.run_functions_eagerly(False)
    log_probability = np.array([3.0, 0, 0, 0]) - np.log(np.exp(3) + 3)
    smoothed = 0.9 * log_probability[batch['label']] + 0.1 * log_probability.mean()
    assert float(loss) == pytest.approx(-smoothed.mean(), rel=1e-5)
    assert int(num_correct) == (batch['label'] == 0).sum()


def test_weight_decay_makes_it_adamw(config):
    config = load_config(config)
    _, model = training.make_model(config, make_clips(config, 'val').num_joints, alone())
    assert type(training.make_optimizer(model, lr=1e-3, weight_decay=0.0)).__name__ == 'Adam'
    adamw = training.make_optimizer(model, lr=1e-3, weight_decay=0.05)
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
    config = load_config(config, views[1::2])
    clips = make_clips(config, 'val')
    render, model = training.make_model(config, clips.num_joints, alone())
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


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_every_config_trains_a_step_and_evaluates_at_full_size(tmp_path, write_pickle, path):
    pickle_path = write_pickle(make_annotations([60, 120, 300], persons=[1, 2, 2]))
    overrides = [f'data.ann_file={pickle_path}', 'data.batch_size=2']
    config = load_config(path, overrides)
    options, world = training.TrainOptions(**config.train), alone()
    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = training.make_model(config, train_clips.num_joints, world)
    optimizer = training.make_optimizer(model, **config.optimizer)
    train_step = training.make_train_step(render, model, optimizer, options, world)
    predict_step = training.make_predict_step(render, model, options, world)
    before = checkpoint.values(model.trainable_variables)

    _, shares = next(training.load_batches(train_clips, 0, options, world))
    loss, _ = train_step(world.distribute(shares))
    after = checkpoint.values(model.trainable_variables)
    changed = {name for name in after if (after[name] != before[name]).any()}
    if config.model.init == 'paper':
        assert float(loss) == pytest.approx(np.log(60), abs=1e-3)
        assert changed == {'vivit/head/kernel', 'vivit/head/bias'}  # the zero head stops all other gradients
    else:
        assert 2 < float(loss) < 40
        assert all('key/bias' in name for name in after.keys() - changed)
    train_step(world.distribute(shares))
    again = checkpoint.values(model.trainable_variables)
    # The bias of the keys shifts all scores of a query equally, which softmax ignores: its gradient is only rounding.
    assert {name for name in again if (again[name] == before[name]).all()} <= {n for n in again if 'key/bias' in n}
    assert training.predict(predict_step, val_clips, options, world).shape == (1, 1, 60)


def test_a_batch_of_fewer_than_two_clips_per_replica_is_skipped(config):
    """20 clips in batches of 8 on 8 replicas: the last batch is trimmed to nothing."""
    config = load_config(config)
    options, world = training.TrainOptions(**config.train), SimpleNamespace(num_replicas=8, local_replicas=range(1))
    clips = make_clips(config, 'train').for_rank(0, 8)
    assert [b for b, _ in training.load_batches(clips, 0, options, world)] == [0, 1]


def test_other_npz_files_are_not_checkpoints(tmp_path):
    for about in ('[1, 2]', 'text', '3'):
        np.savez(tmp_path / 'other.npz', about=np.array(about))
        with pytest.raises(ValueError, match='not a checkpoint of this project'):
            checkpoint.read(tmp_path / 'other.npz')
