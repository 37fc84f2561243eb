"""What becomes of a checkpoint: graphs that give the logits of --evaluate, and its weights alone."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.config import plain, resolve_config
from lib.run import make_clips
from lib.tools import export
from lib.tools.checkpoints import open_checkpoint
from tests import tiny

# Of each form that a graph has: the model, and how its config differs from the tiny one.
GRAPHS = {
    'limbs.onnx': ('vanilla', {'heatmap': {'kind': 'both'}, 'model': {'num_joints': 34}}),
    'keypoints.pt2': ('mbert', {'data': {'input': 'keypoint_2d'}, 'heatmap': None, 'model': {'dim_in': 3}}),
    'saved_model': ('vivit', {'heatmap': {'kind': 'limb'}, 'model': {'kind': 'factorised_dot'}}),
}


def fresh(kind: str, folder: Path, changes: dict) -> Path:
    """A checkpoint of a tiny model that has not been trained, its head drawn at random: that of ViViT begins as 0."""
    content = tiny.content(kind, folder)
    for section, keys in changes.items():
        if keys is None:
            del content[section]
        else:
            content[section] |= keys
    script, random = tiny.SCRIPTS[kind], np.random.default_rng(0)
    config = resolve_config(content, script.SECTIONS, (), 'tiny')
    clips, world = make_clips(config, 'val'), script.engine.distributed.init()
    _, model = script.engine.make_model(
        script.SECTIONS['model'], config, clips.num_joints, world.device if kind != 'vivit' else world
    )
    if kind == 'vivit':
        model.head.kernel.assign(random.normal(size=model.head.kernel.shape))
        weights = script.checkpoint.values(model.variables)
    else:
        with torch.no_grad():
            model.head.fc2.weight.copy_(torch.from_numpy(random.normal(size=model.head.fc2.weight.shape)))
        weights = model.state_dict()
    path = folder / ('fresh.npz' if kind == 'vivit' else 'fresh.bin')
    script.checkpoint.write(path, {'kind': kind, 'config': plain(config), 'epoch': 0, 'model': weights})
    return path


@pytest.fixture(params=GRAPHS, scope='module')
def exported(request, tmp_path_factory):
    """(the checkpoint, its exported graph)."""
    kind, changes = GRAPHS[request.param]
    folder = tmp_path_factory.mktemp(kind)
    path, out = fresh(kind, folder, changes), folder / request.param
    assert export.main([str(path), str(out)]) == 0
    return path, out


def load(out: Path):
    """(the graph as a function of a batch, what is told about it), by the framework that users of it have."""
    if out.suffix == '.onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])
        assert [value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())] == ['N'] * 3
        about = session.get_modelmeta().custom_metadata_map
        return lambda batch: session.run(['logits'], batch)[0], about | {
            key: json.loads(about[key]) for key in about if key not in ('kind', 'meaning')
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


def test_graph_gives_the_logits_of_an_evaluation_and_tells_how_to_feed_it(exported):
    path, out = exported
    checkpoint = open_checkpoint(path)
    clips = make_clips(checkpoint.config, 'val')
    expected = checkpoint.predict(clips)
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
    assert np.ptp(expected, axis=0).max() > 0.01  # else a graph that looks at nothing would pass
    assert np.abs(logits - expected).max() < 1e-4
    assert about['kind'] == checkpoint.kind
    assert about['config'] == plain(open_checkpoint(path, ['train.precision=fp32']).config)
    assert about['class_names'] == [f'class {i}' for i in range(4)]
    assert len(about['joints']) == 17
    assert about['output']['logits']['shape'] == ['N', 4]


def test_a_graph_that_gives_other_logits_is_not_kept(exported, tmp_path, monkeypatch, capsys):
    path, good = exported
    out = tmp_path / good.name
    if good.suffix == '.onnx':
        import onnx

        own, other = load(good)[0], onnx.load(good)
        weight = next(tensor for tensor in other.graph.initializer if tensor.name == other.graph.node[-1].input[1])
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1.001)).tobytes()
        monkeypatch.setattr(export, 'traced', lambda _, batches: (None, [own(batch) for batch in batches]))
        monkeypatch.setattr(torch.onnx, 'export', lambda *_, **__: SimpleNamespace(model_proto=other))
    elif good.suffix == '.pt2':
        own, other = load(good)[0], torch.export.load(good)
        other.state_dict['model.head.fc2.bias'].data[3] += 2e-4
        monkeypatch.setattr(export, 'traced', lambda _, batches: (other, [own(batch) for batch in batches]))
    else:
        import tensorflow as tf

        save = tf.saved_model.save

        def save_other(graph, *args, **kwargs):
            graph.model.head.bias.assign_add([0, 0, 0, 2e-4])
            save(graph, *args, **kwargs)

        monkeypatch.setattr(tf.saved_model, 'save', save_other)
    assert export.main([str(path), str(out)]) == 1
    assert f'{out} was not written: its logits differ' in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('other', [np.nan, np.inf, -np.inf, 1.0002])
def test_the_logits_of_every_batch_count_and_must_be_numbers(other):
    batches, own = [{'keypoint': np.array([value])} for value in (1.0, other)], [np.ones(1)] * 2
    with pytest.raises(FloatingPointError, match='was not written'):
        export.largest_difference(Path('x'), lambda batch: batch['keypoint'], batches, own)
    assert export.largest_difference(Path('x'), lambda batch: batch['keypoint'], batches[:1], own[:1]) == 0


def test_made_up_clips_have_what_a_graph_may_get_wrong(tmp_path):
    checkpoint = open_checkpoint(fresh('mbert', tmp_path, {}))
    shapes = export.input_shapes(checkpoint)
    assert shapes == {'keypoint': (2, 8, 17, 2), 'score': (2, 8, 17)}
    batch = export.made_up_clips(shapes, checkpoint.config, 5)
    keypoint, score = batch['keypoint'], batch['score']
    shown = score >= 1e-3
    assert 0.4 < shown.mean() < 0.9
    assert ((score > 0) & ~shown).any()
    assert not keypoint[score == 0].any()
    assert (~shown.any(axis=(2, 3))).sum() > 2  # persons, those of the last clip among them
    assert not shown[-1].any()
    assert shown[:-1, 0].any(axis=(1, 2)).all()
    outside = ((keypoint < 0) | (keypoint >= 12)).any(-1)
    assert 0.01 < outside[shown].mean() < 0.3


@pytest.mark.parametrize('joints', [17, 25])
@pytest.mark.parametrize('kind', ['joint', 'limb', 'both'])
def test_the_joints_of_a_clip_are_told_by_the_maps_of_the_model(kind, joints, tmp_path):
    maps = {'joint': joints, 'limb': {17: 17, 25: 24}[joints], 'both': {17: 34, 25: 49}[joints]}[kind]
    changes = {'heatmap': {'kind': kind}, 'model': {'num_joints': maps}}
    content = tiny.content('mbert', tmp_path)
    for section, keys in changes.items():
        content[section] |= keys
    path = tmp_path / 'weights.bin'
    tiny.SCRIPTS['mbert'].checkpoint.write(path, {'kind': 'mbert', 'config': content, 'epoch': 0, 'model': {}})
    assert export.input_shapes(open_checkpoint(path))['keypoint'] == (2, 8, joints, 2)


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_package_that_is_missing_is_named_with_what_installs_it(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert export.main(['nothing.bin', str(tmp_path / 'out.onnx')]) == 2
    told = capsys.readouterr().err
    assert f'{package} is not installed: pip install onnx onnxscript onnxruntime' in told


@pytest.fixture(params=tiny.SCRIPTS)
def trained(request, tmp_path):
    """(kind, the config file, the latest checkpoint of a run of one epoch)."""
    kind = request.param
    config = tiny.write_config(kind, tmp_path)
    assert tiny.caller(tiny.SCRIPTS[kind])('--config', config, '-c', tmp_path / 'run', '--set', 'train.epochs=1') == 0
    (latest,) = (tmp_path / 'run').glob('latest_epoch.*')
    return kind, config, latest


def test_weights_are_evaluated_as_their_checkpoint_but_no_run_goes_on_from_them(trained, tmp_path, capsys):
    kind, config, latest = trained
    call, out = tiny.caller(tiny.SCRIPTS[kind]), tmp_path / 'new' / f'weights{latest.suffix}'
    capsys.readouterr()
    assert export.main([str(latest), str(out)]) == 0
    assert f'{out}: ' in capsys.readouterr().out
    assert out.stat().st_size < 0.45 * latest.stat().st_size

    reports = []
    for path in (latest, out):
        assert call('--evaluate', path) == 0
        reports.append(json.loads((path.parent / 'evaluation.json').read_text()) | {'checkpoint': None})
    assert reports[0] == reports[1]
    capsys.readouterr()
    assert call('--config', config, '-c', tmp_path / 'on', '--resume', out) == 2
    assert 'holds weights alone' in capsys.readouterr().err
    assert not (tmp_path / 'on').exists()

    if kind != 'vivit':
        assert torch.load(out, weights_only=True)['model'].keys() == tiny.latest(latest.parent)['model'].keys()
        tuned = ['--config', config, '-c', tmp_path / 'tuned', '-p', out.parent, '-ms', out.name]
        assert call(*tuned, '--set', 'train.finetune=true') == 0
        assert f'from {out}' in capsys.readouterr().out


def test_nothing_is_overwritten_and_no_other_ending_taken(trained, tmp_path, capsys):
    kind, _, latest = trained
    before = latest.read_bytes()
    others = 'a.onnx' if kind == 'vivit' else 'saved_model'
    for out, message in (
        (latest, 'is there already'),
        (latest.parent, 'is there already'),
        (tmp_path / others, f'a checkpoint of {kind} becomes'),
        (tmp_path / 'weights.pkl', f'becomes a file with {"no ending" if kind == "vivit" else ".onnx, .pt2, .bin"}'),
    ):
        assert export.main([str(latest.parent), str(out)]) == 2
        assert message in capsys.readouterr().err
    assert latest.read_bytes() == before


def test_what_is_no_checkpoint_is_named(tmp_path, capsys):
    torch.save({'model': {'weight': torch.zeros(3)}}, tmp_path / 'others.bin')
    for name, message in (
        ('others.bin', 'no checkpoint of this project'),
        ('nothing.npz', 'there is no such folder or file'),
    ):
        assert export.main([str(tmp_path / name), str(tmp_path / f'out{name[-4:]}')]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f'error: {tmp_path / name}')
        assert message in told
