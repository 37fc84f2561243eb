import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lib.data.heatmap import joint_heatmaps, limb_heatmaps
from lib.tensorflow.heatmap import HeatmapRenderer

SIZE = 16
TOLERANCE = {'joint': 2e-6, 'limb': 2e-5, 'both': 2e-5}
MODES = ['eager', 'graph', 'xla']
# The renderer draws square maps with scores; the other recorded cases are the reference's alone.
DRAWN_CASES = [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 21, 22, 23, 24]


@functools.cache
def renderer(mode, **options):
    render = HeatmapRenderer(**options)
    return render if mode == 'eager' else tf.function(render, jit_compile=mode == 'xla')


def render(keypoint, score, *, mode='eager', **options):
    """(M,T,V,2) and (M,T,V), arrays of any float, to a volume (T,channels,H,W): the order that recorded ones have."""
    keypoint, score = (tf.constant(array[None], tf.float32) for array in (keypoint, score))
    return np.moveaxis(renderer(mode, **options)(keypoint, score)[0].numpy(), -1, 1)


def reference(keypoint, score, *, size, sigma, kind):
    options = {'img_shape': (size, size), 'sigma': sigma}
    joints = joint_heatmaps(keypoint, score, **options) if kind != 'limb' else None
    limbs = limb_heatmaps(keypoint, score, **options) if kind != 'joint' else None
    return np.concatenate([maps for maps in (joints, limbs) if maps is not None], axis=1)


def random_batch(num_clips, num_persons=2, num_frames=3, num_joints=17, size=SIZE, seed=0):
    generator = np.random.default_rng(seed)
    keypoint = generator.random((num_clips, num_persons, num_frames, num_joints, 2), np.float32) * (size + 8) - 4
    return keypoint, generator.random((num_clips, num_persons, num_frames, num_joints), np.float32)


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


@pytest.mark.parametrize('mode', MODES)
@settings(max_examples=80, deadline=None)
@given(
    keypoint=hnp.arrays(np.float32, (3, 1, 17, 2), elements=coordinates.map(np.float32).map(float), fill=st.nothing()),
    score=hnp.arrays(np.float32, (3, 1, 17), elements=scores.map(np.float32).map(float), fill=st.nothing()),
    kind=st.sampled_from(['joint', 'both']),
    near=st.booleans(),
)
def test_maps_equal_the_reference(mode, keypoint, score, kind, near):
    if near:  # overlapping persons, and limbs around a pixel long
        keypoint = keypoint[:1, :, :1] + (keypoint - SIZE / 2) / SIZE
    options = {'size': SIZE, 'sigma': 0.6, 'kind': kind}
    volume = render(keypoint, score, mode=mode, **options)
    expected = reference(keypoint, score, **options)
    np.testing.assert_allclose(volume, expected, rtol=0, atol=TOLERANCE[kind])
    # Inside and outside a window differ by .01 * score; that both agree shows in the zeros too.
    np.testing.assert_array_equal(volume[:, :17] == 0, expected[:, :17] == 0)


