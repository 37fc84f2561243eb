import pytest
import torch
from einops import rearrange
from torch import nn

from lib.config import load_config
from lib.pytorch.vanilla import Transformer, VanillaTransformer
from tests.pytorch.test_dstformer import close, recorded_weights

RECORDS = ['vanilla_linprobe', 'vanilla_finetune_J25']
PROTOCOLS = ['linprobe', 'finetune']
SMALL = {
    'num_joints': 5, 'num_frames': 6, 't_patch_size': 2, 'dim_in': 16, 'dim_feat': 16, 'depth': 2, 'num_heads': 2,
    'num_classes': 7,
}  # fmt: skip


def small_model(**arguments) -> VanillaTransformer:
    torch.manual_seed(0)
    return VanillaTransformer(**SMALL | arguments).eval()


def number_of_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(params=RECORDS)
def recorded(request, golden) -> tuple[Transformer, dict]:
    record = golden(request.param)
    config = {name.removeprefix('cfg_'): value.item() for name, value in record.items() if name.startswith('cfg_')}
    model = Transformer(
        dim_in=config['dim_in'],
        num_classes=config['num_classes'],
        dim_feat=config['dim_feat'],
        depth=config['depth'],
        num_heads=config['heads'],
        mlp_ratio=config['mlp_ratio'],
        num_frames=config['frames'],
        num_joints=config['joints'],
        patch_size=config['patch'],
        t_patch_size=config['t_patch'],
        protocol=config['head'],
    )
    model.load_state_dict(recorded_weights(record, 'sd/'), strict=True)
    return model.eval(), record


def test_logits_are_the_recorded_ones(recorded):
    model, record = recorded
    x = torch.tensor(record['x'])
    assert close(model(x), record['logits'])
    assert close(model.double()(x.double()), record['logits_f64'], 1e-10)


def test_each_part_is_the_recorded_one(recorded):
    model, record = recorded
    x = torch.tensor(record['x'])
    patches = model.joints_embed(rearrange(x, 'n c t v m -> (n m) c t v'))
    assert close(patches, record['patch_embedding'])
    tokens = rearrange(patches + model.pos_embed + model.temp_embed, 'n t v d -> n (t v) d')
    assert close(model.blocks[0](tokens), record['block0'])
    assert close(model.get_features(x), record['features'])
    assert close(model.head(torch.tensor(record['features'])), record['logits'])


def test_gradients_are_the_recorded_ones(recorded):
    model, record = recorded
    (model(torch.tensor(record['x'])) * torch.tensor(record['fixed'])).sum().backward()
    gradients = {name.removeprefix('grad/'): value for name, value in record.items() if name.startswith('grad/')}
    assert 'joints_embed.proj.weight' in gradients
    for name, gradient in gradients.items():
        assert close(model.get_parameter(name).grad, gradient, 1e-3), name


def test_section_class_is_the_recorded_model(golden):
    record = golden('vanilla_linprobe')
    model = VanillaTransformer(num_frames=8, dim_in=64, dim_feat=32, depth=2, num_heads=4)
    model.load_state_dict(recorded_weights(record, 'sd/'), strict=True)
    keypoint = rearrange(torch.tensor(record['x']), 'n c t v m -> n m t v c')
    assert close(model.eval()(keypoint), record['logits'])


def test_published_parameter_counts():
    with torch.device('meta'):
        assert number_of_parameters(VanillaTransformer()) == 9_552_956
        assert number_of_parameters(VanillaTransformer(dim_feat=768, depth=12, num_heads=12)) == 94_758_972
        assert number_of_parameters(VanillaTransformer(dim_in=3)) == 6_344_764
        assert number_of_parameters(VanillaTransformer(dim_in=3, num_joints=25)) == 6_346_812


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_parameter_is_trained(protocol):
    model = small_model(protocol=protocol).train()
    nn.functional.cross_entropy(model(torch.rand(4, 6, 5, 4, 4)), torch.arange(4)).backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The bias before a batch norm is subtracted again with the mean: its gradient is rounding alone.
    assert untouched <= {'head.fc1.bias'}


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_volume_is_one_person_whose_joints_have_a_channel_per_pixel(protocol):
    model = small_model(protocol=protocol)
    volume = torch.rand(2, 6, 5, 4, 4)
    assert torch.equal(model(volume), model(volume.reshape(2, 1, 6, 5, 16)))


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_persons_count_alike(protocol):
    model = small_model(protocol=protocol, dim_in=3)
    keypoint = torch.randn(2, 2, 6, 5, 3)
    torch.testing.assert_close(model(keypoint), model(keypoint.flip(1)))
    assert not torch.allclose(model(keypoint), model(keypoint[:, :1]))


