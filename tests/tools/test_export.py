"""Exported graphs, which equal the model, and exported weights."""

import json
import pickle
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.config import plain
from lib.data.batches import make_clips
from lib.data.clips import Clips
from lib.data.pickles import load_annotations
from lib.models import resolve_config
from lib.run import FORMAT
from lib.tools import export
from lib.tools.checkpoints import open_checkpoint
from lib.tools.export_example import prepare
from tests import tiny
from tests.annotations import make_annotations

# {file or folder: (model, changes of its tiny config)}
GRAPHS = {
    'limbs.onnx': ('vanilla', {'heatmap': {'kind': 'both'}, 'model': {'num_joints': 34}}),
    'joints.pt2': ('mbert', {}),
    'keypoints.pt2': ('mbert', {'data': {'input': 'keypoint_2d'}, 'heatmap': None, 'model': {'dim_in': 3}}),
    'saved_model': ('vivit', {'heatmap': {'kind': 'limb'}, 'model': {'kind': 'factorised_dot'}}),
}


def fresh(kind: str, folder: Path, changes: dict) -> Path:
    """A checkpoint of an untrained tiny model with a random head (ViViT's is 0 at first)."""
    content = tiny.content(kind, folder)
    for section, keys in changes.items():
        if keys is None:
            del content[section]
        else:
            content[section] |= keys
    script, random = tiny.SCRIPTS[kind], np.random.default_rng(0)
    config = resolve_config(content, (), 'tiny')
    clips, world = make_clips(config, 'val'), script.training.distributed.init()
    _, model = script.training.make_model(config, clips.num_joints, world.device if kind != 'vivit' else world)
    if kind == 'vivit':
        model.head.kernel.assign(random.normal(size=model.head.kernel.shape))
        weights = script.checkpoint.values(model.variables)
    else:
        with torch.no_grad():
            model.head.fc2.weight.copy_(torch.from_numpy(random.normal(size=model.head.fc2.weight.shape)))
        weights = model.state_dict()
    path = folder / ('fresh.npz' if kind == 'vivit' else 'fresh.bin')
    content = {'format': FORMAT, 'config': plain(config), 'epoch': 0, 'model': weights}
    tiny.write_checkpoint(path, content)
    return path


@pytest.fixture(
    params=['saved_model', *(pytest.param(name, marks=pytest.mark.slow) for name in list(GRAPHS)[:3])], scope='module'
)
def exported(request, tmp_path_factory):
    """(the checkpoint, its exported graph)."""
    kind, changes = GRAPHS[request.param]
    folder = tmp_path_factory.mktemp(kind)
    path, out = fresh(kind, folder, changes), folder / request.param
    assert export.main([str(path), str(out)]) == 0
    return path, out


def load(out: Path):
    """(the graph as a function of a batch, its description), loaded by the framework of its users."""
    if out.suffix == '.onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])
        assert [value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())] == ['N'] * 3
        about = session.get_modelmeta().custom_metadata_map
        return lambda batch: session.run(['logits'], batch)[0], about | {
            key: json.loads(about[key]) for key in about if key not in ('script', 'meaning', 'example')
        }
    if out.suffix == '.pt2':
        files = {'about.json': ''}
        module = torch.export.load(out, extra_files=files).module()
        about = json.loads(files['about.json'])
        return lambda batch: module(*map(torch.from_numpy, batch.values())).detach().numpy(), about
    import tensorflow as tf

    serve = tf.saved_model.load(str(out)).signatures['serving_default']
    about = json.loads((out / 'about.json').read_text())
    return lambda batch: serve(**{key: tf.constant(value) for key, value in batch.items()})['logits'].numpy(), about


def test_exported_graphs_equal_the_model_and_describe_their_inputs(exported):
    path, out = exported
    checkpoint = open_checkpoint(path)
    clips = make_clips(checkpoint.config, 'val')
    expected = checkpoint.predict(*checkpoint.model(clips.num_joints), clips)
    graph, about = load(out)
    logits = []
    for b in range(len(clips)):  # of 8 clips and 2
        batch = clips[0, b]
        del batch['label']
        assert {name: ['N', *array.shape[1:]] for name, array in batch.items()} == {
            name: given['shape'] for name, given in about['inputs'].items()
        }
        logits.append(graph(batch))
    logits = np.concatenate(logits)
    assert np.ptp(expected, axis=0).max() > 0.01  # otherwise a constant graph would pass
    assert np.abs(logits - expected).max() < 1e-4
    assert about['script'] == checkpoint.script
    assert about['config'] == plain(open_checkpoint(path, ['train.precision=fp32']).config)
    assert about['class_names'] == [f'class {i}' for i in range(4)]
    assert len(about['joints']) == 17
    assert about['output']['logits']['shape'] == ['N', 4]


