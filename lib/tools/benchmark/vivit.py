"""Full-size training steps of ViViT from keypoints, against stock Keras layers and `fit`."""

import argparse
from collections.abc import Callable

import numpy as np

from lib.tools.benchmark.common import JOINTS, SIGMA, SIZE, positive, summary, time_in_turn, walking_skeletons

VIVIT_FRAMES = 56


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--batch', type=positive, default=4, help='clips per batch (default: %(default)s)')
    parser.add_argument('--steps', type=positive, default=3, help='steps of a timed run (default: %(default)s)')
    parser.add_argument('--rounds', type=positive, default=7, help='timed runs of each (default: %(default)s)')


def run(args: argparse.Namespace) -> dict:
    """Clips/s of training steps of row vivit.yaml, drawing included, with dropout and without.

    stock: the same architecture made of Keras' own layers and trained by `fit`, on volumes that are there already.
    """
    import keras
    import tensorflow as tf

    from lib.tensorflow import distributed, engine
    from lib.tensorflow.heatmap import HeatmapRenderer
    from lib.tensorflow.vivit import ViViT

    frames = VIVIT_FRAMES
    keypoint, score = walking_skeletons(args.batch, 2, frames)
    label = np.arange(args.batch, dtype=np.int64) % 60
    render = HeatmapRenderer(size=SIZE, sigma=SIGMA)
    volume = np.tile(render(keypoint, score).numpy(), (args.steps, 1, 1, 1, 1))

    world = distributed.World(tf.distribute.get_strategy())
    weight, seed = np.full(args.batch, 1 / args.batch, np.float32), engine.step_seed(0, 0, 0, 0)
    batch = {'keypoint': keypoint, 'score': score, 'label': label, 'weight': weight, 'seed': seed}
    batch = world.distribute([batch])

    def ours(dropout: float) -> Callable[[], None]:
        model = ViViT(attn_drop_rate=dropout)
        optimizer = engine.make_optimizer(model, lr=1e-4, weight_decay=0.0)
        train = engine.make_train_step(render, model, optimizer, engine.TrainOptions(epochs=1), world)

        def steps() -> None:
            losses = [train(batch)[0] for _ in range(args.steps)]
            tf.stack(losses).numpy()

        return steps

    def stock(dropout: float) -> Callable[[], None]:
        model = stock_vivit(dropout)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=False)  # XLA is slower on a CPU
        labels = np.tile(label, args.steps)
        return lambda: model.fit(volume, labels, batch_size=args.batch, verbose=0)

    candidates = {'ours': ours(0.1), 'stock': stock(0.1), 'ours, no drop': ours(0.0), 'stock, no drop': stock(0.0)}
    seconds = time_in_turn(candidates, args.rounds, lambda: None)
    rates = {name: args.steps * args.batch / np.array(times) for name, times in seconds.items()}
    return {
        'title': f'vivit: training steps on volumes {(args.batch, frames, SIZE, SIZE, JOINTS)}',
        'unit': 'clips/s',
        'setting': {
            'device': world.description,
            'tensorflow': tf.__version__,
            'keras': keras.__version__,
            'steps': args.steps,
            'rounds': args.rounds,
        },
        'rates': {name: summary(rate) for name, rate in rates.items()},
        'ratios': {
            'time ours/stock': summary(rates['stock'] / rates['ours']),
            'without dropout': summary(rates['stock, no drop'] / rates['ours, no drop']),
        },
    }


def stock_vivit(dropout: float):
    """ViViT's Model 1 as vivit.yaml has it, of Keras' own layers; the positions, which Keras lacks, are ours."""
    import keras

    from lib.tensorflow.vivit import PositionEmbedding

    layers = keras.layers
    inputs = keras.Input((VIVIT_FRAMES, SIZE, SIZE, JOINTS))
    tokens = layers.Reshape((343, 256))(layers.Conv3D(256, kernel_size=8, strides=8)(inputs))
    tokens = PositionEmbedding()(tokens)
    for _ in range(8):
        normed = layers.LayerNormalization(epsilon=1e-6)(tokens)
        tokens = tokens + layers.MultiHeadAttention(8, 32, dropout=dropout)(normed, normed)
        hidden = layers.Dense(1024, activation='gelu')(layers.LayerNormalization(epsilon=1e-6)(tokens))
        tokens = tokens + layers.Dense(256)(hidden)
    tokens = layers.LayerNormalization(epsilon=1e-6)(tokens)
    return keras.Model(inputs, layers.Dense(60)(layers.GlobalAveragePooling1D()(tokens)))
