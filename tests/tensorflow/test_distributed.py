"""ViViT on several workers and several devices, compared with one process on one device."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

import train_action_vivit as script
from lib.data.batches import make_clips
from lib.models import load_config
from lib.tensorflow import checkpoint, distributed, training
from tests import tiny
from tests.processes import wait_for_line
from tests.tiny import lines

ROOT = Path(script.__file__).parent
# The script on a CPU that is divided into two devices.
DIVIDED = """
import sys
import tensorflow as tf
cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import train_action_vivit as script
from lib import cli
"""


@pytest.fixture
def config(tmp_path):
    """Config file of a tiny model without dropout, for 20 training clips (a short last batch) and 10 test clips."""
    content = tiny.content('vivit', tmp_path)
    content['model'] |= {'attn_drop_rate': 0.0, 'drop_path_rate': 0.0}
    content |= {'optimizer': {'lr': 1e-2, 'weight_decay': 0.01}, 'train': {'epochs': 1, 'max_grad_norm': 0.1}}
    path = tmp_path / 'tiny.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


call = tiny.caller(script)


@contextmanager
def workers(count: int, *argv: str | Path) -> Iterator[list[subprocess.Popen]]:
    """Runs the script in several workers on this host, which are killed at the end."""
    sockets = [socket.socket() for _ in range(count)]
    for unused in sockets:
        unused.bind(('localhost', 0))
    cluster = {'worker': [f'localhost:{unused.getsockname()[1]}' for unused in sockets]}
    for unused in sockets:
        unused.close()
    started = []
    for rank in range(count):
        tf_config = json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': rank}})
        command = [sys.executable, script.__file__, *map(str, argv)]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        started.append(subprocess.Popen(command, env=os.environ | {'TF_CONFIG': tf_config}, **pipes))
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


def run_workers(count: int, *argv: str | Path) -> list[str]:
    """Runs workers to the end and returns the output of each."""
    with workers(count, *argv) as started:
        outputs = [worker.communicate(timeout=120) for worker in started]
        assert [worker.returncode for worker in started] == [0] * count, outputs
    return [output for output, _ in outputs]


def assert_same_metrics(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a['train'] == pytest.approx(b['train'], abs=1e-4)
        assert a['val'] == pytest.approx(b['val'], abs=1e-5)


@pytest.mark.slow
def test_workers_train_like_one_process_and_resume_its_run(config, tmp_path):
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    assert call('--config', config, '-c', whole, '--set', 'train.epochs=3') == 0
    expected = lines(whole)
    assert np.ptp([line['train']['loss'] for line in expected]) > 5e-3  # the weights change and affect the loss

    _, other = run_workers(2, '--config', config, '-c', run)
    assert other == ''
    assert_same_metrics(lines(run), expected[:1])
    assert len(list((run / 'logs').iterdir())) == len((run / 'timing.jsonl').read_text().splitlines()) == 1

    assert call('--config', config, '-c', run, '--set', 'train.epochs=2') == 0
    assert_same_metrics(lines(run), expected[:2])

    with workers(2, '--config', config, '-c', run, '--set', 'train.epochs=1000') as (main, other):
        wait_for_line(main, 'epoch 4/')
        other.kill()
        _, errors = main.communicate(timeout=60)
    assert main.returncode == 1, errors
    assert errors.splitlines()[-1].startswith('error: another worker')
    assert_same_metrics(lines(run)[:3], expected)
    assert call('-e', run / 'latest_epoch.npz') == 0  # it is intact


@pytest.mark.slow
def test_workers_evaluate_every_clip_once(config, tmp_path):
    run = tmp_path / 'run'
    assert call('--config', config, '-c', run) == 0
    views = ['--set', 'data.test_clips=2', '--set', 'data.test_flip=true', '--set', 'data.batch_size=7']
    assert call('-e', run / 'latest_epoch.npz', *views) == 0
    alone = json.loads((run / 'evaluation.json').read_text())
    main, other = run_workers(2, '-e', run / 'latest_epoch.npz', '-c', tmp_path / 'report', *views)
    together = json.loads((tmp_path / 'report' / 'evaluation.json').read_text())
    assert 'Acc@1' in main
    assert other == ''
    assert (together.pop('num_clips'), together.pop('views')) == (10, 4)
    for name in ('loss', 'top1', 'top5', 'mean_class'):
        assert together[name] == pytest.approx(alone[name], abs=1e-5)
    assert together['per_class'] == alone['per_class']


@pytest.mark.slow
def test_workers_stop_together_when_one_gets_a_signal(config, tmp_path):
    command = ['--config', config, '-freq', 1, '--set', 'train.epochs=6', '-c']
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    run_workers(2, *command, whole)
    with workers(2, *command, run) as started:
        wait_for_line(started[0], 'epoch 2/')
        started[1].send_signal(signal.SIGTERM)  # not the main worker, which writes
        errors = [worker.communicate(timeout=60)[1] for worker in started]
        assert [worker.returncode for worker in started] == [75, 75], errors
    assert len(lines(run)) < 6
    run_workers(2, *command, run)
    tiny.assert_same_run(whole, run)


@pytest.mark.slow
def test_devices_of_a_process_train_like_one(config, tmp_path):
    assert call('--config', config, '-c', tmp_path / 'whole') == 0
    command = ['--config', config, '-c', tmp_path / 'run', '--set', 'train.accumulation_steps=2']
    code = """
