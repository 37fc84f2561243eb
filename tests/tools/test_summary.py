import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from lib.config import load_config
from lib.tools import summary
from lib.tools.checkpoints import load_config_file, script_of
from tests.tiny import MODELS, SCRIPTS, write_config

ROOT = Path(__file__).parents[2]
ROWS = ROOT / 'configs' / 'action'
PARAMETERS = {
    'MB_train': 63_532_678,
    'MB_train_aug': 63_532_678,
    'MB_train_2d': 60_421_193,
    'MB_train_3d': 68_714_057,
    'vanilla': 9_552_956,
    'vanilla_big': 94_758_972,
    'vanilla_big_aug': 94_758_972,
    'vanilla_2d': 6_344_764,
    'vanilla_3d': 6_346_812,
    'vivit': 8_650_300,
}


def encoder(depth: int, rows: int, length: int, width: int, inner: int, hidden: int) -> int:
    """Multiply-adds of blocks of attention among `length` tokens and an MLP, each on `rows` such sequences."""
    attention = 4 * width * inner + 2 * length * inner  # q, k, v, projection; scores and their weighted mean
    return depth * rows * length * (attention + 2 * width * hidden)


def motionbert(persons: int, frames: int, joints: int, dim_in: int) -> int:
    tokens = persons * frames * joints
    spatial = encoder(5, persons * frames, joints, 512, 512, 1024)
    temporal = encoder(5, persons * joints, frames, 512, 512, 1024)
    head = joints * 512 * 2048 + 2048 * 60
    return tokens * (dim_in * 512 + 5 * 1024 * 2 + 512 * 512) + 2 * (spatial + temporal) + head


def vanilla(persons: int, joints: int, dim_in: int, depth: int = 8, width: int = 256) -> int:
    tokens = 12 * joints  # of a person
    embedding = persons * tokens * 4 * dim_in * width
    return embedding + encoder(depth, persons, tokens, width, width, 4 * width) + width * 60


OPERATIONS = {
    'MB_train': motionbert(1, 48, 17, 3136),  # maps hold all persons
    'MB_train_2d': motionbert(2, 243, 17, 3),
    'MB_train_3d': motionbert(2, 48, 25, 3),
    'vanilla': vanilla(1, 17, 3136),
    'vanilla_big': vanilla(1, 17, 3136, depth=12, width=768),
    'vanilla_3d': vanilla(2, 25, 3),
    'vivit': 7 * 49 * (8 * 8 * 8 * 17) * 256 + encoder(8, 1, 7 * 49, 256, 256, 1024) + 256 * 60,
}


def cost_of(path: Path, *overrides: str) -> summary.Cost:
    kind, config = load_config_file(path, overrides)
    measure = summary.cost_in_tensorflow if kind == 'vivit' else summary.cost_in_pytorch
    return measure(script_of(kind), config, 25 if config.data.input == 'keypoint_3d' else 17)


@pytest.mark.parametrize('row', PARAMETERS)
def test_parameters_and_multiply_adds_of_the_published_rows(row, monkeypatch):
    monkeypatch.setattr(summary, 'pytorch_memory', lambda *_: (0, 0, 0))  # which takes longest
    parts = cost_of(ROWS / f'{row}.yaml').parts
    assert sum(part.parameters for part in parts) == PARAMETERS[row]
    if row in OPERATIONS:
        assert sum(part.multiply_adds for part in parts) == OPERATIONS[row]
    frozen = [part.name for part in parts if not part.is_trained]
    assert frozen == (['backbone.head'] if row.startswith('MB') else [])


@pytest.mark.parametrize('kind', ['factorised_encoder', 'factorised_attention', 'factorised_dot'])
def test_multiply_adds_of_the_other_vivits(kind, tmp_path):
    depth = ['model.temporal_depth=3'] if kind == 'factorised_encoder' else []
    cost = cost_of(write_config('vivit', tmp_path), f'model.kind={kind}', 'model.head_dim=32', *depth)
    steps, places, width, inner = 2, 9, 16, 64
    tokens, space, time = steps * places, encoder(1, 2, 9, 16, 64, 64), encoder(1, 1, 2, 16, 64, 64)
    expected = tokens * (4 * 4 * 4 * 17) * width + width * 4
    if kind == 'factorised_encoder':
        by_part = {'spatial_encoder': space, 'temporal_encoder': 3 * time}
    elif kind == 'factorised_attention':
        by_part = {'encoder': space + tokens * (4 * width * inner + 2 * steps * inner)}
    else:  # half of the heads among the places of a step, half among the steps of a place
        by_part = {'encoder': tokens * (4 * width * inner + (steps + places) * inner + 2 * width * 64)}
    assert sum(part.multiply_adds for part in cost.parts) == expected + sum(by_part.values())
    assert by_part.items() <= {part.name: part.multiply_adds for part in cost.parts}.items()