def test_the_example_equals_the_model_without_this_project(exported, tmp_path):
    """On the validation clips: called as functions, and run as a script in another folder."""
    path, out = exported
    example = out / 'example.py' if out.is_dir() else out.with_name(f'{out.stem}_example.py')
    if out.stem == 'keypoints':
        assert not example.exists()
        assert 'No example' in load(out)[1]['meaning']
        return
    checkpoint = open_checkpoint(path)
    clips = make_clips(checkpoint.config, 'val')
    expected = checkpoint.predict(*checkpoint.model(clips.num_joints), clips)
    names = [name for b in range(len(clips)) for name in clips.names(0, b)]
    data = load_annotations(checkpoint.config.data.ann_file)
    annotations = {annotation['frame_dir']: annotation for annotation in data['annotations']}
    functions = runpy.run_path(str(example))
    model, about = functions['load'](out)
    logits = np.concatenate([model(*functions['prepare'](annotations[name], about)) for name in names])
    assert np.abs(logits - expected).max() < 1e-4

    (tmp_path / 'clips.pkl').write_bytes(pickle.dumps({'annotations': [annotations[name] for name in names]}))
    done = subprocess.run(
        [sys.executable, example, out, 'clips.pkl'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    probability = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    assert done.stdout.splitlines() == [
        f'{name}: class {row.argmax()} ({row.max():.1%})' for name, row in zip(names, probability, strict=True)
    ]


def assert_prepares_like_clips(ann_file: Path, split: str, clip_len: int) -> None:
    """Asserts that `prepare` of the example returns the input of the model in validation."""
    clips = Clips('val', ann_file=str(ann_file), benchmark=[split] * 2, clip_len=clip_len, batch_size=500, seed=0)
    batch, data = clips[0, 0], load_annotations(ann_file)
    about = {
        'inputs': {'keypoint': {'shape': ['N', *batch['keypoint'].shape[1:]]}},
        'config': {'heatmap': {'size': 56}},
    }
    annotations = {annotation['frame_dir']: annotation for annotation in data['annotations']}
    for i, name in enumerate(clips.names(0, 0)):
        keypoint, score = prepare(annotations[name], about)
        np.testing.assert_allclose(keypoint[0], batch['keypoint'][i], atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(score[0], batch['score'][i], err_msg=name)


@pytest.mark.filterwarnings('ignore:.* joints with NaN')
@pytest.mark.parametrize('clip_len', [8, 48])
def test_the_example_prepares_clips_of_every_kind(write_pickle, clip_len):
    """Clips of any length with absent or too many persons, missing joints and coordinates, tiny persons, NaN."""
    lengths = [1, 3, 7, 8, 9, 12, 15, 16, 17, 47, 48, 49, 95, 96, 97, 300]
    data = make_annotations(lengths * 3, persons=[1 + i % 3 for i in range(48)])
    random = np.random.default_rng(0)
    for i, annotation in enumerate(data['annotations']):
        keypoint = annotation['keypoint']
        keypoint[random.random(keypoint.shape[:3]) < 0.1] = 0
        keypoint[random.random(keypoint.shape) < 0.02] = 0
        if i % 4 == 1:
            keypoint[:] = 500 + (keypoint - 500) / (20 + 2 * i)  # everything within a few pixels
        if i % 5 == 2:
            keypoint[random.random(keypoint.shape) < 0.02] = np.nan
        if i % 5 == 3:
            annotation['keypoint_score'][random.random(keypoint.shape[:3]) < 0.02] = np.nan
    data['annotations'][5]['keypoint'][:] = 0
    data['split'] = {'all': [annotation['frame_dir'] for annotation in data['annotations']]}
    assert_prepares_like_clips(write_pickle(data), 'all', clip_len)


@pytest.mark.parametrize('name', ['sbu', 'cmu'])
def test_the_example_prepares_real_motion(motion, tmp_path, name):
    path = shutil.copy(motion(f'{name}_hrnet.pkl'), tmp_path)  # its packed form is written beside it
    assert_prepares_like_clips(path, next(iter(load_annotations(path)['split'])), 16)


@pytest.mark.parametrize('exported', ['saved_model'], indirect=True)
def test_graphs_with_other_logits_are_discarded(exported, tmp_path, monkeypatch, capsys):
    path, good = exported
    out = tmp_path / good.name
    compare = export.largest_difference
    monkeypatch.setattr(export, 'largest_difference', lambda out, graph, batches, own: compare(
        out, lambda batch: graph(batch) * np.float32(1 + 2e-4), batches, own))  # fmt: skip
    assert export.main([str(path), str(out)]) == 1
    assert str(out) in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('other', [np.nan, np.inf, -np.inf, 1.0002])
def test_logits_of_every_batch_must_match_and_be_finite(other):
    batches, own = [{'keypoint': np.array([value])} for value in (1.0, other)], [np.ones(1)] * 2
    with pytest.raises(FloatingPointError, match='was not written'):
        export.largest_difference(Path('x'), lambda batch: batch['keypoint'], batches, own)
    assert export.largest_difference(Path('x'), lambda batch: batch['keypoint'], batches[:1], own[:1]) == 0


def test_an_existing_example_is_not_overwritten(tmp_path, refused):
    (tmp_path / 'out_example.py').write_text('mine')
    assert 'out_example.py exists' in refused(export.main, 'nothing.bin', tmp_path / 'out.pt2')


def test_a_missing_package_is_named_with_the_command_to_install_it(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    assert 'pip install onnx onnxscript onnxruntime' in refused(export.main, 'nothing.bin', tmp_path / 'out.onnx')


@pytest.mark.parametrize('kind', tiny.SCRIPTS)
def test_weights_are_evaluated_like_their_checkpoint_but_no_run_resumes_from_them(trained, kind, tmp_path, capsys):
    folder, call = trained(kind), tiny.caller(tiny.SCRIPTS[kind])
    (latest,) = (folder / 'run').glob('latest_epoch.*')
    config, out = folder / 'tiny.yaml', tmp_path / 'new' / f'weights{latest.suffix}'
    assert export.main([str(latest), str(out)]) == 0
    assert out.stat().st_size < 0.45 * latest.stat().st_size

    reports = []
    for path in (latest, out):
        assert call('--evaluate', path) == 0
        reports.append(json.loads((path.parent / 'evaluation.json').read_text()) | {'checkpoint': None})
    assert reports[0] == reports[1]
    capsys.readouterr()
    assert call('--config', config, '-c', tmp_path / 'resumed', '--resume', out) == 2
    assert 'no optimizer state' in capsys.readouterr().err
    assert not (tmp_path / 'resumed').exists()

    if kind != 'vivit':
        assert torch.load(out, weights_only=True)['model'].keys() == tiny.latest(latest.parent)['model'].keys()
        tuned = ['--config', config, '-c', tmp_path / 'tuned', '-p', out.parent, '-ms', out.name]
        assert call(*tuned, '--set', 'train.finetune=true', '--set', 'train.epochs=1') == 0


@pytest.mark.parametrize('kind', ['vanilla', 'vivit'])
def test_nothing_is_overwritten_and_other_suffixes_are_refused(trained, kind, tmp_path, refused):
    run = trained(kind) / 'run'
    (latest,) = run.glob('latest_epoch.*')
    before = latest.read_bytes()
    other = tmp_path / ('a.onnx' if kind == 'vivit' else 'saved_model')
    for out in (latest, run, other, tmp_path / 'weights.pkl'):
        refused(export.main, run, out)
    assert latest.read_bytes() == before
    assert not other.exists()


def test_other_files_are_refused(tmp_path, refused):
    torch.save({'model': {'weight': torch.zeros(3)}}, tmp_path / 'others.bin')
    for name in ('others.bin', 'nothing.npz'):
        assert str(tmp_path / name) in refused(export.main, tmp_path / name, tmp_path / f'out{name[-4:]}')
