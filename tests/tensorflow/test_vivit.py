import itertools
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from lib.config import read_config
from lib.tensorflow.vivit import Attention, Block, BlockOptions, ViViT

ACTION = Path(__file__).parents[2] / 'configs' / 'action'
KINDS = ['joint', 'factorised_encoder', 'factorised_attention', 'factorised_dot']
SMALL = {
    'clip_len': 6, 'size': 4, 'num_joints': 3, 'tubelet_size': (2, 2, 2), 'dim_feat': 8, 'depth': 2,
    'temporal_depth': 2, 'num_heads': 2, 'num_classes': 5,
}  # fmt: skip
STEPS, PLACES, WIDTH = 3, 4, 8  # steps, places and width of the small model's tokens
GRID = np.array(list(itertools.product(range(STEPS), range(PLACES))))  # step and place of each token, in order
REACHED = {
    'all': np.ones((12, 12), bool),
    'time': GRID[:, None, 1] == GRID[:, 1],
    'space': GRID[:, None, 0] == GRID[:, 0],
}


def randomise(layer, seed: int = 0):
    """Moves every weight away from its initial value, so that no zero hides another weight."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        noise = rng.normal(scale=0.3, size=variable.shape)
        variable.assign(1 + noise if variable.path.endswith('gamma') else noise)
    return layer


def small_model(**arguments) -> ViViT:
    return randomise(ViViT(**SMALL | arguments))


def volumes(n: int = 2) -> np.ndarray:
    return np.random.default_rng(1).random((n, 6, 4, 4, 3), np.float32)


def some_tokens(n: int = 2) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(n, STEPS, PLACES, WIDTH)).astype(np.float32)


def built(layer, width: int = WIDTH):
    layer.build((None, STEPS, PLACES, width))
    return randomise(layer)


def a_block(reaches: tuple[str, ...], drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> Block:
    return built(Block(reaches, BlockOptions(2, 4, 32, drop_rate), drop_path_rate))


def weights_of(layer) -> dict[str, np.ndarray]:
    """Weights as float64, by their path below the layer."""
    variables = layer.trainable_variables
    return {v.path.removeprefix(f'{layer.path}/'): v.numpy().astype(np.float64) for v in variables}


# The same models in plain NumPy: tokens (N,L,D) in the order of GRID, attention with masks.


def under(weights: dict, name: str) -> dict:
    return {path.removeprefix(f'{name}/'): array for path, array in weights.items() if path.startswith(f'{name}/')}


def dense(weights: dict, x: np.ndarray) -> np.ndarray:
    return x @ weights['kernel'] + weights['bias']


def norm(weights: dict, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights['gamma'] + weights['beta']


def attention(weights: dict, x: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """masks: for each head, whether a token (row) attends to another one (column)."""
    query, key, value = (dense(under(weights, name), x) for name in ('query', 'key', 'value'))
    dim = query.shape[-1] // len(masks)
    heads = []
    for h, mask in enumerate(masks):
        q, k, v = (y[..., h * dim : (h + 1) * dim] for y in (query, key, value))
        shares = np.where(mask, np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(dim)), 0)
        heads.append(shares / shares.sum(-1, keepdims=True) @ v)
    return dense(under(weights, 'projection'), np.concatenate(heads, -1))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def mlp(weights: dict, x: np.ndarray, activation: str = 'gelu', activate_output: bool = False) -> np.ndarray:
    activate = {'relu': lambda y: np.maximum(y, 0), 'gelu': gelu}[activation]
    x = dense(under(weights, 'contract'), activate(dense(under(weights, 'expand'), x)))
    return activate(x) if activate_output else x


def block(weights: dict, x: np.ndarray, masks: dict[str, list[np.ndarray]], **of_mlp) -> np.ndarray:
    """masks: {reach of an attention layer: masks of its heads}."""
    for reach, of_heads in masks.items():
        x = x + attention(under(weights, f'{reach}_attention'), norm(under(weights, f'{reach}_norm'), x), of_heads)
    return x + mlp(under(weights, 'mlp'), norm(under(weights, 'mlp_norm'), x), **of_mlp)


def encoder(weights: dict, x: np.ndarray, masks: dict, depth: int = 2, final_norm: bool = True, **of_mlp) -> np.ndarray:
    for i in range(depth):
        x = block(under(weights, f'block_{i}'), x, masks, **of_mlp)
    return norm(under(weights, 'norm'), x) if final_norm else x


def tubelet_tokens(weights: dict, volume: np.ndarray, tubelet: tuple[int, int, int] = (2, 2, 2)) -> np.ndarray:
    projection = under(weights, 'embedding/projection')
    frames, height, width = tubelet
    cut = [
        volume[:, t : t + frames, h : h + height, w : w + width].reshape(len(volume), -1)
        for t, h, w in itertools.product(*(range(0, *ends) for ends in zip(volume.shape[1:4], tubelet, strict=True)))
    ]
    return np.stack(cut, 1) @ projection['kernel'].reshape(len(cut[0][0]), -1) + projection['bias']


def original_logits(weights: dict, volume: np.ndarray, model: dict) -> np.ndarray:
    """Logits of a joint space-time model whose MLPs also activate their output. model: section `model` of a config."""
    x = tubelet_tokens(weights, volume, model['tubelet_size'])
    x = x + weights['positions/embedding'].reshape(x.shape[1:])
    masks = [np.ones((x.shape[1],) * 2, bool)] * model['num_heads']
    options = {key: model[key] for key in ('depth', 'activation', 'final_norm') if key in model}
    x = encoder(under(weights, 'encoder'), x, {'all': masks}, activate_output=True, **options)
    return dense(under(weights, 'head'), x.mean(1))


MASKS = {
    'joint': {'all': [REACHED['all']] * 2},
    'factorised_attention': {'time': [REACHED['time']] * 2, 'space': [REACHED['space']] * 2},
    'factorised_dot': {'split': [REACHED['time'], REACHED['space']]},
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('head_dim', [None, 3])
def test_logits_equal_plain_numpy(kind, head_dim):
    model = small_model(kind=kind, head_dim=head_dim)
    weights, volume = weights_of(model), volumes()
    x = tubelet_tokens(weights, volume) + weights['positions/embedding'].reshape(-1, WIDTH)
    if kind == 'factorised_encoder':
        x = encoder(under(weights, 'spatial_encoder'), x, {'space': [REACHED['space']] * 2})
        codes = np.stack([x[:, GRID[:, 0] == t].mean(1) for t in range(STEPS)], 1)
        np.testing.assert_allclose(model.spatial_codes(volume), codes, atol=1e-5)
        codes = codes + weights['code_positions/embedding'].reshape(-1, WIDTH)
        x = encoder(under(weights, 'temporal_encoder'), codes, {'time': [np.ones((STEPS, STEPS), bool)] * 2})
    else:
        x = encoder(under(weights, 'encoder'), x, MASKS[kind])
    np.testing.assert_allclose(model(volume), dense(under(weights, 'head'), x.mean(1)), atol=1e-5)


def test_logits_of_the_original_model_equal_plain_numpy():
    """With ReLU after both layers of an MLP and no final norm."""
    options = {'activation': 'relu', 'activate_output': True, 'final_norm': False}
    model = small_model(**options)
    expected = original_logits(weights_of(model), volumes(), SMALL | options)
    np.testing.assert_allclose(model(volumes()), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('path', sorted(ACTION.glob('vivit*_original.yaml')), ids=lambda path: path.stem)
def test_initial_logits_and_loss_of_the_original_configs_equal_plain_numpy(path):
    """At full width and depth, for clips of 16 frames of 16x16 pixels."""
    keras.utils.set_random_seed(0)
    options = read_config(path)['model'] | {'clip_len': 16, 'size': 16}
    model, volume = ViViT(**options), np.random.default_rng(1).random((2, 16, 16, 16, 17), np.float32)
    logits = original_logits(weights_of(model), volume, options)
    assert logits.std() > 0.1  # Keras's initial head is not zero
    np.testing.assert_allclose(model(volume), logits, atol=1e-5)
    label = np.array([3, 59])
    loss = keras.losses.sparse_categorical_crossentropy(label, model(volume), from_logits=True)
    np.testing.assert_allclose(loss, np.log(np.exp(logits).sum(1)) - logits[[0, 1], label], atol=1e-5)


def test_mlp_dropout_follows_both_dense_layers():
    block = built(Block(('all',), BlockOptions(2, 4, 32, mlp_drop_rate=0.5)))
    block.mlp.expand.kernel.assign(np.zeros((WIDTH, 32)))
    block.mlp.expand.bias.assign(np.full(32, 10.0))  # whose GELU is 10
    block.mlp.contract.kernel.assign(np.full((32, WIDTH), 1 / 32))
    block.mlp.contract.bias.assign(np.zeros(WIDTH))
    trained = block.mlp(np.repeat(some_tokens(), 50, axis=0), training=True).numpy()
    np.testing.assert_allclose(block.mlp(some_tokens()), 10, atol=1e-4)
    assert (trained == 0).mean() == pytest.approx(0.5, abs=0.03)  # after the second
    kept = np.unique(trained[trained > 0].round(3))
    assert len(kept) > 5  # sums of the values kept after the first
    np.testing.assert_allclose(kept / (2 * 2 * 10 / 32) % 1 % 0.999, 0, atol=0.01)


def test_keras_initial_weights_are_those_of_keras_layers():
    model = ViViT(depth=1, head_dim=48, init='keras')
    attention = keras.layers.MultiHeadAttention(8, 48)
    attention.build(*[(None, 343, 256)] * 2)
    table = keras.layers.Embedding(343, 256)
    table.build(None)
    block = model.encoder.blocks[0]
    for ours, theirs in (
        (block.attentions[0].query.kernel, attention.query_dense.kernel),
        (block.attentions[0].value.kernel, attention.value_dense.kernel),
        (block.attentions[0].projection.kernel, attention.output_dense.kernel),
        (model.positions.embedding, table.embeddings),
    ):
        ours, theirs = ours.numpy(), theirs.numpy()
        assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
        assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.02)
    assert model.head.kernel.numpy().any()


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_reach_every_parameter(kind):
    model = small_model(kind=kind)
    with tf.GradientTape() as tape:
        logits = model(volumes(4), training=True)
        loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(np.arange(4), logits, from_logits=True))
    for variable, gradient in zip(
        model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True
    ):
        # Softmax ignores a common offset of all keys: the gradient of their bias is only rounding.
        assert np.abs(gradient).max() > 1e-4 or variable.path.endswith('key/bias'), variable.path


def test_a_spatial_code_depends_on_its_own_frames():
    model = small_model(kind='factorised_encoder', clip_len=56, tubelet_size=(8, 2, 2))
    volume = np.random.default_rng(3).random((2, 56, 4, 4, 3), np.float32)
    changed = volume.copy()
    changed[0, 24:32] = changed[0, 31:23:-1]
    differs = (model.spatial_codes(volume).numpy() != model.spatial_codes(changed).numpy()).any(-1)
    assert np.argwhere(differs).tolist() == [[0, 3]]
    assert (model(volume)[0] != model(changed)[0]).numpy().all()  # the temporal blocks depend on it


@pytest.mark.parametrize('kind', ['joint', 'factorised_encoder'])
@pytest.mark.parametrize('key', ['attn_drop_rate', 'drop_path_rate'])
def test_dropout_only_in_training(kind, key):
    rates = {'attn_drop_rate': 0.0, 'drop_path_rate': 0.0}
    plain, model = small_model(kind=kind, **rates), small_model(kind=kind, **rates | {key: 0.5})
    volume = volumes(16)
    np.testing.assert_array_equal(plain(volume, training=True), plain(volume))
    np.testing.assert_array_equal(model(volume), plain(volume))
    np.testing.assert_array_equal(model(volume, training=False), plain(volume))
    trained = model(volume, training=True).numpy()
    assert (trained != model(volume).numpy()).any()
    assert (trained != model(volume, training=True).numpy()).any()


@pytest.mark.parametrize('reach', ['all', 'time', 'space', 'split'])
def test_dropout_acts_on_attention_weights(reach):
    layer = built(Attention(reach, BlockOptions(4, 2, 32, 0.3)))
    layer.value.kernel.assign(np.zeros((WIDTH, WIDTH)))
    layer.value.bias.assign(np.ones(WIDTH))
    layer.projection.kernel.assign(np.eye(WIDTH))
    layer.projection.bias.assign(np.zeros(WIDTH))
    # With zero scores all weights are equal: 1 / tokens reached.
    layer.query.kernel.assign(np.zeros((WIDTH, WIDTH)))
    layer.query.bias.assign(np.zeros(WIDTH))
    tokens = np.repeat(some_tokens(), 500, axis=0)
    np.testing.assert_allclose(layer(tokens), 1, atol=1e-5)
    sums = layer(tokens, training=True).numpy().reshape(-1, 4, 2)  # of the remaining weights of each head
    np.testing.assert_array_equal(sums[..., 0], sums[..., 1])
    np.testing.assert_allclose(sums.mean((0, 2)), 1, atol=0.03)
    reached = np.array({'all': [12] * 4, 'time': [3] * 4, 'space': [4] * 4, 'split': [3, 3, 4, 4]}[reach])
    np.testing.assert_allclose(sums.var((0, 2)), 0.3 / 0.7 / reached, rtol=0.1)


def test_drop_path_drops_residuals_per_clip_and_scales_the_others():
    layer = a_block(('time', 'space'), drop_path_rate=0.6)
    clip = some_tokens(1)

    def with_residuals(scales: tuple[float, ...]) -> np.ndarray:
        tokens = clip
        parts = zip([*layer.attention_norms, layer.mlp_norm], [*layer.attentions, layer.mlp], scales, strict=True)
        for norm_layer, part, scale in parts:
            tokens = tokens + scale * part(norm_layer(tokens))
        return tokens.numpy()

    possible = np.concatenate([with_residuals(scales) for scales in itertools.product([0, 2.5], repeat=3)])
    trained = layer(np.repeat(clip, 400, axis=0), training=True).numpy()
    distance = np.abs(trained[:, None] - possible).max((2, 3, 4))
    assert distance.min(1).max() < 1e-4
    drawn = distance.argmin(1)
    assert set(drawn) == set(range(8))
    for residual in (1, 2, 4):
        assert 0.3 < (drawn & residual > 0).mean() < 0.5


def test_initial_weights():
    for kind in ('factorised_encoder', 'factorised_attention'):
        model = ViViT(kind=kind, depth=1, temporal_depth=1, head_dim=48)
        for variable in model.trainable_variables:
            path, values = variable.path.removeprefix('vivit/'), variable.numpy()
            if path == 'embedding/projection/kernel':
                assert values.shape == (8, 8, 8, 17, 256)
                assert values.std() == pytest.approx((8 * 8 * 8 * 17) ** -0.5, rel=0.01)
                assert np.abs(values).max() <= 2.28 * (8 * 8 * 8 * 17) ** -0.5  # the normal is cut at two sigma
            elif path.endswith('positions/embedding'):
                assert values.std() == pytest.approx(0.02, rel=0.01 if path == 'positions/embedding' else 0.1)
                assert abs(values.mean()) < 0.003
                assert np.abs(values).max() > 0.05  # not cut
            elif path.startswith('head') or path.endswith(('bias', 'beta')):
                assert not values.any(), path
            elif path.endswith('gamma'):
                assert (values == 1).all(), path
            else:
                bound = (6 / sum(values.shape)) ** 0.5
                assert 0.99 * bound < np.abs(values).max() <= bound, path
                assert values.std() == pytest.approx(bound / 3**0.5, rel=0.01), path


@pytest.mark.parametrize('kind', ['joint', *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_compiled_model_equals_eager(kind):
    model, volume = small_model(kind=kind), volumes()
    expected = model(volume)
    of_any_length = tf.function(model, input_signature=[tf.TensorSpec((None, 6, 4, 4, 3), tf.float32)])
    np.testing.assert_allclose(of_any_length(volume), expected, atol=1e-5)
    np.testing.assert_allclose(tf.function(model, jit_compile=True)(volume), expected, atol=1e-5)


@pytest.mark.slow
def test_training_step_compiles():
    model = small_model(drop_path_rate=0.1)

    @tf.function(jit_compile=True)
    def gradients(volume):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(volume, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    first, second = gradients(volumes()), gradients(volumes())
    assert all(np.isfinite(gradient).all() for gradient in first)
    assert any((a != b).numpy().any() for a, b in zip(first, second, strict=True))  # new dropout masks


@pytest.mark.parametrize('shape', [(2, 6, 4, 4, 4), (2, 6, 4, 5, 3), (2, 8, 4, 4, 3), (2, 6, 3, 4, 4), (6, 4, 4, 3)])
def test_invalid_input_is_refused(shape):
    with pytest.raises(ValueError, match=r'\(6, 4, 4, 3\)'):
        ViViT(**SMALL)(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    'arguments',
    [
        *({key: 0} for key in [*SMALL, 'head_dim'] if key != 'tubelet_size'),
        {'mlp_ratio': -1.0},
        {'tubelet_size': (2, 0, 2)},
        {'tubelet_size': (2, 2)},
        {'tubelet_size': (4, 2, 2)},
        {'tubelet_size': (2, 2, 8)},
        {'num_heads': 3},
        {'num_heads': 1, 'kind': 'factorised_dot'},
        {'num_heads': 6, 'kind': 'factorised_dot'},
        {'mlp_ratio': 0.01},
        {'kind': 'factorised'},
        {'activation': 'swish'},
        {'init': 'zeros'},
        {'mlp_drop_rate': 1.0},
        {'attn_drop_rate': 1.0},
        {'drop_path_rate': -0.1},
    ],
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=rf'model\.{next(iter(arguments))}'):
        ViViT(**SMALL | arguments)


def test_drop_path_grows_with_depth():
    model = ViViT(**SMALL | {'kind': 'factorised_encoder', 'depth': 3, 'drop_path_rate': 0.4})
    blocks = model.spatial_encoder.blocks + model.temporal_encoder.blocks
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
