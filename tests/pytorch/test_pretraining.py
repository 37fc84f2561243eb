"""Masked motion pretraining: targets, masks, and that the encoder sees only visible tokens."""

import os
import re
import signal

import numpy as np
import pytest
import torch

from lib.models import load_config
from lib.pytorch import pretraining
from lib.pytorch.pretrained import load_backbone
from lib.pytorch.pretraining import MotionPretraining
from lib.pytorch.vanilla import VanillaTransformer
from lib.tools import compare, summary
from lib.tools.checkpoints import open_checkpoint
from tests import tiny

N, M, T, V, SIZE, PATCH = 3, 2, 16, 5, 8, 4
SMALL = {'num_joints': V, 'num_frames': T, 'dim_feat': 16, 'depth': 1, 'num_heads': 2, 'decoder_depth': 1}


def heatmap_model(**keys) -> MotionPretraining:
    torch.manual_seed(0)
    return MotionPretraining(dim_in=SIZE**2, **SMALL | keys).eval()


def heatmap_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A volume, keypoints in pixels and scores."""
    random = torch.Generator().manual_seed(0)
    volume = torch.rand(N, T, V, SIZE, SIZE, generator=random)
    return volume, SIZE * torch.rand(N, M, T, V, 2, generator=random), torch.ones(N, M, T, V)


def keypoint_model(**keys) -> MotionPretraining:
    torch.manual_seed(0)
    return MotionPretraining(dim_in=3, num_persons=1, dim_motion=3, **SMALL | keys).eval()


def test_the_target_is_the_normalised_displacement_of_each_joint():
    keypoint = torch.rand(N, M, T, V, 3, generator=torch.Generator().manual_seed(1))
    target = keypoint_model().predict_motion(keypoint, keypoint, None).target
    n, m, t, v = 1, 1, 2, 3  # any token
    frames = keypoint[n, m, PATCH * t : PATCH * (t + 1) + 1, v].numpy().astype(np.float64)
    step = np.diff(frames, axis=0)
    expected = (step - step.mean()) / step.std(ddof=1)
    np.testing.assert_allclose(target[n * M + m, t * V + v, 0].reshape(PATCH, 3), expected, atol=1e-4)


def test_the_motion_after_the_last_frame_is_zero():
    keypoint = torch.rand(N, M, T, V, 3, generator=torch.Generator().manual_seed(1))
    target = keypoint_model().predict_motion(keypoint, keypoint, None).target
    last = target[0, -1, 0].reshape(PATCH, 3)[-1]
    assert len(set(last.tolist())) == 1  # zero before the normalisation


def test_the_given_fraction_of_the_tokens_is_masked():
    for ratio, visible in ((0.9, 2), (0.5, 10), (0.99, 1)):  # of 4 * 5 tokens
        masked = heatmap_model(mask_ratio=ratio).predict_motion(*heatmap_batch()).masked
        assert (~masked).sum(1).tolist() == [visible] * N


def test_moving_joints_are_masked_more_often():
    """With one token visible, a moving joint is so with the probability exp(-1 / tau) relative to a joint at rest."""
    rows = 4000
    keypoint = torch.ones(rows, 1, T, V, 3)
    keypoint[:, :, :, 0, 0] += torch.arange(T)  # joint 0 moves steadily
    torch.manual_seed(0)
    position, present = keypoint, torch.ones(rows, 1, T, V, dtype=torch.bool)
    kept = keypoint_model(mask_ratio=0.95)._visible(position, present)
    share = (kept % V == 0).float().mean().item()
    # The token with the smallest log-probability + noise stays. P(moving) by simulation with NumPy.
    random = np.random.default_rng(0)
    weight = np.where(np.arange(T // PATCH * V) % V == 0, 1 / 0.8, 0.0)
    ranks = weight - np.log(-np.log(random.random((200_000, len(weight)))))
    expected = (ranks.argmin(1) % V == 0).mean()
    assert share == pytest.approx(expected, abs=0.02)
    assert share < 0.5 / V


def test_the_encoder_never_sees_a_masked_token():
    volume, keypoint, score = heatmap_batch()
    volume.requires_grad_()
    model = heatmap_model(mask_ratio=0.8)
    motion = model.predict_motion(volume, keypoint, score)
    motion.prediction.square().sum().backward()
    used = volume.grad.unflatten(1, (-1, PATCH)).abs().sum((2, 4, 5)).flatten(1) > 0  # (N, L)
    assert torch.equal(used, ~motion.masked)


def test_zero_motion_has_the_error_of_zero_motion():
    model = heatmap_model()
    torch.nn.init.zeros_(model.decoder_pred.weight)
    torch.nn.init.zeros_(model.decoder_pred.bias)
    error, zero = model(*heatmap_batch()).unbind(1)
    torch.testing.assert_close(error, zero)
    assert zero.tolist() == pytest.approx([7 / 8] * N, abs=0.01)  # variance of 8 numbers, normalised with n - 1


def test_the_error_is_that_of_the_better_assignment_of_persons():
    model, batch = heatmap_model(), heatmap_batch()
    torch.manual_seed(1)
    motion = model.predict_motion(*batch)
    torch.manual_seed(1)
    error = model(*batch)[0, 0].item()
    p, t, masked = motion.prediction[0], motion.target[0], motion.masked[0]
    pair = lambda a, b: (p[:, a] - t[:, b]).square().mean(-1)  # noqa: E731
    best = torch.minimum(pair(0, 0) + pair(1, 1), pair(0, 1) + pair(1, 0))[masked].sum() / (2 * masked.sum())
    assert error == pytest.approx(best.item(), rel=1e-5)


def test_persons_with_maps_of_their_own_are_predicted_alone():
    _, keypoint, score = heatmap_batch()
    volume, model = torch.rand(N, M, T, V, SIZE, SIZE), heatmap_model(num_persons=1, mask_ratio=0.95)
    model._visible = lambda position, _: torch.zeros(len(position), 1, dtype=torch.long)
    together = model.predict_motion(volume, keypoint, score)
    alone = model.predict_motion(volume[1:2, 1:], keypoint[1:2, 1:], score[1:2, 1:])
    for rows, row in zip(together, alone, strict=True):
        assert len(rows) == N * M
        torch.testing.assert_close(rows[M + 1], row[0])


def test_absent_persons_and_missing_joints_do_not_count():
    volume, keypoint, score = heatmap_batch()
    score[0, 1] = 0  # an absent person
    score[1, :, :, 2] = 0  # a joint that is never seen
    model, outputs = heatmap_model(), []
    for noise in (0, 100):
        torch.manual_seed(1)
        hidden = keypoint + noise * (score == 0)[..., None]
        outputs.append(model(volume, hidden, score))
    torch.testing.assert_close(*outputs)
    known = model.predict_motion(volume, keypoint, score).known
    assert not known[0, :, 1].any()
    assert known[2].all()


def test_the_error_of_a_clip_does_not_depend_on_the_others():
    keypoint = torch.rand(N, M, T, V, 3, generator=torch.Generator().manual_seed(1))
    keypoint[1, 1] = 0
    model = keypoint_model(mask_ratio=0.95)
    model._visible = lambda position, _: torch.zeros(len(position), 1, dtype=torch.long)
    whole = model(keypoint, keypoint, None)
    alone = torch.cat([model(clip[None], clip[None], None) for clip in keypoint])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize('name', ['vanilla', 'vanilla_2d', 'vanilla_3d'])
def test_the_full_size_encoder_is_loaded_for_fine_tuning(name, tmp_path):
    pretrained = MotionPretraining(**load_config(f'configs/pretrain/{name}.yaml').model)
    torch.save({'model': pretrained.state_dict()}, tmp_path / 'latest_epoch.bin')
    row = {'vanilla_3d': 'vanilla_finetune_3d'}.get(name, name)
    model = VanillaTransformer(**load_config(f'configs/action/{row}.yaml').model)
    report = load_backbone(model, tmp_path / 'latest_epoch.bin')
    own = dict(pretrained.named_parameters())
    encoder = {key: value for key, value in model.named_parameters() if not key.startswith('head.')}
    assert all(torch.equal(value, own[key]) for key, value in encoder.items())
    assert f'loaded {len(encoder)} of' in report[0]


@pytest.mark.slow
def test_a_full_size_step_costs_half_of_a_supervised_one(capsys):
    """Multiply-adds per clip, and a training step of four clips on this device."""
    costs = []
    for config in ('configs/pretrain/vanilla.yaml', 'configs/action/vanilla.yaml'):
        assert summary.main([config, '--set', 'data.batch_size=4', '--measure']) == 0
        output = capsys.readouterr().out
        assert 'per step of 4 clips' in output
        costs.append(int(re.search(r'multiply-adds  ([\d,]+) million', output)[1].replace(',', '')))
    assert costs[0] == pytest.approx(0.52 * costs[1], rel=0.02)


@pytest.fixture
def command(tmp_path):
    return ['--config', tiny.write_config('pretrain', tmp_path), '-freq', 1]


def test_a_stopped_run_resumes_bit_exactly_and_is_loaded_by_the_script(command, tmp_path, monkeypatch, capsys):
    call, loss, steps = tiny.caller(tiny.PROGRAMS['pretrain']), pretraining.motion_loss, []
    assert call(*command, '-c', tmp_path / 'whole') == 0

    def stop_in_the_second_epoch(*args, **inputs):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*args, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, 'motion_loss', stop_in_the_second_epoch)
        assert call(*command, '-c', tmp_path / 'run') == 75
    assert tiny.latest(tmp_path / 'run')['step'] in (2, 3)
    assert call(*command, '-c', tmp_path / 'run') == 0
    tiny.assert_same_run(tmp_path / 'whole', tmp_path / 'run')
    lines = tiny.lines(tmp_path / 'run')
    assert [(*line['train'], *line['val']) for line in lines] == [('loss', 'loss', 'explained')] * 2
    assert list((tmp_path / 'run' / 'logs').iterdir())

    capsys.readouterr()
    tuned = ['-c', tmp_path / 'tuned', '-p', tmp_path / 'run', '--set', 'train.finetune=true']
    folder = tmp_path / 'vanilla'
    folder.mkdir()
    config = tiny.write_config('vanilla', folder)
    assert tiny.caller(tiny.SCRIPTS['vanilla'])('--config', config, *tuned) == 0
    assert 'initialised randomly: head.' in capsys.readouterr().out
    assert compare.main([str(tmp_path / 'run'), str(tmp_path / 'tuned')]) == 0
    assert f'{lines[-1]["val"]["explained"]:.2%}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('model.num_persons=1', 'model.num_persons is 1; it must be 2'),
        ('heatmap.per_person=true', 'model.num_persons is 2; it must be 1'),
        ('model.dim_motion=3', 'model.dim_motion is 3; it must be 2'),
        ('train.label_smoothing=0.1', 'train.label_smoothing has no effect'),
        ('model.mask_ratio=1.0', 'model.mask_ratio is 1.0'),
    ],
)
def test_keys_that_do_not_fit_are_named_before_anything_is_written(command, tmp_path, capsys, change, message):
    call = tiny.caller(tiny.PROGRAMS['pretrain'])
    assert call(*command, '-c', tmp_path / 'run', '--set', change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_the_tools_say_that_pretrained_weights_have_no_classes(command, tmp_path):
    assert tiny.caller(tiny.PROGRAMS['pretrain'])(*command, '-c', tmp_path / 'run', '--set', 'train.epochs=1') == 0
    with pytest.raises(ValueError, match='has no classes'):
        open_checkpoint(tmp_path / 'run')
