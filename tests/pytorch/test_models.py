"""Properties that MotionBERT and both kinds of the vanilla transformer share."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from lib.pytorch.mbert import MotionBERT
from lib.pytorch.vanilla import VanillaTransformer
from tests.recorded import is_same_twice

COMMON = {'num_joints': 5, 'dim_in': 16, 'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_classes': 7}
SMALL = {
    'mbert': (MotionBERT, COMMON | {'maxlen': 6, 'dim_rep': 12}),
    'linprobe': (VanillaTransformer, COMMON | {'num_frames': 6, 't_patch_size': 2}),
    'finetune': (VanillaTransformer, COMMON | {'num_frames': 6, 't_patch_size': 2, 'protocol': 'finetune'}),
}
FROZEN = {'mbert': {'backbone.head.weight', 'backbone.head.bias'}}  # the pose head


@pytest.fixture(params=SMALL)
def kind(request) -> str:
    return request.param


def small_model(kind: str = 'mbert', **arguments) -> nn.Module:
    """The model in evaluation mode; it takes volumes (N,6,5,4,4)."""
    torch.manual_seed(0)
    model, defaults = SMALL[kind]
    return model(**defaults | arguments).eval()


@pytest.fixture
def small(kind) -> Callable[..., nn.Module]:
    return partial(small_model, kind)


def test_gradients_reach_every_parameter(small, kind):
    model = small().train()
    nn.functional.cross_entropy(model(torch.rand(4, 6, 5, 4, 4)), torch.arange(4)).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == FROZEN.get(kind, set())
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Batch norm subtracts the bias again with the mean: its gradient is only rounding.
    assert untouched - {'head.fc1.bias'} == frozen
    assert frozen <= model.state_dict().keys()


def test_volume_is_one_person_whose_joints_have_a_channel_per_pixel(small):
    model, volume = small(), torch.rand(2, 6, 5, 4, 4)
    assert torch.equal(model(volume), model(volume.reshape(2, 1, 6, 5, 16)))
    per_person = torch.rand(2, 3, 6, 5, 4, 4)
    assert torch.equal(model(per_person), model(per_person.flatten(4)))


def test_order_of_persons_does_not_matter(small):
    model, keypoint = small(dim_in=3), torch.randn(2, 2, 6, 5, 3)
    torch.testing.assert_close(model(keypoint), model(keypoint.flip(1)))
    assert not torch.allclose(model(keypoint), model(keypoint[:, :1]))


def test_logits_of_a_clip_do_not_depend_on_its_batch(small):
    model, volume = small(), torch.rand(3, 6, 5, 4, 4)
    torch.testing.assert_close(model(volume)[1:2], model(volume[1:2]))


def test_dropout_only_in_training(small, kind):
    changes = [{'drop_path_rate': 0.5}, *([] if kind == 'linprobe' else [{'dropout_ratio': 0.5}])]
    for change in changes:
        model, volume = small(**change), torch.rand(4, 6, 5, 4, 4)
        assert is_same_twice(model, volume)
        assert not is_same_twice(model.train(), volume)


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 6, 5, 16), 'not a volume'),
        ((2, 6, 5, 4, 5), 'dim_in 16'),
        ((2, 8, 5, 4, 4), '(maxlen|num_frames) 6'),
        ((2, 6, 1, 4, 4), 'num_joints 5'),
        ((2, 1, 6, 4, 16), 'num_joints 5'),
    ],
)
def test_invalid_input_is_refused(small, shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


@pytest.mark.parametrize('arguments', [*({key: 0} for key in COMMON), {'num_heads': 3}, {'mlp_ratio': -1.0}])
def test_values_out_of_range_are_refused(small, arguments):
    with pytest.raises(ValueError, match=rf'model\.{next(iter(arguments))}|model\.dim_feat 16 cannot be divided'):
        small(**arguments)


@pytest.mark.parametrize('kind', ['linprobe'])
def test_compiled_training_step_equals_eager(small):
    """Without code generation, which is slow; test_compile.py compiles the other models."""
    model = small(depth=1).train()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    volume, gradients = torch.rand(2, 6, 5, 4, 4), []
    for run in (compiled, model):
        model.zero_grad()
        run(volume).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)
