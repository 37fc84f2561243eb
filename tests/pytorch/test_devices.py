"""Forward passes on fake CUDA tensors, which need no GPU: all is on one device, and the host reads no value."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lib.models import MODELS, Model, load_config
from lib.pytorch import training
from lib.pytorch.distributed import World
from lib.tools.benchmark import joints_of

ROOT = Path(__file__).parents[2]
CONFIGS = [path for path in sorted((ROOT / 'configs').glob('*/*.yaml')) if 'sample' not in path.parts]
CONFIGS = [path for path in CONFIGS if MODELS[load_config(path).script].framework == 'pytorch']
CUDA = torch.device('cuda', 0)


@pytest.mark.parametrize('kind', ['joint', 'limb'])
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_the_forward_pass_stays_on_the_gpu(path, kind, monkeypatch):
    """An operation on tensors of two devices fails, as does `.item()`, for fake tensors have no values."""
    config = load_config(path)
    if kind == 'limb':
        if 'heatmap' not in config or config.script == 'pretrain':
            pytest.skip('no limb maps')
        config.heatmap.kind = 'limb'
    options = training.TrainOptions(**config.train)
    shape = (2, config.data.max_persons, config.data.clip_len, joints_of(config))
    # Fake parameters cannot be moved, so the model begins with real ones on the CPU.
    built = MODELS[config.script].load_classifier()(**config.model | {'depth': 2})
    monkeypatch.setattr(Model, 'load_classifier', lambda self: lambda **keys: built)
    with FakeTensorMode(allow_non_fake_inputs=True):
        render, model = training.make_model(config, shape[3], CUDA)
        forward = training.make_forward(render, model, options, World(0, 1, CUDA))
        inputs = [torch.zeros(*shape, 3, device=CUDA)]
        if render is not None:
            inputs = [torch.zeros(*shape, 2, device=CUDA), torch.zeros(shape, device=CUDA)]
        for mode in (True, False):
            output = forward.train(mode)(*inputs)
            assert output.device == CUDA
            assert output.shape == (2, config.model.get('num_classes', 2))
