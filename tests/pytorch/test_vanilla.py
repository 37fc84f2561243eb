import pytest
import torch
from einops import rearrange
from torch import nn

from lib.pytorch.vanilla import Transformer, VanillaTransformer
from tests import recorded
from tests.recorded import is_close, is_same_twice

RECORDS = ['vanilla_linprobe', 'vanilla_finetune_J25']
SMALL = {
    'num_joints': 5, 'num_frames': 6, 't_patch_size': 2, 'dim_in': 16, 'dim_feat': 16, 'depth': 2, 'num_heads': 2,
    'num_classes': 7,
}  # fmt: skip


def small_model(**arguments) -> VanillaTransformer:
    torch.manual_seed(0)
    return VanillaTransformer(**SMALL | arguments).eval()


@pytest.fixture(params=RECORDS)
def recorded_model(request, golden) -> tuple[Transformer, dict]:
    record = golden(request.param)
    sizes = recorded.config(record)
    model = Transformer(
        **{name: sizes[name] for name in ('dim_in', 'num_classes', 'dim_feat', 'depth', 'mlp_ratio')},
        num_heads=sizes['heads'],
        num_frames=sizes['frames'],
        num_joints=sizes['joints'],
        patch_size=sizes['patch'],
        t_patch_size=sizes['t_patch'],
        protocol=sizes['head'],
    )
    model.load_state_dict(recorded.weights(record), strict=True)
    return model.eval(), record


def test_logits_are_the_recorded_ones(recorded_model):
    recorded.assert_logits_are_recorded(*recorded_model)


def test_each_part_is_the_recorded_one(recorded_model):
    model, record = recorded_model
    x = torch.tensor(record['x'])
    patches = model.joints_embed(rearrange(x, 'n c t v m -> (n m) c t v'))
    assert is_close(patches, record['patch_embedding'])
    tokens = rearrange(patches + model.pos_embed + model.temp_embed, 'n t v d -> n (t v) d')
    assert is_close(model.blocks[0](tokens), record['block0'])
    assert is_close(model.get_features(x), record['features'])
    assert is_close(model.head(torch.tensor(record['features'])), record['logits'])


def test_gradients_are_the_recorded_ones(recorded_model):
    recorded.assert_gradients_are_recorded(*recorded_model)


def test_section_class_is_the_recorded_model(golden):
    record = golden('vanilla_linprobe')
    model = VanillaTransformer(num_frames=8, dim_in=64, dim_feat=32, depth=2, num_heads=4)
    model.load_state_dict(recorded.weights(record), strict=True)
    keypoint = rearrange(torch.tensor(record['x']), 'n c t v m -> n m t v c')
    assert is_close(model.eval()(keypoint), record['logits'])


def test_short_clips_take_the_first_positions_in_time():
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


def test_drop_path_grows_with_depth():
    model = small_model(depth=3, drop_path_rate=0.5)
    assert [block.drop_path.p for block in model.blocks] == [0, 0.25, 0.5]
    block = Transformer(dim_feat=16, depth=2, num_heads=2, drop_path_rate=1.0).blocks[-1].train()
    tokens = torch.randn(4, 15, 16)
    assert torch.equal(block(tokens), tokens)


@pytest.mark.parametrize('arguments', [{'drop_rate': 0.5, 'depth': 0}, {'drop_rate': 0.5}, {'attn_drop_rate': 0.5}])
def test_dropout_only_in_training(arguments):
    torch.manual_seed(0)
    model = Transformer(**{'dim_feat': 16, 'depth': 2, 'num_frames': 4, 'num_joints': 5} | arguments).eval()
    x = torch.randn(4, 3, 4, 5, 1)
    assert is_same_twice(model, x)
    assert not is_same_twice(model.train(), x)


@pytest.mark.parametrize('arguments', [{'num_frames': 7}, {'protocol': 'scratch'}])
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        small_model(**arguments)


def test_frames_must_fill_patches():
    small_model().check_input(clip_len=4, num_joints=5, dim_in=16)
    with pytest.raises(ValueError, match=r'model\.t_patch_size 2: set data\.clip_len to 4'):
        small_model().check_input(clip_len=3, num_joints=5, dim_in=16)
    with pytest.raises(ValueError, match='t_patch_size 2'):
        small_model()(torch.zeros(2, 3, 5, 4, 4))


def test_dropout_ratio_is_refused_by_the_head_without_dropout():
    with pytest.raises(ValueError, match=r'model\.dropout_ratio has no effect'):
        VanillaTransformer(depth=2, dropout_ratio=0.5)
    assert VanillaTransformer(depth=1, protocol='finetune').head.dropout.p == 0.3
