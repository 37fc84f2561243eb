import pytest
import torch
from einops import rearrange
from torch import nn

from lib.pytorch.dstformer import DSTformer
from lib.pytorch.mbert import ActionNet, MotionBERT
from tests.pytorch.test_dstformer import RECORDS, close, recorded_backbone, recorded_weights

SMALL = {
    'num_joints': 5, 'maxlen': 6, 'dim_in': 16, 'dim_feat': 16, 'dim_rep': 12, 'depth': 2, 'num_heads': 2,
    'num_classes': 7,
}  # fmt: skip


def small_model(**arguments) -> MotionBERT:
    torch.manual_seed(0)
    return MotionBERT(**SMALL | arguments).eval()


def number_of_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(params=RECORDS)
def recorded(request, golden) -> tuple[ActionNet, dict]:
    record = golden(request.param)
    model = ActionNet(
        recorded_backbone(record),
        dim_rep=record['cfg_dim_rep'].item(),
        num_classes=record['cfg_num_classes'].item(),
        version='embed' if request.param == 'mb_c64_short_T5' else 'class',
        hidden_dim=64,  # the embedding's; the class head's is 2048 all the same
        num_joints=record['cfg_joints'].item(),
    )
    model.load_state_dict(recorded_weights(record, 'sd/'), strict=True)
    return model.eval(), record


def test_logits_are_the_recorded_ones(recorded):
    model, record = recorded
    x = torch.tensor(record['x'])
    assert close(model(x), record['logits'])
    assert close(model.double()(x.double()), record['logits_f64'], 1e-10)


def test_gradients_are_the_recorded_ones(recorded):
    model, record = recorded
    (model(torch.tensor(record['x'])) * torch.tensor(record['fixed'])).sum().backward()
    gradients = {name.removeprefix('grad/'): value for name, value in record.items() if name.startswith('grad/')}
    assert 'backbone.temp_embed' in gradients
    for name, gradient in gradients.items():
        assert close(model.get_parameter(name).grad, gradient, 1e-3), name


def test_batch_statistics_are_the_recorded_ones(recorded):
    model, record = recorded
    if 'train_logits' not in record:
        pytest.skip('an embedding has no batch norm')
    assert close(model.train()(torch.tensor(record['x'])), record['train_logits'])
    assert close(model.head.bn.running_mean, record['bn_mean_after'])
    assert close(model.head.bn.running_var, record['bn_var_after'])


def test_section_class_is_the_recorded_model_for_volumes_too(golden):
    record = golden('mb_c64')
    model = MotionBERT(maxlen=8, dim_in=64, dim_feat=32, dim_rep=32, depth=2, num_heads=4)
    model.load_state_dict(recorded_weights(record, 'sd/'), strict=True)
    volume = rearrange(torch.tensor(record['x']), 'n 1 t v (h w) -> n t v h w', h=8)
    assert close(model.eval()(volume), record['logits'])


def test_published_parameter_counts():
    with torch.device('meta'):
        assert number_of_parameters(MotionBERT()) == 63_532_678
        for num_joints, maxlen, count in [(17, 243, 60_421_193), (25, 48, 68_714_057)]:
            backbone = DSTformer(dim_feat=512, depth=5, mlp_ratio=2, num_joints=num_joints, maxlen=maxlen)
            assert number_of_parameters(ActionNet(backbone, num_joints=num_joints)) == count
            assert number_of_parameters(MotionBERT(num_joints=num_joints, maxlen=maxlen, dim_in=3)) == count


def test_every_parameter_but_the_pose_head_is_trained():
    model = small_model().train()
    nn.functional.cross_entropy(model(torch.rand(4, 6, 5, 4, 4)), torch.arange(4)).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'backbone.head.weight', 'backbone.head.bias'}
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The bias before a batch norm is subtracted again with the mean: its gradient is rounding alone.
    assert untouched - {'head.fc1.bias'} == frozen
    assert frozen <= model.state_dict().keys()


def test_volume_is_one_person_whose_joints_have_a_channel_per_pixel():
    model = small_model()
    volume = torch.rand(2, 6, 5, 4, 4)
    keypoint = volume.reshape(2, 1, 6, 5, 16)
    assert torch.equal(model(volume), model(keypoint))


def test_persons_count_alike():
    model = small_model(dim_in=3)
    keypoint = torch.randn(2, 2, 6, 5, 3)
    torch.testing.assert_close(model(keypoint), model(keypoint.flip(1)))
    assert not torch.allclose(model(keypoint), model(keypoint[:, :1]))


def test_clip_is_scored_apart_from_the_batch():
    model = small_model()
    volume = torch.rand(3, 6, 5, 4, 4)
    torch.testing.assert_close(model(volume)[1:2], model(volume[1:2]))


def test_dropout_acts_before_the_head():
    model = small_model(dropout_ratio=0.5)
    volume = torch.rand(4, 6, 5, 4, 4)
    assert torch.equal(model(volume), model(volume))
    model.train()
    assert not torch.equal(model(volume), model(volume))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 6, 5, 16), r'\(2, 6, 5, 16\), not a volume'),
        ((2, 6, 5, 4, 5), r'\(2, 6, 5, 4, 5\).*make model.dim_in 16'),
        ((2, 7, 5, 4, 4), '7 frames is over maxlen 6'),
        ((2, 6, 4, 4, 4), '4 joints of 16 channels .* num_joints 5'),
        ((2, 1, 6, 4, 16), '4 joints of 16 channels .* num_joints 5'),
    ],
)
def test_input_that_does_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'clip_len': 120}, 'data.clip_len 120 is over model.maxlen 48'),
        ({'num_joints': 34}, 'model.num_joints is 17, but the input has 34 joints or maps per frame'),
        ({'channels': 1024}, 'model.dim_in is 3136, but the input has 1024 numbers per joint and frame'),
    ],
)
def test_config_that_does_not_fit(config, message):
    with torch.device('meta'):
        model = MotionBERT(depth=1)
    row = {'clip_len': 48, 'num_joints': 17, 'channels': 3136}
    model.check_input(**row)
    model.check_input(**row | {'clip_len': 20})
    with pytest.raises(ValueError, match=message):
        model.check_input(**row | config)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_heads': 3}, 'model.dim_feat 16 cannot be divided among model.num_heads 3'),
        *[({key: 0}, f'model.{key} is 0, but must be positive') for key in SMALL],
        ({'mlp_ratio': -1.0}, 'model.mlp_ratio is -1.0'),
        ({'dropout_ratio': 1.0}, 'model.dropout_ratio is 1.0'),
        ({'drop_path_rate': -0.1}, 'model.drop_path_rate is -0.1'),
    ],
)
def test_value_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model(**arguments)


def test_version_that_does_not_exist():
    with pytest.raises(ValueError, match="version is 'pose', but must be 'class' or 'embed'"):
        ActionNet(DSTformer(depth=1), version='pose')


@torch.no_grad()
def test_compiled_model_equals_eager():
    model = small_model(depth=1)
    # What the default backend adds, generated code, is torch's own matter and takes most of a minute.
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    volume = torch.rand(2, 6, 5, 4, 4)
    torch.testing.assert_close(compiled(volume), model(volume))


def test_training_traces_to_one_graph():
    model = small_model(drop_path_rate=0.1).train()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    compiled(torch.rand(2, 6, 5, 4, 4)).sum().backward()
    assert model.backbone.pos_embed.grad.any()


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
    assert close(logits_cuda.cpu(), logits)
    assert close(model.backbone.joints_embed.weight.grad.cpu(), gradient, 1e-3)