from unittest import mock
from lib.tensorflow import training
made, make = [], training.make_train_step
with mock.patch.object(training, 'make_train_step', lambda *parts: made.append(make(*parts)) or made[0]):
    args = cli.parse_args('', 'vivit')
    code = cli.run(script.train, args)
print('traces', made[0].experimental_get_tracing_count())
args = cli.parse_args('', 'vivit', [*sys.argv[1:], '--set', 'data.batch_size=6', '-c', args.checkpoint + '6'])
print('codes', code, cli.run(script.train, args))
"""
    done = subprocess.run(
        [sys.executable, '-c', DIVIDED + code, *map(str, command)], capture_output=True, text=True, cwd=ROOT
    )
    assert 'traces 1\n' in done.stdout, done.stderr  # the short last batch is padded to the same shape
    assert 'codes 0 2\n' in done.stdout
    assert 'set data.batch_size to a multiple of 4' in done.stderr
    assert_same_metrics(lines(tmp_path / 'run'), lines(tmp_path / 'whole'))
    one, other = (checkpoint.load(tmp_path / name / 'latest_epoch.npz', 'vivit')['model'] for name in ('whole', 'run'))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if 'key/bias' not in name:  # its gradient is only rounding, which Adam enlarges
            np.testing.assert_allclose(other[name], value, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_replicas_and_steps_have_their_own_dropout(config):
    """The loss of a batch is the sum over replicas; each term depends only on its own seed."""
    code = """
import numpy as np
from lib.models import load_config
from lib.data.batches import make_clips
from lib.tensorflow import distributed, training
options = ['model.attn_drop_rate=0.5', 'model.drop_path_rate=0.2', 'optimizer.lr=0.0', 'optimizer.weight_decay=0.0']
config = load_config(sys.argv[1], options)
options, world = training.TrainOptions(**config.train), distributed.init()
clips = make_clips(config, 'train')
render, model = training.make_model(config, clips.num_joints, world)
model.head.kernel.assign(np.random.default_rng(0).normal(size=model.head.kernel.shape))
train_step = training.make_train_step(render, model, training.make_optimizer(model, **config.optimizer), options, world)
_, (share, other) = next(training.load_batches(clips.for_rank(0, world.num_replicas), 0, options, world))
seeds = share['seed'], other['seed']
for i, j in ((0, 0), (1, 1), (0, 1), (1, 0), (0, 1)):
    print('loss', float(train_step(world.distribute([share | {'seed': seeds[i]}, share | {'seed': seeds[j]}]))[0]))