@pytest.mark.parametrize('mode', MODES)
def test_windows_at_every_edge(mode):
    """All coordinates within two float32 of a jump of the window: here compilers could decide otherwise."""
    edges = (np.arange(-3, SIZE + 4)[:, None] + np.array([-3, 3]) * 0.6).ravel().astype(np.float32)
    x = np.concatenate([edges + np.spacing(edges) * step for step in range(-2, 3)])
    x = np.resize(x, (len(x) // 17 + 1, 17))  # as frames of 17 joints
    keypoint = np.stack([x, x[:, ::-1]], axis=-1)[None]
    options = {'size': SIZE, 'sigma': 0.6, 'kind': 'joint'}
    score = np.ones(keypoint.shape[:-1], np.float32)
    volume = render(keypoint, score, mode=mode, **options)
    np.testing.assert_array_equal(volume > 0, reference(keypoint, score, **options) > 0)


@settings(max_examples=40, deadline=None)
@given(sigma=st.floats(0.05, 4), size=st.integers(1, 24), seed=st.integers(0, 1000))
def test_any_sigma_and_size(sigma, size, seed):
    keypoint, score = random_batch(1, num_frames=1, size=size, seed=seed)
    options = {'size': size, 'sigma': sigma, 'kind': 'both'}
    expected = reference(keypoint[0], score[0], **options)
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


@pytest.mark.parametrize('mode', MODES)
def test_joints_far_outside_the_map(mode):
    far = np.full((1, 2, 17, 2), 1e30, np.float32)
    far[:, :, ::2, 0] = 20
    far[:, :, ::3, 1] = -1e30
    assert np.isfinite(render(far, np.ones((1, 2, 17)), mode=mode, kind='both')).all()
    keypoint, score = random_batch(1)
    keypoint[0, :, :, ::3] *= 300  # limbs from inside the map to thousands of pixels outside
    options = {'size': SIZE, 'sigma': 0.6, 'kind': 'both'}
    expected = reference(keypoint[0], score[0], **options)
    np.testing.assert_allclose(render(keypoint[0], score[0], mode=mode, **options), expected, rtol=0, atol=2e-5)


def test_ntu_skeleton():
    keypoint, score = random_batch(1, num_joints=25)
    options = {'size': SIZE, 'sigma': 0.6, 'kind': 'both'}
    expected = reference(keypoint[0], score[0], **options)
    np.testing.assert_allclose(render(keypoint[0], score[0], **options), expected, rtol=0, atol=2e-5)


def test_channels():
    keypoint, score = random_batch(2)
    volumes = {kind: HeatmapRenderer(size=SIZE, kind=kind)(keypoint, score) for kind in ('joint', 'limb', 'both')}
    expected = np.concatenate([volumes['joint'], volumes['limb']], axis=-1)
    np.testing.assert_array_equal(volumes['both'], expected)
    for kind, volume in volumes.items():
        assert volume.shape == (2, 3, SIZE, SIZE, HeatmapRenderer(kind=kind).num_channels(17))
        assert volume.dtype == tf.float32
    assert [HeatmapRenderer(kind=kind).num_channels(25) for kind in ('joint', 'limb', 'both')] == [25, 24, 49]
    assert HeatmapRenderer().num_channels(5) == 5


def test_rows_are_y_and_channels_are_joints():
    keypoint, score = np.zeros((1, 1, 1, 17, 2), np.float32), np.zeros((1, 1, 1, 17), np.float32)
    keypoint[..., 4, :], score[..., 4] = (3, 9), 0.5  # x 3, y 9
    volume = HeatmapRenderer(size=SIZE)(keypoint, score).numpy()
    assert np.unravel_index(volume.argmax(), volume.shape) == (0, 0, 9, 3, 4)
    assert volume.max() == 0.5


@pytest.mark.parametrize('mode', ['graph', 'xla'])
@pytest.mark.parametrize('kind', ['joint', 'limb', 'both'])
def test_compiled_equals_eager_for_any_batch_with_one_trace(mode, kind):
    render, traces = HeatmapRenderer(size=SIZE, kind=kind), []

    @tf.function(
        input_signature=[tf.TensorSpec((None, 2, 3, 17, 2)), tf.TensorSpec((None, 2, 3, 17))], jit_compile=mode == 'xla'
    )
    def compiled(keypoint, score):
        volume = render(keypoint, score)
        traces.append(volume.shape)
        return volume

    for num_clips in (4, 3, 1):
        inputs = random_batch(num_clips)
        volume, expected = compiled(*inputs).numpy(), render(*inputs).numpy()
        np.testing.assert_allclose(volume, expected, rtol=0, atol=2e-6 if kind == 'joint' else 1e-5)
        joints = 0 if kind == 'limb' else 17
        np.testing.assert_array_equal(volume[..., :joints] == 0, expected[..., :joints] == 0)
    assert traces[0].as_list() == [None, 3, SIZE, SIZE, render.num_channels(17)]  # what a model is built on
    assert len(traces) == 1


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
    with pytest.raises(ValueError, match='expected \\(N,M,T,V,2\\)'):
        HeatmapRenderer()(keypoint[..., :1], score)
    with pytest.raises(ValueError, match='no skeleton with 16 joints'):
        HeatmapRenderer(kind='limb')(keypoint[:, :, :, :16], score[..., :16])
