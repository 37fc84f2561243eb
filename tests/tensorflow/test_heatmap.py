from functools import cache, partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from lib.tensorflow.heatmap import HeatmapRenderer
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

MODES = ['eager', 'graph', 'xla']
KINDS = ['joint', 'limb', 'both']


@cache
def renderer(mode: str, **options):
    render = HeatmapRenderer(**options)
    return render if mode == 'eager' else tf.function(render, jit_compile=mode == 'xla')


def render(keypoint: np.ndarray, score: np.ndarray, *, mode: str = 'eager', **options) -> np.ndarray:
    """(M,T,V,2) and (M,T,V), arrays of any float, to a volume (T,channels,H,W): the order of recorded ones."""
    keypoint, score = (tf.constant(array[None], tf.float32) for array in (keypoint, score))
    return np.moveaxis(renderer(mode, **options)(keypoint, score)[0].numpy(), -1, 1)


def test_maps_equal_the_recorded_ones(golden):
    assert_maps_are_recorded(golden, render)


@pytest.mark.parametrize('clip', CLIPS)
def test_volumes_equal_those_of_the_whole_pipeline(golden, clip):
    for kind, keypoint, score, expected in recorded_volumes(golden, clip):
        np.testing.assert_allclose(render(keypoint, score, kind=kind), expected, rtol=0, atol=TOLERANCE[kind])


@pytest.mark.parametrize('mode', MODES)
@given(drawn=persons(), kind=st.sampled_from(['joint', 'both']))
def test_maps_equal_the_oracle(mode, drawn, kind):
    assert_equals_oracle(partial(render, mode=mode), *drawn, kind)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('sigma', SIGMAS)
def test_windows_at_every_edge(mode, sigma):
    assert_windows_are_those_of_the_oracle(partial(render, mode=mode), sigma)


@given(sigma=st.floats(0.05, 4), size=st.integers(1, 24), seed=st.integers(0, 1000), joints=st.sampled_from([17, 25]))
def test_any_sigma_size_and_skeleton(sigma, size, seed, joints):
    (keypoint,), (score,) = random_batch(1, 1, joints, size, seed)
    assert_equals_oracle(render, keypoint, score, 'both', sigma, size)


@pytest.mark.parametrize('mode', MODES)
def test_joints_far_outside_the_map(mode):
    far = np.full((1, 2, 17, 2), 1e30, np.float32)
    far[:, :, ::2, 0] = 20
    far[:, :, ::3, 1] = -1e30
    assert np.isfinite(render(far, np.ones((1, 2, 17)), mode=mode, kind='both')).all()
    keypoint, score = random_batch(1)
    keypoint[0, :, :, ::3] *= 300  # limbs from inside the map to thousands of pixels outside
    assert_equals_oracle(partial(render, mode=mode), keypoint[0], score[0], 'both')


def test_channels():
    inputs = random_batch(2)
    volumes = {kind: HeatmapRenderer(size=SIZE, kind=kind)(*inputs) for kind in KINDS}
    np.testing.assert_array_equal(volumes['both'], np.concatenate([volumes['joint'], volumes['limb']], axis=-1))
    for kind, volume in volumes.items():
        assert volume.shape == (2, 3, SIZE, SIZE, HeatmapRenderer(kind=kind).num_maps(17))
        assert volume.dtype == tf.float32
    assert [HeatmapRenderer(kind=kind).num_maps(25) for kind in KINDS] == [25, 24, 49]


@pytest.mark.parametrize('mode', ['graph', 'xla'])
def test_compiled_equals_eager_for_any_batch_with_one_trace(mode):
    render, traces = HeatmapRenderer(size=SIZE, kind='both'), []

    @tf.function(
        input_signature=[tf.TensorSpec((None, 2, 3, 17, 2)), tf.TensorSpec((None, 2, 3, 17))], jit_compile=mode == 'xla'
    )
    def compiled(keypoint, score):
        volume = render(keypoint, score)
        traces.append(volume.shape)
        return volume

    for num_clips in (4, 1):
        inputs = random_batch(num_clips)
        volume, expected = compiled(*inputs).numpy(), render(*inputs).numpy()
        np.testing.assert_allclose(volume, expected, rtol=0, atol=1e-5)
    assert traces[0].as_list() == [None, 3, SIZE, SIZE, render.num_maps(17)]  # what a model is built on
    assert len(traces) == 1


def test_invalid_options_and_shapes_are_refused():
    assert_invalid_arguments_are_refused(HeatmapRenderer, *random_batch(2))
