import pytest
import torch
from einops import rearrange

from lib.pytorch.dstformer import DSTformer
from lib.pytorch.mbert import ActionNet, MotionBERT
from tests import recorded
from tests.pytorch.test_dstformer import RECORDS, recorded_backbone
from tests.recorded import is_close


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
    model.check_input(clip_len=5, num_joints=17, dim_in=64)  # shorter than maxlen


def test_unknown_version_is_refused():
    with pytest.raises(ValueError, match='version'):
        ActionNet(DSTformer(depth=1), version='pose')
