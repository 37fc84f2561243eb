"""Full-size training steps of ViViT from keypoints, against stock Keras layers and `fit`."""

import argparse
import multiprocessing
from collections.abc import Callable

import numpy as np

from lib.tools.benchmark.common import (
    JOINTS,
    MATRIX,
    SIGMA,
    SIZE,
    peak_resident_bytes,
    positive,
    summary,
    time_in_turn,
    walking_skeletons,
)

FRAMES = 56


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--batch', type=positive, default=4, help='clips per batch (default: %(default)s)')
    parser.add_argument('--steps', type=positive, default=3, help='steps of a timed run (default: %(default)s)')
    parser.add_argument('--rounds', type=positive, default=7, help='timed runs of each (default: %(default)s)')


def run(args: argparse.Namespace) -> dict:
    """Clips/s of training steps of row vivit.yaml, drawing included, with dropout and without, and their peak memory.

    stock: the same architecture made of Keras' own layers and trained by `fit`, on volumes that are there already.
    The peak is that of a large matrix product.
    """
    # Each in a process of its own, and first: what this one has allocated would count.
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name, args)) for name in ('ours', 'stock')}
    import keras
    import tensorflow as tf

    from lib.tensorflow import distributed

    matrix = tf.random.normal((MATRIX, MATRIX))
    candidates = {
        'ours': ours(0.1, args),
        'stock': stock(0.1, args),
        'ours, no drop': ours(0.0, args),
        'stock, no drop': stock(0.0, args),
        'product': lambda: tf.matmul(matrix, matrix).numpy(),
    }
    seconds = {name: np.array(times) for name, times in time_in_turn(candidates, args.rounds, lambda: None).items()}
    peak = 2 * MATRIX**3 / seconds.pop('product')
    rates = {name: args.steps * args.batch / times for name, times in seconds.items()}
    return {
        'title': f'vivit: training steps on volumes {(args.batch, FRAMES, SIZE, SIZE, JOINTS)}',
        'unit': 'clips/s',
        'setting': {
            'device': distributed.World(tf.distribute.get_strategy()).description,
            'tensorflow': tf.__version__,
            'keras': keras.__version__,
            'steps': args.steps,
            'peak GFLOP/s': round(float(np.median(peak)) / 1e9),
            'rounds': args.rounds,
        },
        'rates': {name: summary(rate) for name, rate in rates.items()},
        'ratios': {
            'time ours/stock': summary(rates['stock'] / rates['ours']),
            'without dropout': summary(rates['stock, no drop'] / rates['ours, no drop']),
            'memory ours/stock': summary(np.array([memory['ours'] / max(memory['stock'], 1)])),
            **{f'{name}/peak': summary(flops_per_clip() * rate / peak) for name, rate in rates.items()},
        },
        'memory': {name: summary(np.array([size / 1e6])) for name, size in memory.items()},
    }


def ours(dropout: float, args: argparse.Namespace) -> Callable[[], None]:
    """A function that trains the row's model by `args.steps` steps, as the script does."""
    import tensorflow as tf

    from lib.tensorflow import distributed, training
    from lib.tensorflow.heatmap import HeatmapRenderer
    from lib.tensorflow.vivit import ViViT

    world, model = distributed.World(tf.distribute.get_strategy()), ViViT(attn_drop_rate=dropout)
    optimizer = training.make_optimizer(model, lr=1e-4, weight_decay=0.0)
    render = HeatmapRenderer(size=SIZE, sigma=SIGMA)
    train = training.make_train_step(render, model, optimizer, training.TrainOptions(epochs=1), world)
    keypoint, score = walking_skeletons(args.batch, 2, FRAMES)
    batch = {
        'keypoint': keypoint,
        'score': score,
        'label': np.arange(args.batch, dtype=np.int64) % 60,
        'weight': np.full(args.batch, 1 / args.batch, np.float32),
        'seed': np.zeros(2, np.int64),
    }
    batch = world.distribute([batch])

    def steps() -> None:
        losses = [train(batch)[0] for _ in range(args.steps)]
        tf.stack(losses).numpy()

    return steps


def stock(dropout: float, args: argparse.Namespace) -> Callable[[], None]:
    """The same with Keras' own layers and `fit`."""
    import keras

    from lib.tensorflow.heatmap import HeatmapRenderer

    model = stock_vivit(dropout)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=False)  # XLA is slower on a CPU
    volume = HeatmapRenderer(size=SIZE, sigma=SIGMA)(*walking_skeletons(args.batch, 2, FRAMES)).numpy()
    volumes, labels = (np.concatenate([part] * args.steps) for part in (volume, np.arange(args.batch) % 60))
    return lambda: model.fit(volumes, labels, batch_size=args.batch, verbose=0)


def flops_per_clip() -> int:
    """Of a training step: forward, and twice as much backward, but for the embedding, whose input needs no gradient."""
    tokens, dim, depth = 343, 256, 8
    embedding = 2 * tokens * 8**3 * JOINTS * dim
    attention = 2 * tokens * 4 * dim**2 + 2 * 2 * tokens**2 * dim
    mlp = 2 * tokens * 2 * dim * 4 * dim
    return 2 * embedding + 3 * depth * (attention + mlp)


def peak_memory(name: str, args: argparse.Namespace) -> int:
    """Bytes that two runs of one step take at their peak, model included. 0 where the system does not tell."""
    import tensorflow  # noqa: F401  what is imported does not count

    before = peak_resident_bytes()
    step = {'ours': ours, 'stock': stock}[name](0.1, argparse.Namespace(batch=args.batch, steps=1))
    step(), step()
    return peak_resident_bytes() - before


def stock_vivit(dropout: float):
    """ViViT's Model 1 as vivit.yaml has it, of Keras' own layers; the positions, which Keras lacks, are ours."""
    import keras

    from lib.tensorflow.vivit import PositionEmbedding

    layers = keras.layers
    inputs = keras.Input((FRAMES, SIZE, SIZE, JOINTS))
    tokens = layers.Reshape((343, 256))(layers.Conv3D(256, kernel_size=8, strides=8)(inputs))
    tokens = PositionEmbedding()(tokens)
    for _ in range(8):
        normed = layers.LayerNormalization(epsilon=1e-6)(tokens)
        tokens = tokens + layers.MultiHeadAttention(8, 32, dropout=dropout)(normed, normed)
        hidden = layers.Dense(1024, activation='gelu')(layers.LayerNormalization(epsilon=1e-6)(tokens))
        tokens = tokens + layers.Dense(256)(hidden)
    tokens = layers.LayerNormalization(epsilon=1e-6)(tokens)
    return keras.Model(inputs, layers.Dense(60)(layers.GlobalAveragePooling1D()(tokens)))
