import pytest
import torch
from einops import rearrange
from torch import nn

from lib.pytorch.dstformer import DSTformer

RECORDS = ['mb_c3', 'mb_c64', 'mb_c64_short_T5', 'mb_nofuse']
SMALL = {'dim_in': 3, 'dim_feat': 16, 'dim_rep': 12, 'depth': 2, 'num_heads': 2, 'num_joints': 5, 'maxlen': 6}


def close(actual: torch.Tensor, recorded, tolerance: float = 1e-4) -> bool:
    """Largest difference relative to the largest recorded number."""
    recorded = torch.as_tensor(recorded)
    assert actual.shape == recorded.shape
    return (actual.detach() - recorded).abs().max() <= tolerance * recorded.abs().max()


def small_model(**arguments) -> DSTformer:
    torch.manual_seed(0)
    model = DSTformer(**SMALL | arguments).eval()
    for fuse in model.ts_attn or []:
        nn.init.normal_(fuse.weight)  # as after training: initially both streams count the same
    return model


def moved(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Which (frame, joint) of the first clip's (N,T,V,D) differ: bool (T,V)."""
    return ((after - before)[0].abs() > 1e-7).any(dim=-1)


def recorded_backbone(record: dict) -> DSTformer:
    """The recorded model without its weights."""
    config = {name.removeprefix('cfg_'): value.item() for name, value in record.items() if name.startswith('cfg_')}
    return DSTformer(
        dim_in=config['dim_in'],
        dim_out=config['dim_in'],
        dim_feat=config['dim_feat'],
        dim_rep=config['dim_rep'],
        depth=config['depth'],
        num_heads=config['heads'],
        mlp_ratio=config['mlp_ratio'],
        num_joints=config['joints'],
        maxlen=config['maxlen'],
        att_fuse=config['att_fuse'],
    )


def recorded_weights(record: dict, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): torch.tensor(w) for name, w in record.items() if name.startswith(prefix)}


@pytest.fixture(params=RECORDS)
def recorded(request, golden) -> tuple[DSTformer, dict]:
    record = golden(request.param)
    model = recorded_backbone(record)
    model.load_state_dict(recorded_weights(record, 'sd/backbone.'), strict=True)
    return model.eval(), record


def test_outputs_are_the_recorded_ones(recorded):
    model, record = recorded
    x = rearrange(torch.tensor(record['x']), 'n m t v c -> (n m) t v c')
    representation = model(x, return_rep=True)
    assert close(representation, record['representation'])
    assert torch.equal(model.get_representation(x), representation)
    assert close(model(x), record['backbone_out'])


def test_each_part_of_the_first_blocks_is_the_recorded_one(recorded):
    model, record = recorded
    num_frames = record['cfg_T'].item()
    x = rearrange(torch.tensor(record['x']), 'n m t v c -> (n m) t v c')
    assert close(rearrange(model.embed(x), 'n t v d -> (n t) v d'), record['embedded'])

    frames = torch.tensor(record['embedded'])
    embedded = rearrange(frames, '(n t) v d -> n t v d', t=num_frames)
    block_st, block_ts = model.blocks_st[0], model.blocks_ts[0]
    assert close(rearrange(block_st(embedded), 'n t v d -> (n t) v d'), record['block_st0'])
    assert close(rearrange(block_ts(embedded), 'n t v d -> (n t) v d'), record['block_ts0'])

    assert close(block_st.attn_s(frames), record['attn_s0'])
    tracks = block_st.attn_t(rearrange(embedded, 'n t v d -> (n v) t d'))
    assert close(rearrange(tracks, '(n v) t d -> (n t) v d', t=num_frames, n=len(x)), record['attn_t0'])


def test_spatial_half_stays_in_its_frame_and_temporal_half_in_its_joint():
    block = small_model().blocks_st[0]
    x = torch.randn(2, 6, 5, 16)
    changed = x.clone()
    changed[0, 2, 3] += torch.randn(16)

    in_frame = torch.zeros(6, 5, dtype=torch.bool)
    in_frame[2] = True
    assert torch.equal(moved(block.spatial(x), block.spatial(changed)), in_frame)

    of_joint = torch.zeros(6, 5, dtype=torch.bool)
    of_joint[:, 3] = True
    assert torch.equal(moved(block.temporal(x), block.temporal(changed)), of_joint)

    assert moved(block(x), block(changed)).all()
    assert torch.equal(block(x)[1], block(changed)[1])  # the other clip


def test_streams_differ_in_the_order_of_their_halves():
    model = small_model()
    st, ts = model.blocks_st[0], model.blocks_ts[0]
    x = torch.randn(1, 6, 5, 16)
    torch.testing.assert_close(st(x), st.temporal(st.spatial(x)))
    torch.testing.assert_close(ts(x), ts.spatial(ts.temporal(x)))


def test_tokens_know_their_joint_and_frame():
    model = small_model()
    tokens = model.embed(torch.ones(1, 6, 5, 3))[0]
    differences = tokens[:, :, None, None] - tokens
    distinct = (differences.abs().amax(dim=-1) > 0).flatten(2).flatten(0, 1)
    assert torch.equal(distinct, ~torch.eye(30, dtype=torch.bool))


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


def test_drop_path_grows_over_depth_and_acts_in_training_alone():
    model = small_model(depth=3, drop_path_rate=0.5)
    for blocks in (model.blocks_st, model.blocks_ts):
        assert [block.drop_path.p for block in blocks] == [0, 0.25, 0.5]
    x = torch.randn(4, 6, 5, 3)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_dropped_path_leaves_a_clip_as_it_was():
    block = small_model(drop_path_rate=1.0).blocks_st[-1].train()
    x = torch.randn(4, 6, 5, 16)
    assert torch.equal(block(x), x)


def test_paths_are_dropped_clip_by_clip():
    block = small_model(drop_path_rate=0.5).blocks_st[-1].train()
    same_clips = torch.randn(1, 6, 5, 16).expand(16, -1, -1, -1)
    assert len(block(same_clips).unique(dim=0)) > 1


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate'])
def test_dropout_acts_in_training_alone(rate):
    model = small_model(**{rate: 0.5})
    x = torch.randn(2, 6, 5, 3)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((1, 7, 5, 3), '7 frames is over maxlen 6'),
        ((1, 6, 1, 3), '1 joints of 3 channels .* num_joints 5 and dim_in 3'),
        ((1, 6, 5, 2), '5 joints of 2 channels .* num_joints 5 and dim_in 3'),
    ],
)
def test_input_that_does_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape))