def test_persons_meet_in_the_head_alone():
    model = small_model(dim_in=3)
    x = torch.randn(2, 3, 6, 5, 2)
    both = model.get_features(x)
    torch.testing.assert_close(both[:, :1], model.get_features(x[..., :1]))
    torch.testing.assert_close(both[:, 1:], model.get_features(x[..., 1:]))


def test_clip_is_scored_apart_from_the_batch():
    model = small_model()
    volume = torch.rand(3, 6, 5, 4, 4)
    torch.testing.assert_close(model(volume)[1:2], model(volume[1:2]))


def test_all_tokens_attend_to_all():
    block = small_model().blocks[0]
    tokens = torch.randn(2, 15, 16)
    changed = tokens.clone()
    changed[0, 7] += torch.randn(16)
    assert (block(tokens) != block(changed))[0].any(dim=-1).all()
    assert torch.equal(block(tokens)[1], block(changed)[1])  # the other clip


def test_tokens_know_their_joint_and_frames():
    model = small_model(depth=1)
    model.blocks[0] = nn.Identity()
    tokens = model.get_features(torch.ones(1, 16, 6, 5, 1))[0, 0].flatten(0, 1)
    distinct = ((tokens[:, None] - tokens).abs().amax(dim=-1)) > 0
    assert torch.equal(distinct, ~torch.eye(15, dtype=torch.bool))


def test_short_clip_has_the_first_places_in_time():
    model, short = small_model(), small_model(num_frames=4)
    weights = model.state_dict()
    short.load_state_dict(weights | {'temp_embed': weights['temp_embed'][:, :2]})
    volume = torch.rand(2, 4, 5, 4, 4)
    assert torch.equal(model(volume), short(volume))


def test_joint_patches():
    model = Transformer(
        dim_feat=16, depth=1, num_heads=2, num_frames=4, num_joints=6, patch_size=3, protocol='finetune'
    )
    x = torch.randn(2, 3, 4, 6, 1)
    assert model.get_features(x).shape == (2, 1, 1, 2, 16)
    assert model.eval()(x).shape == (2, 60)


def test_initial_weights():
    torch.manual_seed(0)
    model = Transformer(dim_in=64, depth=1, num_heads=4)
    for name, parameter in model.named_parameters():
        if name.startswith('joints_embed'):
            fan_in = 64 * 4
            assert parameter.abs().max() <= fan_in**-0.5  # torch's default, of weight and bias
            assert parameter.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1), name
        elif name in ('pos_embed', 'temp_embed'):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith('bias'):
            assert (parameter == 0).all(), name
        elif 'norm' in name:
            assert (parameter == 1).all(), name
        else:
            fan_out, fan_in = parameter.shape
            assert parameter.std().item() == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.02), name
            assert parameter.abs().max() <= (6 / (fan_in + fan_out)) ** 0.5
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


def test_qk_scale_and_missing_bias():
    def model(**arguments):
        torch.manual_seed(0)
        return Transformer(dim_feat=16, depth=1, num_heads=2, num_frames=4, num_joints=5, qkv_bias=False, **arguments)

    assert not any('qkv.bias' in name for name in model().state_dict())
    x = torch.randn(1, 3, 4, 5, 1)
    assert not torch.allclose(model()(x), model(qk_scale=3.0)(x))
    torch.testing.assert_close(model()(x), model(qk_scale=8**-0.5)(x))  # 8 channels per head


def test_drop_path_grows_over_depth_and_acts_in_training_alone():
    model = small_model(depth=3, drop_path_rate=0.5)
    assert [block.drop_path.p for block in model.blocks] == [0, 0.25, 0.5]
    volume = torch.rand(4, 6, 5, 4, 4)
    assert torch.equal(model(volume), model(volume))
    model.train()
    assert not torch.equal(model(volume), model(volume))


def test_dropped_path_leaves_tokens_as_they_were():
    block = Transformer(dim_feat=16, depth=2, num_heads=2, drop_path_rate=1.0).blocks[-1].train()
    tokens = torch.randn(4, 15, 16)
    assert torch.equal(block(tokens), tokens)


@pytest.mark.parametrize('arguments', [{'drop_rate': 0.5, 'depth': 0}, {'protocol': 'finetune'}])
def test_dropout_acts_in_training_alone(arguments):
    torch.manual_seed(0)
    model = Transformer(**{'dim_feat': 16, 'depth': 2, 'num_frames': 4, 'num_joints': 5} | arguments).eval()
    x = torch.randn(4, 3, 4, 5, 1)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate'])
