"""Placement and synchronisation, tested without a GPU on fake CUDA tensors and on tensors without values."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lib.models import MODELS, Model, load_config
from lib.pytorch import pretraining, training
from lib.pytorch.distributed import World
from lib.tools.benchmark.steps import joints_of

ROOT = Path(__file__).parents[2]
CONFIGS = [path for path in sorted((ROOT / 'configs').glob('*/*.yaml')) if 'sample' not in path.parts]
CONFIGS = [path for path in CONFIGS if MODELS[load_config(path).script].framework == 'pytorch']
CUDA = torch.device('cuda', 0)


def select_maps(config, kind):
    """Changes a config to limb maps, or to a volume per person. Skips the test if it cannot have them."""
    if kind != 'joint' and ('heatmap' not in config or config.script == 'pretrain'):
        pytest.skip('joint maps only')
    if kind == 'limb':
        config.heatmap.kind = 'limb'
    elif kind == 'per_person':
        config.heatmap.per_person = True


def random_inputs(config, device):
    """(keypoint, score) or (keypoint,) of four clips."""
    shape = (4, config.data.max_persons, config.data.clip_len, joints_of(config))
    if 'heatmap' not in config:
        return [torch.zeros(*shape, 3, device=device)]
    return [torch.zeros(*shape, 2, device=device), torch.zeros(shape, device=device)]


@pytest.mark.parametrize('kind', ['joint', 'limb', 'per_person'])
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_the_forward_pass_stays_on_the_gpu(path, kind, monkeypatch):
    """An operation on tensors of two devices fails, as does `.item()`, for fake tensors have no values."""
    config = load_config(path)
    select_maps(config, kind)
    options = training.TrainOptions(**config.train)
    # Fake parameters cannot be moved, so the model begins with real ones on the CPU.
    built = MODELS[config.script].load_classifier()(**config.model | {'depth': 2})
    monkeypatch.setattr(Model, 'load_classifier', lambda self: lambda **keys: built)
    with FakeTensorMode(allow_non_fake_inputs=True):
        render, model = training.make_model(config, joints_of(config), CUDA)
        forward = training.make_forward(render, model, options, World(0, 1, CUDA))
        for mode in (True, False):
            output = forward.train(mode)(*random_inputs(config, CUDA))
            assert output.device == CUDA
            assert output.shape == (4, config.model.get('num_classes', 2))


@pytest.mark.parametrize('kind', ['joint', 'limb', 'per_person'])
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_a_training_step_reads_nothing_back(path, kind):
    """Tensors on the device `meta` have no values: `.item()`, `.tolist()` and `.cpu()` fail, as does any branch."""
    config = load_config(path, ['model.depth=1', 'train.accumulation_steps=2', 'train.max_grad_norm=1.0'])
    select_maps(config, kind)
    options, meta = training.TrainOptions(**config.train), torch.device('meta')
    render, model = training.make_model(config, joints_of(config), meta)
    forward = training.make_forward(render, model.train(), options, World(0, 1, meta))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)
    batch = dict(zip(('keypoint', 'score'), random_inputs(config, meta), strict=False))
    batch['label'] = torch.zeros(4, dtype=torch.long, device=meta)
    criterion = pretraining.motion_loss if config.script == 'pretrain' else training.classification_loss
    assert training.train_step(forward, optimizer, batch, options, 4, 0, criterion).device == meta
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