@pytest.mark.parametrize('kind', ['mbert', 'vanilla'])
def test_activations_are_what_autograd_keeps_of_a_real_forward_pass(kind, tmp_path):
    path = write_config(kind, tmp_path)
    script, config = SCRIPTS[kind], load_config(path, SCRIPTS[kind].SECTIONS)
    device = torch.device('cpu')
    render, model = script.engine.make_model(script.SECTIONS['model'], config, 17, device)
    forward = script.engine.make_forward(
        render, model, script.engine.TrainOptions(**config.train), script.engine.World(0, 1, device)
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(forward(torch.rand(8, 2, 8, 17, 2), torch.rand(8, 2, 8, 17)), torch.zeros(8).long())
    expected = sum(storage.nbytes() for storage in kept.values())
    assert cost_of(path).activations == pytest.approx(expected, rel=0.03)  # the batch itself is there too
    assert loss.isfinite()


@pytest.mark.parametrize('kind', SCRIPTS)
def test_memory_grows_with_the_batch_alone(kind, tmp_path):
    path = write_config(kind, tmp_path)
    costs = [cost_of(path, f'data.batch_size={size}') for size in (16, 32, 64)]
    activations, training, inference = np.array([[c.activations, c.training, c.inference] for c in costs]).T
    for numbers in (activations, training, inference):
        first, second = np.diff(numbers)
        assert second == pytest.approx(2 * first, rel=0.02)
    assert len({(cost.weights, cost.gradients, cost.moments) for cost in costs}) == 1
    largest = costs[-1]
    assert largest.weights + largest.moments + largest.activations < largest.training
    assert largest.weights < largest.inference < largest.training
    parameters = sum(part.parameters for part in largest.parts)
    assert largest.weights == pytest.approx(4 * parameters, rel=0.02)  # batch norm and dropout have something beside
    trained = sum(part.parameters for part in largest.parts if part.is_trained)
    assert largest.gradients == 4 * trained
    assert largest.moments == pytest.approx(8 * trained, abs=100)


def test_what_saves_memory_is_seen_to_save_it():
    row, small = ROWS / 'MB_train.yaml', ('data.batch_size=8', 'model.depth=1')
    plain = cost_of(row, *small)
    in_parts = cost_of(row, *small, 'train.accumulation_steps=4')
    repeated = cost_of(row, *small, 'train.activation_checkpointing=true')
    halves = cost_of(row, *small, 'train.precision=bf16')
    frozen = cost_of(row, *small, 'train.partial_train=[]')
    assert in_parts.activations == pytest.approx(plain.activations / 4, rel=0.02)
    # The gradients of the parts before are there already when the last part's activations are.
    assert in_parts.training > plain.weights + plain.moments + plain.gradients + in_parts.activations
    assert repeated.activations < plain.activations / 3
    assert repeated.training < plain.training / 1.2
    assert 0.5 < halves.activations / plain.activations < 0.7
    assert halves.weights == plain.weights
    assert frozen.activations < plain.activations / 10
    assert frozen.gradients == 4 * plain.parts[-1].parameters


def test_memory_of_a_graph():
    import tensorflow as tf

    weights = tf.Variable(tf.ones((100, 100)))

    @tf.function
    def step(x):
        first = tf.matmul(x, weights)  # 80,000 bytes
        second = tf.reshape(tf.exp(first), (10, 2000))  # as many, and none for the reshape; first goes
        third = tf.concat([second, second], axis=0)  # 160,000, with second 240,000; second goes
        return tf.reduce_sum(third)

    graph = step.get_concrete_function(tf.TensorSpec((200, 100))).graph
    assert summary.memory_of(graph) == (0, 240_000)


def test_multiply_adds_of_a_graph():
    import tensorflow as tf

    def count(step, *shapes: tuple[int, ...]) -> int:
        graph = tf.function(step).get_concrete_function(*map(tf.TensorSpec, shapes)).graph
        return sum(map(summary.multiply_adds, graph.get_operations()))

    assert count(tf.matmul, (5, 7), (7, 3)) == 5 * 7 * 3
    assert count(lambda a, b: tf.matmul(a, b, transpose_a=True), (7, 5), (7, 3)) == 5 * 7 * 3
    assert count(lambda a, b: tf.matmul(a, b, transpose_b=True), (2, 4, 5, 7), (2, 4, 3, 7)) == 8 * 5 * 7 * 3
    assert count(lambda a, b: tf.matmul(a, b, adjoint_a=True), (2, 4, 7, 5), (2, 4, 7, 3)) == 8 * 5 * 7 * 3
    volume, kernel = (2, 8, 8, 8, 3), (4, 2, 2, 3, 6)
    convolution = count(lambda x, k: tf.nn.conv3d(x, k, (1, 4, 2, 2, 1), 'VALID'), volume, kernel)
    assert convolution == 2 * (2 * 4 * 4) * 6 * (4 * 2 * 2 * 3)


@pytest.mark.parametrize('kind', SCRIPTS)
def test_a_config_is_summed_up(kind, tmp_path, capsys):
    picture = tmp_path / 'curve.png'
    changes = ['--set', 'train.lr_schedule=cosine', '--set', 'train.lr_decay=null']
    assert summary.main([str(write_config(kind, tmp_path)), *changes, '--out', str(picture)]) == 0
    printed = capsys.readouterr().out
    assert 'xsub_train, 20 clips of' in printed
    assert '3 an epoch, 6 in 2 epochs of 20 clips; 2 of 10 clips to validate each' in printed
    assert 'learning rate: first 1.00e-03, highest 1.00e-03, last 6.70e-05 (half a cosine)' in printed
    assert 'batch of 8, fp32, on one device' in printed
    assert ('estimated' in printed) == (kind == 'vivit')
    dim_feat = next(line for line in printed.splitlines() if 'model.dim_feat' in line)
    published = load_config_file(ROOT / SCRIPTS[kind].DEFAULT_CONFIG)[1].model.dim_feat
    assert dim_feat.split() == ['model.dim_feat', str(published), str(MODELS[kind]['dim_feat'])]
    assert all(len(line) <= 120 for line in printed.splitlines() if str(tmp_path) not in line)
    with Image.open(picture) as opened:
        assert opened.size == (840, 420)


@pytest.fixture
def cheap(monkeypatch):
    """The summary without its longest part."""
    monkeypatch.setattr(summary, 'cost_in_pytorch', lambda *_: summary.Cost([], 0, 0, 0, 0, 0, 0))


def summed_up(capsys: pytest.CaptureFixture, path: Path, *overrides: str) -> str:
    assert summary.main([str(path), *(part for override in overrides for part in ('--set', override))]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures('cheap')
def test_clips_of_ntu60_are_known_without_it(tmp_path, capsys):
    row, absent = ROWS / 'vanilla.yaml', f'data.ann_file={tmp_path}/ntu60_hrnet.pkl'
    printed = summed_up(capsys, row, absent)
    assert 'is not there; the clips of its lists xsub_train and xsub_val are known' in printed
    assert '1,253 an epoch, 375,900 in 300 epochs of 40,091 clips; 516 of 16,487' in printed
    assert 'vanilla.yaml is this row. Published: 82.2 % top-1' in printed
    assert 'No setting differs.' in printed
    # As Clips does, a training batch of one clip is left away.
    assert '40,090 an epoch' not in summed_up(capsys, row, absent, 'data.batch_size=1')
    assert '1 an epoch, 300 in' in summed_up(capsys, row, absent, 'data.batch_size=40090')
    for unknown in (f'data.ann_file={tmp_path}/ours.pkl', 'data.benchmark=xview'):
        printed = summed_up(capsys, row, absent, unknown)
        assert 'is not there, so that clips and steps are not known' in printed
        assert '300 epochs of batches of 32' in printed


@pytest.mark.usefixtures('cheap')
def test_the_nearest_published_row_is_found(tmp_path, capsys):
    content = yaml.safe_load((ROWS / 'vanilla_big_aug.yaml').read_text())
    content['data']['batch_size'] = 16
    content['model']['drop_path_rate'] = 0.1
    path = tmp_path / 'mine.yaml'
    path.write_text(yaml.safe_dump(content))
    told = summed_up(capsys, path).partition('\npublished  ')[2].splitlines()
    assert told[0].startswith('vanilla_big_aug.yaml is the nearest row. Published: 84.3 % top-1 (84.8 in')
    assert [line.split() for line in told[3:]] == [
        ['data.batch_size', '32', '16'],
        ['model.drop_path_rate', '0.0', '0.1'],
    ]
    content = yaml.safe_load((ROWS / 'MB_train_3d.yaml').read_text())
    content['data'] |= {'input': 'keypoint_2d', 'ann_file': str(tmp_path / 'ntu60_3danno.pkl')}
    path.write_text(yaml.safe_dump(content))
    assert 'MB_train_2d.yaml is the nearest row' in summed_up(capsys, path)  # though fewer keys differ from the 3D row
    changed = summed_up(capsys, ROWS / 'vanilla_3d.yaml', 'optimizer.lr_head=0.001')
    assert 'vanilla_3d.yaml is this row. Published: 76.7' in changed
    assert changed.splitlines()[-1].split() == ['optimizer.lr_head', '0.0001', '0.001']


def test_the_curve_is_that_of_the_steps():
    _, config = load_config_file(ROWS / 'vanilla.yaml', ['train.epochs=3', 'optimizer.lr_head=1.0e-3'])
    recipe = script_of('vanilla').engine.TrainOptions(**config.train)
    amount = summary.Amount('', 17, (12, 4), (4, 1))
    backbone, head = summary.curve('vanilla', config, recipe, amount).axes[0].lines
    assert backbone.get_xdata() == pytest.approx(np.arange(12) / 4)
    factors = [recipe.lr_factor(epoch, step, 4) for epoch in range(3) for step in range(4)]
    assert backbone.get_ydata() == pytest.approx(1e-4 * np.array(factors))
    assert head.get_ydata() == pytest.approx(1e-3 * np.array(factors))
    assert head.get_color() != backbone.get_color()
    equal = load_config_file(ROWS / 'vanilla.yaml')[1]
    assert len(summary.curve('vanilla', equal, recipe, amount).axes[0].lines) == 1


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (['model.depht=3'], 'model.depht is not a known key. Did you mean depth?'),
        (['model.num_joints=34'], 'model.num_joints is 34, but the input has 17 joints'),
        (['data.clip_len=64'], 'data.clip_len 64 is over model.maxlen 48'),
        (['train.epochs=0'], 'train.epochs is 0; it must be at least 1'),
        (['train.accumulation_steps=5'], 'set data.batch_size to a multiple of 5'),
        (['data.batch_size=1'], 'batch norm takes 2 clips or more'),
        (['data.flip_ratio=2.0'], 'data.flip_ratio is 2.0'),
    ],
)
def test_what_stops_training_stops_it(overrides, message, capsys):
    arguments = [str(ROWS / 'MB_train.yaml'), *(part for text in overrides for part in ('--set', text))]
    assert summary.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert message in error
    assert error.count('\n') == 1


@pytest.mark.usefixtures('cheap')
def test_pictures_that_cannot_be_written_are_refused_first(tmp_path, capsys, monkeypatch):
    there = tmp_path / 'there.png'
    there.write_bytes(b'mine')
    monkeypatch.setattr(summary, 'load_config_file', lambda *_: pytest.fail('work was begun'))
    for out, message in (
        (there, 'is there already'),
        (tmp_path / 'curve.jpg', 'must end in .png'),
        (there / 'curve.png', 'there.png is a file'),
    ):
        assert summary.main([str(ROWS / 'vanilla.yaml'), '--out', str(out)]) == 2
        assert message in capsys.readouterr().err
    assert there.read_bytes() == b'mine'


def test_a_pytorch_config_needs_no_tensorflow(tmp_path):
    code = f"""
import sys
from lib.tools import summary
assert summary.main([{str(write_config('vanilla', tmp_path))!r}]) == 0
assert 'tensorflow' not in sys.modules
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