def test_blocks_drop_in_training_alone(rate):
    torch.manual_seed(0)
    block = Transformer(dim_feat=16, depth=1, **{rate: 0.5}).blocks[0].eval()
    tokens = torch.randn(4, 15, 16)
    assert torch.equal(block(tokens), block(tokens))
    block.train()
    assert not torch.equal(block(tokens), block(tokens))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 6, 5, 16), r'\(2, 6, 5, 16\), not a volume'),
        ((2, 6, 5, 4, 5), r'\(2, 6, 5, 4, 5\).*make model.dim_in 16'),
        ((2, 8, 5, 4, 4), '8 frames .* num_frames 6 and t_patch_size 2: it takes multiples of 2 up to 6'),
        ((2, 3, 5, 4, 4), '3 frames .* num_frames 6 and t_patch_size 2: it takes multiples of 2 up to 6'),
        ((2, 6, 1, 4, 4), '1 joints of 16 channels .* num_joints 5 and dim_in 16'),
        ((2, 1, 6, 4, 16), '4 joints of 16 channels .* num_joints 5 and dim_in 16'),
    ],
)
def test_input_that_does_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape))


def test_upstream_input_that_does_not_fit():
    model = Transformer(dim_feat=16, depth=1, num_frames=8, num_joints=5)
    with pytest.raises(ValueError, match=r'5 joints of 2 channels .* num_joints 5 and dim_in 3'):
        model(torch.zeros(1, 2, 8, 5, 1))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'clip_len': 119}, 'data.clip_len 119 is over model.num_frames 48: set data.clip_len to 48, or both to 120'),
        ({'clip_len': 30}, 'data.clip_len 30 is no multiple of model.t_patch_size 4: set data.clip_len to 32'),
        ({'num_joints': 34}, 'model.num_joints is 17, but .* 34 joints or maps .*: set model.num_joints to 34'),
        ({'channels': 1024}, 'model.dim_in is 3136, but .* 1024 numbers .*: set model.dim_in to 1024'),
    ],
)
def test_config_that_does_not_fit(config, message):
    with torch.device('meta'):
        model = VanillaTransformer(depth=1)
    row = {'clip_len': 48, 'num_joints': 17, 'channels': 3136}
    model.check_input(**row)
    model.check_input(**row | {'clip_len': 20})
    with pytest.raises(ValueError, match=message):
        model.check_input(**row | config)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_heads': 3}, 'model.dim_feat 16 cannot be divided among model.num_heads 3'),
        ({'num_frames': 7}, 'model.num_frames 7 is no multiple of model.t_patch_size 2: set model.num_frames to 8'),
        *[({key: 0}, f'model.{key} is 0, but must be positive') for key in SMALL],
        ({'mlp_ratio': -1.0}, 'model.mlp_ratio is -1.0'),
        ({'dropout_ratio': 1.0}, 'model.dropout_ratio is 1.0'),
        ({'drop_path_rate': -0.1}, 'model.drop_path_rate is -0.1'),
        ({'protocol': 'scratch'}, "protocol is 'scratch', but must be 'linprobe' or 'finetune'"),
    ],
)
def test_value_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model(**arguments)


def test_dropout_ratio_is_a_key_of_the_finetune_head_alone(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('model: {depth: 2}\n')
    sections = {'model': VanillaTransformer}
    assert 'dropout_ratio' not in load_config(path, sections).model
    assert load_config(path, sections, ['model.protocol=finetune']).model.dropout_ratio == 0.3
    with pytest.raises(ValueError, match=r'model.dropout_ratio has no effect: .* linprobe has no dropout'):
        load_config(path, sections, ['model.dropout_ratio=0.5'])


@torch.no_grad()
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_compiled_model_equals_eager(protocol):
    model = small_model(protocol=protocol, depth=1)
    # What the default backend adds, generated code, is torch's own matter and takes most of a minute.
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    volume = torch.rand(2, 6, 5, 4, 4)
    torch.testing.assert_close(compiled(volume), model(volume))


def test_training_traces_to_one_graph():
    model = small_model(drop_path_rate=0.1).train()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    compiled(torch.rand(2, 6, 5, 4, 4)).sum().backward()
    assert model.pos_embed.grad.any()


@pytest.mark.gpu
def test_cuda_equals_cpu():
    model = small_model()
    volume = torch.rand(2, 6, 5, 4, 4)
    model(volume).square().sum().backward()
    logits, gradient = model(volume).detach(), model.joints_embed.proj.weight.grad.clone()
    model.zero_grad()
    model.cuda()
    # By default cuDNN rounds what enters a convolution to TF32's 10 bits.
    with torch.backends.cudnn.flags(allow_tf32=False):
        logits_cuda = model(volume.cuda())
        logits_cuda.square().sum().backward()
    assert close(logits_cuda.cpu(), logits)
    assert close(model.joints_embed.proj.weight.grad.cpu(), gradient, 1e-3)
