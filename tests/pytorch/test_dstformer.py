import pytest
import torch
from einops import rearrange
from torch import nn

from lib.pytorch.dstformer import DSTformer
from tests import recorded
from tests.recorded import is_close, is_same_twice

RECORDS = ['mb_c3', 'mb_c64', 'mb_c64_short_T5', 'mb_nofuse']
SMALL = {'dim_in': 3, 'dim_feat': 16, 'dim_rep': 12, 'depth': 2, 'num_heads': 2, 'num_joints': 5, 'maxlen': 6}


def small_model(**arguments) -> DSTformer:
    torch.manual_seed(0)
    model = DSTformer(**SMALL | arguments).eval()
    for fuse in model.ts_attn or []:
        nn.init.normal_(fuse.weight)  # as after training; initially both streams have equal weight
    return model


def recorded_backbone(record: dict) -> DSTformer:
    """The recorded model without its weights."""
    sizes = recorded.config(record)
    names = ('dim_in', 'dim_feat', 'dim_rep', 'depth', 'mlp_ratio', 'maxlen', 'att_fuse')
    return DSTformer(
        **{name: sizes[name] for name in names},
        dim_out=sizes['dim_in'],
        num_heads=sizes['heads'],
        num_joints=sizes['joints'],
    )


@pytest.mark.parametrize('name', RECORDS)
def test_outputs_and_parts_are_the_recorded_ones(golden, name):
    record = golden(name)
    model = recorded_backbone(record).eval()
    model.load_state_dict(recorded.weights(record, 'sd/backbone.'), strict=True)
    x = rearrange(torch.tensor(record['x']), 'n m t v c -> (n m) t v c')
    representation = model(x, return_rep=True)
    assert is_close(representation, record['representation'])
    assert torch.equal(model.get_representation(x), representation)
    if 'backbone_out' in record:
        assert is_close(model(x), record['backbone_out'])
    if 'embedded' in record:
        assert is_close(rearrange(model.embed(x), 'n t v d -> (n t) v d'), record['embedded'])
    if 'attn_s0' in record:
        frames = torch.tensor(record['embedded'])
        clips = rearrange(frames, '(n t) v d -> n t v d', n=len(x))
        block_st, block_ts = model.blocks_st[0], model.blocks_ts[0]
        assert is_close(rearrange(block_st(clips), 'n t v d -> (n t) v d'), record['block_st0'])
        assert is_close(rearrange(block_ts(clips), 'n t v d -> (n t) v d'), record['block_ts0'])
        assert is_close(block_st.attn_s(frames), record['attn_s0'])
        tracks = block_st.attn_t(rearrange(clips, 'n t v d -> (n v) t d'))
        assert is_close(rearrange(tracks, '(n v) t d -> (n t) v d', n=len(x)), record['attn_t0'])


def test_references_of_the_parts_exist(golden):
    assert {'backbone_out', 'embedded', 'attn_s0', 'attn_t0', 'block_st0', 'block_ts0'} <= golden('mb_c3').keys()
    assert {'backbone_out', 'embedded'} <= golden('mb_c64_short_T5').keys()


def test_initial_weights():
    torch.manual_seed(0)
    model = DSTformer(dim_feat=128, depth=1)
    for name, parameter in model.named_parameters():
        if name == 'ts_attn.0.weight' or (name.endswith('bias') and name != 'ts_attn.0.bias'):
            assert (parameter == 0).all(), name
        elif name == 'ts_attn.0.bias':
            assert (parameter == 0.5).all()
        elif 'norm' in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_qk_scale_and_missing_bias():
    model, scaled = small_model(qkv_bias=False), small_model(qkv_bias=False, qk_scale=3.0)
    assert not any('qkv.bias' in name for name in model.state_dict())
    x = torch.randn(1, 6, 5, 3)
    assert not torch.allclose(model(x), scaled(x))
    torch.testing.assert_close(model(x), small_model(qkv_bias=False, qk_scale=8**-0.5)(x))  # 8 channels per head


def test_without_dim_rep_the_representation_is_the_normalised_last_depth():
    model = small_model(dim_rep=None)
    representation = model.get_representation(torch.randn(1, 6, 5, 3))
    torch.testing.assert_close(representation.mean(dim=-1), torch.zeros(1, 6, 5))
    assert model.head(representation).shape == (1, 6, 5, 3)


def test_drop_path_grows_with_depth_and_drops_clip_by_clip():
    model = small_model(depth=3, drop_path_rate=0.5)
    for blocks in (model.blocks_st, model.blocks_ts):
        assert [block.drop_path.p for block in blocks] == [0, 0.25, 0.5]
    block = small_model(drop_path_rate=1.0).blocks_st[-1].train()
    x = torch.randn(1, 6, 5, 16).expand(16, -1, -1, -1)
    assert torch.equal(block(x), x)
    assert len(model.blocks_st[-1].train()(x).unique(dim=0)) > 1


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate'])
def test_dropout_only_in_training(rate):
    model, x = small_model(**{rate: 0.5}), torch.randn(4, 6, 5, 3)
    assert is_same_twice(model, x)
    assert not is_same_twice(model.train(), x)
