import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch._dynamo.testing import CompileCounterWithBackend

from lib.data.heatmap import joint_heatmaps, limb_heatmaps
from lib.pytorch.heatmap import HeatmapRenderer

SIZE = 16
TOLERANCE = {'joint': 2e-6, 'limb': 2e-5, 'both': 2e-5}
# The renderer draws square maps with scores; the other recorded cases are the reference's alone.
DRAWN_CASES = [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 21, 22, 23, 24]


def render(keypoint, score, **options):
    """(M,T,V,2) and (M,T,V), arrays of any float, to a volume (T,channels,H,W)."""
    keypoint, score = (torch.from_numpy(np.asarray(a, np.float32))[None] for a in (keypoint, score))
    return HeatmapRenderer(**options)(keypoint, score)[0].numpy()


def reference(keypoint, score, *, size, sigma, kind):
    options = {'img_shape': (size, size), 'sigma': sigma}
    joints = joint_heatmaps(keypoint, score, **options) if kind != 'limb' else None
    limbs = limb_heatmaps(keypoint, score, **options) if kind != 'joint' else None
    return np.concatenate([maps for maps in (joints, limbs) if maps is not None], axis=1)


def random_batch(num_clips, num_persons=2, num_frames=3, num_joints=17, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keypoint = torch.rand(num_clips, num_persons, num_frames, num_joints, 2, generator=generator) * (size + 8) - 4
    return keypoint, torch.rand(num_clips, num_persons, num_frames, num_joints, generator=generator)


@pytest.mark.parametrize('case', DRAWN_CASES)
def test_maps_equal_the_recorded_ones(golden, case):
    recorded = golden('heatmaps')
    kind = 'limb' if recorded[f'h{case}_with_limb'] else 'joint'
    size, width = recorded[f'h{case}_img_shape']
    assert size == width
    options = {'size': int(size), 'sigma': float(recorded[f'h{case}_sigma']), 'kind': kind}
    volume = render(recorded[f'h{case}_keypoint'], recorded[f'h{case}_score'], **options)
    np.testing.assert_allclose(volume, recorded[f'h{case}_out'], rtol=0, atol=TOLERANCE[kind])


@pytest.mark.parametrize('clip', ['e0', 'e1', 'e2', 'e3', 'tr0', 'tr1'])
def test_volumes_equal_those_of_the_whole_pipeline(golden, clip):
    recorded = golden('end_to_end')
    score = recorded.get(f'{clip}_score56')
    if score is None:
        score = recorded[f'{clip}_score'][:, recorded[f'{clip}_frame_inds']]
    for name, kind in (('kp', 'joint'), ('limb', 'limb')):
        if f'{clip}_{name}_shape' in recorded:
            expected = np.zeros(recorded[f'{clip}_{name}_shape'], np.float32)
            expected.flat[np.cumsum(recorded[f'{clip}_{name}_nz_index_diff'])] = recorded[f'{clip}_{name}_nz_value']
            volume = render(recorded[f'{clip}_kp56'], score, kind=kind).swapaxes(0, 1)  # recorded as (1,V,T,H,W)
            np.testing.assert_allclose(volume, expected[0], rtol=0, atol=TOLERANCE[kind])


@st.composite
def window_edges(draw):
    """A coordinate whose window begins or ends at a whole pixel, or one float32 beside."""
    sigma = 0.6
    edge = np.float32(draw(st.integers(-3, SIZE + 3)) + draw(st.sampled_from([-3, 3])) * sigma)
    return float(draw(st.sampled_from([edge, np.nextafter(edge, np.float32(99)), np.nextafter(edge, np.float32(-99))])))


coordinates = st.one_of(
    st.floats(-8, SIZE + 8, width=32),
    window_edges(),
    st.sampled_from([0.0, -1.8, -2.8, SIZE - 1.0, SIZE + 1.8]),
)
scores = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, float(np.float32(0.001)), 0.0009, 1.0]))


@settings(max_examples=150, deadline=None)
@given(
    keypoint=hnp.arrays(np.float32, (3, 1, 17, 2), elements=coordinates.map(np.float32).map(float), fill=st.nothing()),
    score=hnp.arrays(np.float32, (3, 1, 17), elements=scores.map(np.float32).map(float), fill=st.nothing()),
    kind=st.sampled_from(['joint', 'both']),
    near=st.booleans(),
)
def test_maps_equal_the_reference(keypoint, score, kind, near):
    if near:  # overlapping persons, and limbs around a pixel long
        keypoint = keypoint[:1, :, :1] + (keypoint - SIZE / 2) / SIZE
    options = {'size': SIZE, 'sigma': 0.6, 'kind': kind}
    volume = render(keypoint, score, **options)
    expected = reference(keypoint, score, **options)
    np.testing.assert_allclose(volume, expected, rtol=0, atol=TOLERANCE[kind])
    # Inside and outside a window differ by .01 * score; that both agree shows in the zeros too.
    np.testing.assert_array_equal(volume[:, :17] == 0, expected[:, :17] == 0)


@settings(max_examples=40, deadline=None)
@given(sigma=st.floats(0.05, 4), size=st.integers(1, 24), seed=st.integers(0, 1000))
def test_any_sigma_and_size(sigma, size, seed):
    keypoint, score = random_batch(1, num_frames=1, size=size, seed=seed)
    options = {'size': size, 'sigma': sigma, 'kind': 'both'}
    expected = reference(keypoint[0].numpy(), score[0].numpy(), **options)
    # A narrow Gaussian is steep: what float32 rounds off a coordinate weighs 1 / sigma.
    tolerance = 2e-5 * max(1, 0.6 / sigma)
    np.testing.assert_allclose(render(keypoint[0], score[0], **options), expected, rtol=0, atol=tolerance)


