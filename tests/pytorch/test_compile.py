"""train.compile with all kinds of dropout: renderer and model compiled as one module, as in the scripts."""

import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.pytorch.distributed import World
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.layers import Attention
from lib.pytorch.mbert import MotionBERT
from lib.pytorch.training import TrainOptions, make_forward
from lib.pytorch.vanilla import VanillaTransformer

SIZE, NUM_JOINTS, NUM_FRAMES = 8, 17, 4
SMALL = {'num_joints': NUM_JOINTS, 'dim_in': SIZE**2, 'dim_feat': 16, 'depth': 1, 'num_heads': 2, 'num_classes': 7}
MODELS = {
    'mbert': lambda rate: MotionBERT(**SMALL, maxlen=NUM_FRAMES, dim_rep=16, dropout_ratio=rate),
    'vanilla': lambda rate: VanillaTransformer(
        **SMALL, num_frames=NUM_FRAMES, t_patch_size=2, protocol='finetune', dropout_ratio=rate
    ),
}


def small_forward(kind: str, rate: float, compile: bool) -> nn.Module:
    """Renderer and model in training mode. rate: dropout of the head and of attention."""
    torch.manual_seed(0)
    model = MODELS[kind](rate)
    for module in model.modules():
        if isinstance(module, Attention):
            module.attn_drop = rate
    options = TrainOptions(epochs=1, compile=compile)
    return make_forward(HeatmapRenderer(size=SIZE), model, options, World(0, 1, torch.device('cpu'))).train()


def step(forward: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one batch of two-person clips, dropout drawn from a fixed seed."""
    draw = torch.Generator().manual_seed(1)
    keypoint = SIZE * torch.rand(4, 2, NUM_FRAMES, NUM_JOINTS, 2, generator=draw)
    score = torch.rand(4, 2, NUM_FRAMES, NUM_JOINTS, generator=draw)
    forward.zero_grad()
    torch.manual_seed(2)
    loss = F.cross_entropy(forward(keypoint, score), torch.arange(4))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in forward.named_parameters() if p.requires_grad}
    return loss.detach(), {name.removeprefix('_orig_mod.'): gradient for name, gradient in gradients.items()}


def assert_finite_and_repeatable(forward: nn.Module) -> None:
    loss, gradients = step(forward)
    assert loss.isfinite()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
    same_loss, same_gradients = step(forward)
    assert torch.equal(loss, same_loss)  # dropout is a function of the seed, on which resuming relies
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same_gradients[name]), name


@pytest.fixture
def inductor() -> None:
    compiler = os.environ.get('CXX', 'g++')
    if shutil.which(compiler) is None:
        pytest.skip(f'Inductor needs a C++ compiler, and {compiler} is not installed')
    torch.compiler.reset()


@pytest.mark.parametrize('kind', MODELS)
def test_aot_eager_trains_with_dropout(kind):
    torch.compiler.reset()
    assert_finite_and_repeatable(torch.compile(small_forward(kind, 0.3, compile=False), backend='aot_eager'))


@pytest.mark.slow
@pytest.mark.usefixtures('inductor')
@pytest.mark.parametrize('kind', MODELS)
def test_inductor_trains_with_dropout(kind):
    assert_finite_and_repeatable(small_forward(kind, 0.3, compile=True))


@pytest.mark.slow
@pytest.mark.usefixtures('inductor')
@pytest.mark.parametrize('kind', MODELS)
def test_inductor_equals_eager_without_dropout(kind):
    loss, gradients = step(small_forward(kind, 0.0, compile=True))
    expected_loss, expected_gradients = step(small_forward(kind, 0.0, compile=False))
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        # Biases before a batch norm have gradients of only rounding: hence at least 1e-5.
        tolerance = max(1e-3 * expected.abs().max().item(), 1e-5)
        torch.testing.assert_close(gradients[name], expected, rtol=0, atol=tolerance)
