import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from lib.pytorch.heatmap import HeatmapRenderer
from tests.heatmaps import (
    CLIPS,
    SIGMAS,
    SIZE,
    TOLERANCE,
    assert_equals_oracle,
    assert_invalid_arguments_are_refused,
    assert_maps_are_recorded,
    assert_windows_are_those_of_the_oracle,
    persons,
    random_batch,
    recorded_volumes,
)

KINDS = ['joint', 'limb', 'both']


def render(keypoint: np.ndarray, score: np.ndarray, **options) -> np.ndarray:
    """(M,T,V,2) and (M,T,V), arrays of any float, to a volume (T,channels,H,W)."""
    keypoint, score = (torch.from_numpy(np.asarray(a, np.float32))[None] for a in (keypoint, score))
    return HeatmapRenderer(**options)(keypoint, score)[0].numpy()


def tensors(num_clips: int, **options) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in random_batch(num_clips, **options)]


def test_maps_equal_the_recorded_ones(golden):
    assert_maps_are_recorded(golden, render)


@pytest.mark.parametrize('clip', CLIPS)
def test_volumes_equal_those_of_the_whole_pipeline(golden, clip):
    for kind, keypoint, score, expected in recorded_volumes(golden, clip):
        np.testing.assert_allclose(render(keypoint, score, kind=kind), expected, rtol=0, atol=TOLERANCE[kind])


@given(drawn=persons(), kind=st.sampled_from(['joint', 'both']))
def test_maps_equal_the_oracle(drawn, kind):
    assert_equals_oracle(render, *drawn, kind)


@given(sigma=st.floats(0.05, 4), size=st.integers(1, 24), seed=st.integers(0, 1000), joints=st.sampled_from([17, 25]))
def test_any_sigma_size_and_skeleton(sigma, size, seed, joints):
    (keypoint,), (score,) = random_batch(1, 1, joints, size, seed)
    assert_equals_oracle(render, keypoint, score, 'both', sigma, size)


@pytest.mark.parametrize('sigma', SIGMAS)
def test_windows_at_every_edge(sigma):
    assert_windows_are_those_of_the_oracle(render, sigma)


def test_huge_coordinates_are_finite():
    keypoint = np.full((1, 2, 17, 2), 1e30, np.float32)
    keypoint[:, :, ::2, 0] = 20
    keypoint[:, :, ::3, 1] = -1e30
    assert np.isfinite(render(keypoint, np.ones((1, 2, 17)), kind='both')).all()


def test_channels():
    inputs = tensors(2)
    volumes = {kind: HeatmapRenderer(size=SIZE, kind=kind)(*inputs) for kind in KINDS}
    torch.testing.assert_close(volumes['both'], torch.cat([volumes['joint'], volumes['limb']], dim=2), rtol=0, atol=0)
    for kind, volume in volumes.items():
        assert volume.shape == (2, 3, HeatmapRenderer(kind=kind).num_maps(17), SIZE, SIZE)
        assert volume.dtype == torch.float32
    assert [HeatmapRenderer(kind=kind).num_maps(25) for kind in KINDS] == [25, 24, 49]


def test_keypoints_get_a_gradient():
    keypoint, score = tensors(1)
    keypoint.requires_grad_()
    HeatmapRenderer(size=SIZE, kind='both')(keypoint, score).sum().backward()
    assert keypoint.grad.isfinite().all()
    assert keypoint.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize('marked', [False, True])
def test_compiled_equals_eager_and_a_short_last_batch_compiles_once_more(marked):
    """With the batch axis marked as dynamic, one graph serves all batch sizes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('inductor')
    renderer = HeatmapRenderer(size=SIZE, kind='both')
    compiled = torch.compile(renderer, backend=counter, fullgraph=True)
    with torch.inference_mode():
        for num_clips in (6, 6, 5, 4, 3):
            inputs = tensors(num_clips)
            for tensor in inputs if marked else ():
                torch._dynamo.mark_dynamic(tensor, 0)
            torch.testing.assert_close(compiled(*inputs), renderer(*inputs), rtol=0, atol=2e-6)
    assert counter.frame_count == (1 if marked else 2)


def test_traces_to_one_graph():
    torch._dynamo.reset()
    renderer, inputs = HeatmapRenderer(size=SIZE, kind='both'), tensors(2)
    compiled = torch.compile(renderer, backend='aot_eager', fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(*inputs), renderer(*inputs), rtol=0, atol=2e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_volume_in_bfloat16_is_the_float32_one_rounded(kind, compiled):
    torch._dynamo.reset()
    renderer = HeatmapRenderer(size=SIZE, kind=kind)
    renderer = torch.compile(renderer, fullgraph=True) if compiled else renderer
    inputs = tensors(2)
    with torch.inference_mode():
        volume = renderer(*inputs, dtype=torch.bfloat16)
        expected = renderer(*inputs).bfloat16()
    assert volume.dtype == torch.bfloat16
    # The compiler may reorder float32 sums, which changes the rounding of numbers between two bfloat16 ones.
    torch.testing.assert_close(volume, expected, rtol=2**-7 if compiled else 0, atol=0)


@pytest.mark.parametrize('kind', ['joint', 'limb', 'both'])
def test_a_volume_per_person_is_that_of_the_person_alone(kind):
    keypoint, score = tensors(4)
    volume = HeatmapRenderer(size=SIZE, kind=kind, per_person=True)(keypoint, score)
    shared = HeatmapRenderer(size=SIZE, kind=kind)
    alone = [shared(keypoint[:, m : m + 1], score[:, m : m + 1]) for m in range(keypoint.shape[1])]
    assert torch.equal(volume, torch.stack(alone, 1))
    assert torch.equal(volume.amax(1), shared(keypoint, score))
    assert volume.flatten(2).amax(2).min() > 0


@pytest.mark.gpu
@pytest.mark.parametrize('compiled', [False, True])
def test_gpu_equals_cpu(compiled):
    renderer, inputs = HeatmapRenderer(size=SIZE, kind='both'), tensors(4)
    expected = renderer(*inputs)
    on_gpu = HeatmapRenderer(size=SIZE, kind='both').cuda()
    on_gpu = torch.compile(on_gpu, fullgraph=True) if compiled else on_gpu
    volume = on_gpu(*(t.cuda() for t in inputs))
    assert volume.is_cuda
    torch.testing.assert_close(volume.cpu(), expected, rtol=0, atol=5e-6)


def test_invalid_options_and_shapes_are_refused():
    assert_invalid_arguments_are_refused(HeatmapRenderer, *tensors(2))
