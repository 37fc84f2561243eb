"""Recorded and random heatmaps, for tests of the NumPy oracle and both renderers."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracle import heatmaps

SIZE, SIGMA = 16, 0.6
SIGMAS = [SIGMA, float(np.nextafter(np.float32(1), np.float32(0)))]  # 6 sigma nearly an integer
TOLERANCE = {'joint': 2e-6, 'limb': 2e-5, 'both': 2e-5}
CLIPS = ['e0', 'e1', 'e2', 'e3', 'tr0', 'tr1']  # in end_to_end.npz


def oracle(keypoint: np.ndarray, score: np.ndarray, *, size: int, sigma: float, kind: str) -> np.ndarray:
    """Reference volume (T,channels,H,W) of keypoint (M,T,V,2) and score (M,T,V)."""
    return heatmaps(keypoint, score, kind=kind, img_shape=(size, size), sigma=sigma)


def random_batch(
    num_clips: int, num_frames: int = 3, num_joints: int = 17, size: int = SIZE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Random keypoint (N,2,T,V,2), partly outside the map, and score (N,2,T,V), float32."""
    random = np.random.default_rng(seed)
    shape = num_clips, 2, num_frames, num_joints
    return random.random((*shape, 2), np.float32) * (size + 8) - 4, random.random(shape, np.float32)


def recorded_cases(golden) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(number, arrays) of each case in heatmaps.npz."""
    arrays = golden('heatmaps')
    for case in range(int(arrays['num_cases'])):
        prefix = f'h{case}_'
        yield case, {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def recorded_volumes(golden, clip: str) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(kind, keypoint, score, volume (T,V,H,W)) recorded for a clip in end_to_end.npz."""
    arrays = golden('end_to_end')
    keypoint, score = arrays[f'{clip}_kp56'], arrays.get(f'{clip}_score56')
    if score is None:
        score = arrays[f'{clip}_score'][:, arrays[f'{clip}_frame_inds']]
    for name, kind in (('kp', 'joint'), ('limb', 'limb')):
        if f'{clip}_{name}_shape' in arrays:
            volume = np.zeros(arrays[f'{clip}_{name}_shape'], np.float32)
            volume.flat[np.cumsum(arrays[f'{clip}_{name}_nz_index_diff'])] = arrays[f'{clip}_{name}_nz_value']
            yield kind, keypoint, score, volume[0].swapaxes(0, 1)  # recorded as (1,V,T,H,W)


def assert_maps_are_recorded(golden, render) -> None:
    """Compares render(keypoint, score, **options) -> (T,channels,H,W) with all recorded cases it supports."""
    drawn = 0
    for case, recorded in recorded_cases(golden):
        size, width = recorded['img_shape']
        if size == width and recorded['use_score'] and not recorded['double']:
            kind = 'limb' if recorded['with_limb'] else 'joint'
            options = {'size': int(size), 'sigma': float(recorded['sigma']), 'kind': kind}
            volume = render(recorded['keypoint'], recorded['score'], **options)
            np.testing.assert_allclose(volume, recorded['out'], rtol=0, atol=TOLERANCE[kind], err_msg=f'case {case}')
            drawn += 1
    assert drawn >= 19


def assert_equals_oracle(render, keypoint: np.ndarray, score: np.ndarray, kind: str, sigma=SIGMA, size=SIZE) -> None:
    options = {'size': size, 'sigma': sigma, 'kind': kind}
    volume, expected = render(keypoint, score, **options), oracle(keypoint, score, **options)
    # float32 rounding of coordinates has an effect proportional to 1 / sigma.
    np.testing.assert_allclose(volume, expected, rtol=0, atol=TOLERANCE[kind] * max(1, SIGMA / sigma))
    if sigma == SIGMA and kind != 'limb':
        # The windows must agree exactly.
        joints = keypoint.shape[2]
        np.testing.assert_array_equal(volume[:, :joints] == 0, expected[:, :joints] == 0)


def assert_windows_are_those_of_the_oracle(render, sigma: float) -> None:
    keypoint, options = edges_of_windows(sigma), {'size': SIZE, 'sigma': sigma, 'kind': 'joint'}
    score = np.ones(keypoint.shape[:-1], np.float32)
    np.testing.assert_array_equal(render(keypoint, score, **options) > 0, oracle(keypoint, score, **options) > 0)


def assert_invalid_arguments_are_refused(renderer, keypoint, score) -> None:
    for options in ({'size': 0}, {'sigma': 0.0}, {'sigma': float('nan')}, {'kind': 'bones'}):
        with pytest.raises(ValueError, match=f'{next(iter(options))} is'):
            renderer(**options)
    for wrong in ((keypoint[0], score[0]), (keypoint, score[:1]), (keypoint[..., :1], score)):
        with pytest.raises(ValueError, match=r'expected \(N,M,T,V,2\)'):
            renderer()(*wrong)
    with pytest.raises(ValueError, match='no skeleton with 16 joints'):
        renderer(kind='limb')(keypoint[:, :, :, :16], score[..., :16])


def edges_of_windows(sigma: float) -> np.ndarray:
    """keypoint (1,T,17,2) within two float32 steps of each window edge, where rounding decides."""
    edges = (np.arange(-3, SIZE + 4)[:, None] + np.array([-3, 3]) * sigma).ravel().astype(np.float32)
    x = np.concatenate([edges + np.spacing(edges) * step for step in range(-2, 3)])
    x = np.resize(x, (len(x) // 17 + 1, 17))
    return np.stack([x, x[:, ::-1]], axis=-1)[None]


@st.composite
def _edges(draw):
    """Coordinates with a window edge at an integer pixel, or one float32 step off."""
    edge = np.float32(draw(st.integers(-3, SIZE + 3)) + draw(st.sampled_from([-3, 3])) * SIGMA)
    return float(draw(st.sampled_from([edge, np.nextafter(edge, np.float32(99)), np.nextafter(edge, np.float32(-99))])))


_coordinates = st.one_of(
    st.floats(-8, SIZE + 8, width=32), _edges(), st.sampled_from([0.0, -1.8, -2.8, SIZE - 1.0, SIZE + 1.8])
)
_scores = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, float(np.float32(0.001)), 0.0009, 1.0]))


@st.composite
def persons(draw):
    """keypoint (3,1,17,2) and score (3,1,17), often at window edges, sometimes close together."""
    keypoint, score = (
        draw(hnp.arrays(np.float32, shape, elements=numbers.map(np.float32).map(float), fill=st.nothing()))
        for shape, numbers in (((3, 1, 17, 2), _coordinates), ((3, 1, 17), _scores))
    )
    if draw(st.booleans()):  # overlapping persons, and limbs around a pixel long
        keypoint = keypoint[:1, :, :1] + (keypoint - SIZE / 2) / SIZE
    return keypoint, score
