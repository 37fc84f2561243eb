import numpy as np
import pytest

import train_action_vivit as script
from lib.tensorflow import checkpoint
from lib.tensorflow.pretrained import load_backbone, resize_positions
from lib.tensorflow.vivit import ViViT
from tests import tiny

SIZES = tiny.MODELS['vivit']
call = tiny.caller(script)


@pytest.fixture
def pretrained(trained):
    """The run folder of a trained tiny model."""
    return trained('vivit') / 'run'


def values(model) -> dict[str, np.ndarray]:
    return checkpoint.values(model.trainable_variables)


def test_all_weights_except_those_of_another_head_are_loaded(pretrained):
    saved = checkpoint.read(pretrained / 'latest_epoch.npz')['model']
    model = ViViT(**SIZES | {'num_classes': 6})
    lines = load_backbone(model, pretrained / 'latest_epoch.npz')
    for name, value in values(model).items():
        if 'head' in name:
            assert not value.any()
        else:
            np.testing.assert_array_equal(value, saved[name])
    assert 'head' in lines[-1]
    same = ViViT(**SIZES)
    load_backbone(same, pretrained / 'latest_epoch.npz')
    assert all((value == saved[name]).all() for name, value in values(same).items())


@pytest.mark.parametrize('changes', [{'clip_len': 16}, {'size': 24}, {'clip_len': 4, 'size': 20}])
def test_position_embeddings_are_resized(pretrained, changes):
    saved = checkpoint.read(pretrained / 'latest_epoch.npz')['model']['vivit/positions/embedding']
    model = ViViT(**SIZES | changes)
    lines = load_backbone(model, pretrained / 'latest_epoch.npz')
    found = model.positions.embedding.numpy()
    np.testing.assert_allclose(found[0, 0], saved[0, 0], rtol=1e-6)
    if 'clip_len' not in changes or changes['clip_len'] > 4:
        np.testing.assert_allclose(found[-1, -1], saved[-1, -1], rtol=1e-6)
    assert 'resized' in lines[1]


def test_position_embeddings_are_interpolated_linearly():
    steps, rows, columns = np.meshgrid(np.arange(3.0), np.arange(3.0), np.arange(3.0), indexing='ij')
    table = np.stack([steps, rows, columns], axis=-1).reshape(3, 9, 3)  # each place holds its coordinates
    steps, rows, columns = np.meshgrid(np.linspace(0, 2, 5), *[np.linspace(0, 2, 4)] * 2, indexing='ij')
    expected = np.stack([steps, rows, columns], axis=-1).reshape(5, 16, 3)
    np.testing.assert_allclose(resize_positions(table, (5, 16, 3)), expected)
    assert resize_positions(table, (5, 8, 3)) is table  # not a square


def test_another_model_is_refused_and_left_unchanged(pretrained):
    model = ViViT(**SIZES | {'dim_feat': 8})
    before = values(model)
    with pytest.raises(ValueError, match=r'latest_epoch\.npz holds the weights of another model'):
        load_backbone(model, pretrained / 'latest_epoch.npz')
    assert all((value == before[name]).all() for name, value in values(model).items())


@pytest.mark.slow
def test_a_run_starts_from_another_runs_weights_and_resumes_without_them(pretrained, tmp_path, capsys):
    config, options = pretrained.parent / 'tiny.yaml', ['train.finetune=true', 'model.num_classes=6', 'train.epochs=1']
    command = ['--config', config, '-c', tmp_path / 'run', *tiny.overrides(*options)]
    assert call(*command) == 2
    assert '--pretrained FOLDER' in capsys.readouterr().err
    assert call(*command, '-p', pretrained) == 0
    assert 'loaded ' in capsys.readouterr().out
    assert call(*command, '--set', 'train.epochs=2') == 0
    assert 'loaded ' not in capsys.readouterr().out
    assert len(tiny.lines(tmp_path / 'run')) == 2