"""
    done = subprocess.run([sys.executable, '-c', DIVIDED + code, config], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, second, mixed, turned, again = (
        float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith('loss')
    )
    assert abs(first - second) > 1e-3
    assert mixed == pytest.approx((first + second) / 2, rel=1e-6)
    assert mixed == pytest.approx(turned, rel=1e-6)
    assert mixed == again


@pytest.mark.parametrize('compile', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_are_traced_once(config, tmp_path, compile):
    config = load_config(config, [f'train.compile={compile}', 'train.accumulation_steps=1'])
    options, world = training.TrainOptions(**config.train), distributed.World(tf.distribute.get_strategy())
    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = training.make_model(config, train_clips.num_joints, world)
    traced = []

    def drawn(keypoint, score):
        traced.append(keypoint.shape)
        return render(keypoint, score)

    optimizer = training.make_optimizer(model, **config.optimizer)
    train_step = training.make_train_step(drawn, model, optimizer, options, world)
    predict_step = training.make_predict_step(drawn, model, options, world)
    for epoch in (0, 1):
        for _, shares in training.load_batches(train_clips, epoch, options, world):
            train_step(world.distribute(shares))
        training.predict(predict_step, val_clips, options, world)
    assert traced == [(8, 2, 8, 17, 2)] * 2


def test_micro_batches_add_up_to_the_batch(config, tmp_path):
    for steps in (1, 4):
        accumulated = ['--set', f'train.accumulation_steps={steps}', '--set', 'train.epochs=2']
        assert call('--config', config, '-c', tmp_path / str(steps), *accumulated) == 0
    assert_same_metrics(lines(tmp_path / '4'), lines(tmp_path / '1'))


@pytest.mark.slow
def test_bf16_leaves_weights_in_float32(config, tmp_path, monkeypatch):
    assert call('--config', config, '-c', tmp_path / 'fp32') == 0
    bf16 = ['--set', 'train.precision=bf16']
    monkeypatch.setattr(training, 'cpu_has_bf16', lambda: True)
    assert call('--config', config, '-c', tmp_path / 'bf16', *bf16) == 0
    half, full = (checkpoint.load(tmp_path / name / 'latest_epoch.npz', 'vivit') for name in ('bf16', 'fp32'))
    for part in ('model', 'optimizer'):
        assert {name: value.dtype for name, value in half[part].items()} == {
            name: value.dtype for name, value in full[part].items()
        }
    losses = [lines(tmp_path / name)[0]['val']['loss'] for name in ('bf16', 'fp32')]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert call('-e', tmp_path / 'bf16' / 'latest_epoch.npz', '--set', 'train.precision=fp32') == 0
    assert keras.config.dtype_policy().name == 'float32'


def test_bf16_is_refused_if_the_device_lacks_it(config, tmp_path, capsys, monkeypatch):
    bf16 = ['--config', config, '-c', tmp_path / 'run', '--set', 'train.precision=bf16']
    monkeypatch.setattr(training, 'cpu_has_bf16', lambda: False)
    assert call(*bf16) == 2
    assert 'train.precision is bf16' in capsys.readouterr().err
    gpu = {'device_name': 'Tesla V100', 'compute_capability': (7, 0)}
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: ['a GPU'])
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', lambda device: gpu)
    options = training.TrainOptions(epochs=1, precision='bf16')
    with pytest.raises(ValueError, match='Tesla V100'):
        options.set_precision()
    gpu['compute_capability'] = (8, 0)
    options.set_precision()
    training.TrainOptions(epochs=1, precision='tf32').set_precision()
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    training.TrainOptions(epochs=1).set_precision()
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'text',
    [
        'workers: 2',
        '{"cluster": []}',
        '{"cluster": {}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_invalid_clusters_are_refused(config, tmp_path, capsys, monkeypatch, text):
    assert distributed.cluster_task(distributed.EXAMPLE.replace('"index": 0', '"index": 1')) == (1, 2)
    monkeypatch.setenv('TF_CONFIG', text)
    assert call('--config', config, '-c', tmp_path / 'run') == 2
    assert 'TF_CONFIG' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()
