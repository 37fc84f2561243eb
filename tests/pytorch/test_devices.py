"""Placement and synchronisation, tested without a GPU on fake CUDA tensors and on tensors without values."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lib.config import read_config
from lib.models import MODELS, Model, load_config
from lib.pytorch import pretraining, training
from lib.pytorch.distributed import World
from lib.tools.benchmark.steps import joints_of, random_batch

ROOT = Path(__file__).parents[2]
CONFIGS = [path for path in sorted((ROOT / 'configs').glob('*/*.yaml')) if 'sample' not in path.parts]
CONFIGS = [path for path in CONFIGS if MODELS[read_config(path)['script']].framework == 'pytorch']
CUDA = torch.device('cuda', 0)


def select_maps(config, kind):
    """Changes a config to limb maps, or to a volume per person. Skips the test if it cannot have them."""
    if kind != 'joint' and ('heatmap' not in config or config.script == 'pretrain'):
        pytest.skip('joint maps only')
    if kind == 'limb':
        config.heatmap.kind = 'limb'
    elif kind == 'per_person':
        config.heatmap.per_person = True


def zeros_like_batch(config, device):
    """The inputs and labels of a batch, all zero, on the device."""
    batch = {name: torch.from_numpy(array) for name, array in random_batch(config).items()}
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device) for name, tensor in batch.items()}


@pytest.mark.parametrize('kind', ['joint', 'limb', 'per_person'])
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_the_forward_pass_stays_on_the_gpu(path, kind, monkeypatch):
    """An operation on tensors of two devices fails, as does `.item()`, for fake tensors have no values."""
    config = load_config(path, ['data.batch_size=4'])
    select_maps(config, kind)
    options = training.TrainOptions(**config.train)
    # Fake parameters cannot be moved, so the model begins with real ones on the CPU.
    built = MODELS[config.script].load_classifier()(**config.model | {'depth': 2})
    monkeypatch.setattr(Model, 'load_classifier', lambda self: lambda **keys: built)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = zeros_like_batch(config, CUDA)
        del inputs['label']
        render, model = training.make_model(config, joints_of(config), CUDA)
        forward = training.make_forward(render, model, options, World(0, 1, CUDA))
        for mode in (True, False):
            output = forward.train(mode)(**inputs)
            assert output.device == CUDA
            assert output.shape == (4, config.model.get('num_classes', 2))


@pytest.mark.parametrize('kind', ['joint', 'limb', 'per_person'])
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_a_training_step_reads_nothing_back(path, kind):
    """Tensors on the device `meta` have no values: `.item()`, `.tolist()` and `.cpu()` fail, as does any branch."""
    changes = ['model.depth=1', 'data.batch_size=4', 'train.accumulation_steps=2', 'train.max_grad_norm=1.0']
    config = load_config(path, changes)
    select_maps(config, kind)
    options, meta = training.TrainOptions(**config.train), torch.device('meta')
    render, model = training.make_model(config, joints_of(config), meta)
    forward = training.make_forward(render, model.train(), options, World(0, 1, meta))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)
    criterion = pretraining.motion_loss if config.script == 'pretrain' else training.classification_loss
    results = training.train_step(forward, optimizer, zeros_like_batch(config, meta), options, 4, 0, criterion)
    assert results.device == meta
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