def test_windows_of_nearly_whole_width():
    sigma = float(np.nextafter(np.float32(1), np.float32(0)))
    x = np.float32(np.arange(17) - 3 * sigma)
    keypoint = np.stack([x, x], axis=-1)[None, None]
    options = {'size': 24, 'sigma': sigma, 'kind': 'joint'}
    score = np.ones((1, 1, 17), np.float32)
    np.testing.assert_array_equal(render(keypoint, score, **options) > 0, reference(keypoint, score, **options) > 0)


def test_huge_coordinates_are_finite():
    keypoint = np.full((1, 2, 17, 2), 1e30, np.float32)
    keypoint[:, :, ::2, 0] = 20
    keypoint[:, :, ::3, 1] = -1e30
    assert np.isfinite(render(keypoint, np.ones((1, 2, 17)), kind='both')).all()


def test_ntu_skeleton():
    keypoint, score = random_batch(1, num_joints=25)
    options = {'size': SIZE, 'sigma': 0.6, 'kind': 'both'}
    expected = reference(keypoint[0].numpy(), score[0].numpy(), **options)
    np.testing.assert_allclose(render(keypoint[0], score[0], **options), expected, rtol=0, atol=2e-5)


def test_channels():
    keypoint, score = random_batch(2)
    volumes = {kind: HeatmapRenderer(size=SIZE, kind=kind)(keypoint, score) for kind in ('joint', 'limb', 'both')}
    torch.testing.assert_close(volumes['both'], torch.cat([volumes['joint'], volumes['limb']], dim=2), rtol=0, atol=0)
    for kind, volume in volumes.items():
        assert volume.shape == (2, 3, HeatmapRenderer(kind=kind).num_channels(17), SIZE, SIZE)
        assert volume.dtype == torch.float32
        assert volume.is_contiguous()
    assert [HeatmapRenderer(kind=kind).num_channels(25) for kind in ('joint', 'limb', 'both')] == [25, 24, 49]
    assert HeatmapRenderer().num_channels(5) == 5


def test_keypoints_get_a_gradient():
    keypoint, score = random_batch(1)
    keypoint.requires_grad_()
    HeatmapRenderer(size=SIZE, kind='both')(keypoint, score).sum().backward()
    assert keypoint.grad.isfinite().all()
    assert keypoint.grad.any()


def test_compiled_equals_eager_and_a_short_last_batch_compiles_once_more():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('inductor')
    renderer = HeatmapRenderer(size=SIZE, kind='both')
    compiled = torch.compile(renderer, backend=counter, fullgraph=True)
    with torch.inference_mode():
        for num_clips in (6, 6, 5, 4, 3):
            inputs = random_batch(num_clips)
            torch.testing.assert_close(compiled(*inputs), renderer(*inputs), rtol=0, atol=2e-6)
    assert counter.frame_count == 2  # the first batch size, then any


@pytest.mark.parametrize('kind', ['joint', 'both'])
def test_one_graph_for_all_batch_sizes_where_the_axis_is_marked(kind):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('inductor')
    renderer = HeatmapRenderer(size=SIZE, kind=kind)
    compiled = torch.compile(renderer, backend=counter, fullgraph=True)
    with torch.inference_mode():
        for num_clips in (16, 7, 3):
            inputs = random_batch(num_clips)
            for tensor in inputs:
                torch._dynamo.mark_dynamic(tensor, 0)
            torch.testing.assert_close(compiled(*inputs), renderer(*inputs), rtol=0, atol=2e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize('kind', ['joint', 'limb', 'both'])
@pytest.mark.parametrize('compiled', [False, True])
def test_a_volume_in_bfloat16_is_the_float32_one_rounded(kind, compiled):
    torch._dynamo.reset()
    renderer = HeatmapRenderer(size=SIZE, kind=kind)
    renderer = torch.compile(renderer, fullgraph=True) if compiled else renderer
    inputs = random_batch(2)
    with torch.inference_mode():
        volume = renderer(*inputs, dtype=torch.bfloat16)
        expected = renderer(*inputs).bfloat16()
    assert volume.dtype == torch.bfloat16
    # The compiler may order a float32 sum otherwise, so that a number between two is rounded to the other.
    torch.testing.assert_close(volume, expected, rtol=2**-7 if compiled else 0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize('compiled', [False, True])
def test_gpu_equals_cpu(compiled):
    renderer = HeatmapRenderer(size=SIZE, kind='both')
    inputs = random_batch(4)
    expected = renderer(*inputs)
    on_gpu = HeatmapRenderer(size=SIZE, kind='both').cuda()
    on_gpu = torch.compile(on_gpu, fullgraph=True) if compiled else on_gpu
    volume = on_gpu(*(t.cuda() for t in inputs))
    assert volume.is_cuda
    torch.testing.assert_close(volume.cpu(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'size': 0}, 'size is 0'), ({'sigma': 0.0}, 'sigma is 0.0'), ({'sigma': float('nan')}, 'sigma is nan'),
     ({'kind': 'bones'}, "kind is 'bones'; choose one of joint, limb, both")],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeatmapRenderer(**options)


def test_wrong_shapes_are_refused():
    keypoint, score = random_batch(2)
    with pytest.raises(ValueError, match='expected \\(N,M,T,V,2\\)'):
        HeatmapRenderer()(keypoint[0], score[0])
    with pytest.raises(ValueError, match='expected \\(N,M,T,V,2\\)'):
        HeatmapRenderer()(keypoint, score[:1])
    with pytest.raises(ValueError, match='no skeleton with 16 joints'):
        HeatmapRenderer(kind='limb')(keypoint[:, :, :, :16], score[..., :16])
