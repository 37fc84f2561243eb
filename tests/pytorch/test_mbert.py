import pytest
import torch
from einops import rearrange
from torch import nn

from lib.pytorch.dstformer import DSTformer
from lib.pytorch.mbert import ActionNet, MotionBERT
from tests import recorded
from tests.pytorch.test_dstformer import RECORDS, recorded_backbone
from tests.recorded import is_close, is_same_twice, number_of_parameters

SMALL = {
    'num_joints': 5, 'maxlen': 6, 'dim_in': 16, 'dim_feat': 16, 'dim_rep': 12, 'depth': 2, 'num_heads': 2,
    'num_classes': 7,
}  # fmt: skip


def small_model(**arguments) -> MotionBERT:
    torch.manual_seed(0)
    return MotionBERT(**SMALL | arguments).eval()


@pytest.fixture(params=RECORDS)
def recorded_model(request, golden) -> tuple[ActionNet, dict]:
    record = golden(request.param)
    sizes = recorded.config(record)
    model = ActionNet(
        recorded_backbone(record),
        dim_rep=sizes['dim_rep'],
        num_classes=sizes['num_classes'],
        version='embed' if request.param == 'mb_c64_short_T5' else 'class',
        hidden_dim=64,  # the embedding's; the class head's is 2048 all the same
        num_joints=sizes['joints'],
    )
    model.load_state_dict(recorded.weights(record), strict=True)
    return model.eval(), record


def test_logits_are_the_recorded_ones(recorded_model):
    recorded.assert_logits_are_recorded(*recorded_model)


def test_gradients_are_the_recorded_ones(recorded_model):
    recorded.assert_gradients_are_recorded(*recorded_model)


@pytest.mark.parametrize('recorded_model', ['mb_c3', 'mb_c64', 'mb_nofuse'], indirect=True)
def test_batch_statistics_are_the_recorded_ones(recorded_model):
    model, record = recorded_model
    assert is_close(model.train()(torch.tensor(record['x'])), record['train_logits'])
    assert is_close(model.head.bn.running_mean, record['bn_mean_after'])
    assert is_close(model.head.bn.running_var, record['bn_var_after'])


def test_section_class_is_the_recorded_model_for_volumes_too(golden):
    record = golden('mb_c64')
    model = MotionBERT(maxlen=8, dim_in=64, dim_feat=32, dim_rep=32, depth=2, num_heads=4)
    model.load_state_dict(recorded.weights(record), strict=True)
    volume = rearrange(torch.tensor(record['x']), 'n 1 t v (h w) -> n t v h w', h=8)
    assert is_close(model.eval()(volume), record['logits'])


def test_published_parameter_counts():
    with torch.device('meta'):
        assert number_of_parameters(MotionBERT()) == 63_532_678
        for num_joints, maxlen, count in [(17, 243, 60_421_193), (25, 48, 68_714_057)]:
            assert number_of_parameters(MotionBERT(num_joints=num_joints, maxlen=maxlen, dim_in=3)) == count


def test_gradients_reach_every_parameter_but_the_pose_head():
    model = small_model().train()
    nn.functional.cross_entropy(model(torch.rand(4, 6, 5, 4, 4)), torch.arange(4)).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'backbone.head.weight', 'backbone.head.bias'}
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The bias before a batch norm is subtracted again with the mean: its gradient is rounding alone.
    assert untouched - {'head.fc1.bias'} == frozen
    assert frozen <= model.state_dict().keys()


def test_volume_is_one_person_whose_joints_have_a_channel_per_pixel():
    model, volume = small_model(), torch.rand(2, 6, 5, 4, 4)
    assert torch.equal(model(volume), model(volume.reshape(2, 1, 6, 5, 16)))


def test_order_of_persons_does_not_matter():
    model, keypoint = small_model(dim_in=3), torch.randn(2, 2, 6, 5, 3)
    torch.testing.assert_close(model(keypoint), model(keypoint.flip(1)))
    assert not torch.allclose(model(keypoint), model(keypoint[:, :1]))


def test_score_of_a_clip_does_not_depend_on_its_batch():
    model, volume = small_model(), torch.rand(3, 6, 5, 4, 4)
    torch.testing.assert_close(model(volume)[1:2], model(volume[1:2]))


def test_dropout_only_in_training():
    model, volume = small_model(dropout_ratio=0.5), torch.rand(4, 6, 5, 4, 4)
    assert is_same_twice(model, volume)
    assert not is_same_twice(model.train(), volume)


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 6, 5, 16), 'not a volume'),
        ((2, 6, 5, 4, 5), 'dim_in 16'),
        ((2, 7, 5, 4, 4), 'maxlen 6'),
        ((2, 6, 4, 4, 4), 'num_joints 5'),
        ((2, 1, 6, 4, 16), 'num_joints 5'),
    ],
)
def test_invalid_input_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'clip_len': 120}, r'data\.clip_len 120 .* model\.maxlen 48'),
        ({'num_joints': 34}, r'model\.num_joints is 17'),
        ({'channels': 1024}, r'model\.dim_in is 3136'),
    ],
)
def test_config_that_does_not_fit_is_refused(config, message):
    with torch.device('meta'):
        model = MotionBERT(depth=1)
    row = {'clip_len': 48, 'num_joints': 17, 'channels': 3136}
    model.check_input(**row)
    model.check_input(**row | {'clip_len': 20})
    with pytest.raises(ValueError, match=message):
        model.check_input(**row | config)


@pytest.mark.parametrize(
    'arguments', [*({key: 0} for key in SMALL), {'num_heads': 3}, {'mlp_ratio': -1.0}, {'drop_path_rate': -0.1}]
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=rf'model\.{next(iter(arguments))}'):
        small_model(**arguments)


def test_unknown_version_is_refused():
    with pytest.raises(ValueError, match='version'):
        ActionNet(DSTformer(depth=1), version='pose')


@pytest.mark.slow
def test_compiled_training_step_equals_eager():
    """Generated code, which the default backend adds, takes most of a minute."""
    model = small_model(depth=1, dropout_ratio=0.0).train()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    volume, gradients = torch.rand(2, 6, 5, 4, 4), []
    for run in (compiled, model):
        model.zero_grad()
        run(volume).square().sum().backward()
        gradients.append(model.backbone.pos_embed.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    model = small_model()
    volume = torch.rand(2, 6, 5, 4, 4)
    model(volume).square().sum().backward()
    logits, gradient = model(volume).detach(), model.backbone.joints_embed.weight.grad.clone()
    model.zero_grad()
    model.cuda()
    logits_cuda = model(volume.cuda())
    logits_cuda.square().sum().backward()
    assert is_close(logits_cuda.cpu(), logits)
    assert is_close(model.backbone.joints_embed.weight.grad.cpu(), gradient, 1e-3)
