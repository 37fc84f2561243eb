"""Building blocks of the TensorFlow script: options, model, optimizer, training step, prediction."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from easydict import EasyDict

from lib.data.batches import pad_batch, prefetch
from lib.data.clips import Clips
from lib.errors import UserError, check_values
from lib.evaluation import scores_of
from lib.log import Log
from lib.models import MODELS
from lib.plots import clip_image
from lib.recipe import Recipe, cpu_has_bf16, refuse_precision, step_seed
from lib.tensorflow import checkpoint, distributed
from lib.tensorflow.heatmap import HeatmapRenderer


@dataclass(kw_only=True)
class TrainOptions(Recipe):
    """Section `train`: the recipe. compile: whether to compile the steps with XLA; they are always tf.functions."""

    def set_precision(self) -> None:
        """Sets the precision of float32 matrix products in this process, which TensorFlow computes in TF32 by default.

        Raises UserError if a device does not support the precision.
        """
        tf.config.experimental.enable_tensor_float_32_execution(self.precision == 'tf32')
        if self.precision == 'fp32':
            return
        gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices('GPU')]
        lacking = [gpu.get('device_name', 'the GPU') for gpu in gpus if gpu.get('compute_capability', (0, 0)) < (8, 0)]
        if not gpus and not (self.precision == 'bf16' and cpu_has_bf16()):
            lacking = ['this CPU']
        if lacking:
            refuse_precision(self.precision, lacking[0])


def make_model(config: EasyDict, num_joints: int, world: distributed.World) -> tuple[HeatmapRenderer, keras.Model]:
    """Creates the renderer and the model of config.script on all devices of `world`.

    num_joints: joints per person. Raises UserError, naming the keys, if the model does not fit the input.
    """
    if 'heatmap' not in config:
        raise UserError(f'ViViT needs heatmaps, but data.input is {config.data.input}: set data.input to heatmap.')
    keras.utils.set_random_seed(config.train.seed % 2**32)
    # The dtype policy is global; a model keeps the one it was created with.
    keras.config.set_dtype_policy('mixed_bfloat16' if config.train.precision == 'bf16' else 'float32')
    with world.strategy.scope():
        model, render = MODELS[config.script].load_classifier()(**config.model), HeatmapRenderer(**config.heatmap)
    num_maps = render.num_maps(num_joints)
    model.check_input(clip_len=config.data.clip_len, size=config.heatmap.size, num_joints=num_maps)
    return render, model


def make_optimizer(model: keras.Model, *, lr: float, weight_decay: float) -> keras.optimizers.Optimizer:
    """Section `optimizer`: Adam, or AdamW if weight_decay is above 0. Raises UserError if it is negative."""
    rules = {'lr': (lr >= 0, '0 or more'), 'weight_decay': (weight_decay >= 0, '0 or more')}
    check_values('optimizer', {'lr': lr, 'weight_decay': weight_decay}, rules)
    with model.distribute_strategy.scope():
        if weight_decay:
            optimizer = keras.optimizers.AdamW(lr, weight_decay, name='adam')  # `name` is part of the variable names
        else:
            optimizer = keras.optimizers.Adam(lr, name='adam')
        optimizer.build(model.trainable_variables)
    return optimizer


# Functions of a distributed batch (World.distribute), see make_train_step and make_predict_step.
TrainStep = Callable[[Any], tf.Tensor]
PredictStep = Callable[[Any], tf.Tensor]


def make_train_step(
    render: HeatmapRenderer,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    options: TrainOptions,
    world: distributed.World,
) -> TrainStep:
    """Returns a function that trains on a distributed batch -> [mean loss, correct clips] of the whole batch."""
    strategy, trained = world.strategy, model.trainable_variables
    generators = [variable for variable in model.non_trainable_variables if variable.name == 'seed_generator_state']

    def gradients_of_part(part: dict[str, tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(render(part['keypoint'], part['score']), training=True), tf.float32)
            target = tf.one_hot(part['label'], logits.shape[-1])
            smoothed = target * (1 - options.label_smoothing) + options.label_smoothing / logits.shape[-1]
            loss = tf.reduce_sum(part['weight'] * tf.nn.softmax_cross_entropy_with_logits(smoothed, logits))
        correct = (tf.argmax(logits, axis=-1) == part['label']) & (part['weight'] > 0)
        return tf.stack([loss, tf.reduce_sum(tf.cast(correct, tf.float32))]), tape.gradient(loss, trained)

    # autograph=False: not needed here, and a third of the startup time.
    @tf.function(jit_compile=options.compile, autograph=False)
    def gradients_of_share(share: dict[str, tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        share = dict(share)
        seed = share.pop('seed')
        for i, state in enumerate(generators):
            # Each generator counts up from its state, by less than 2**16 per step.
            state.assign(tf.stack([seed[0], seed[1] + (i << 16)]))
        if options.accumulation_steps == 1:
            return gradients_of_part(share)
        count = options.accumulation_steps
        parts = {name: tf.reshape(tensor, (count, -1, *tensor.shape[1:])) for name, tensor in share.items()}

        def add_part(i: tf.Tensor, sums: tf.Tensor, gradients: list[tf.Tensor]) -> tuple:
            part_sums, part_gradients = gradients_of_part({name: tensor[i] for name, tensor in parts.items()})
            return i + 1, sums + part_sums, [a + b for a, b in zip(gradients, part_gradients, strict=True)]

        zeros = [tf.zeros(variable.shape) for variable in trained]
        # A graph loop: TensorFlow would run the micro-batches of an unrolled loop in parallel.
        _, sums, gradients = tf.while_loop(
            lambda i, *_: i < count, add_part, (0, tf.zeros(2), zeros), parallel_iterations=1
        )
        return sums, gradients

    def step(share: dict[str, tf.Tensor]) -> tf.Tensor:
        sums, gradients = gradients_of_share(share)
        if options.max_grad_norm is not None:
            total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            scale = options.max_grad_norm / tf.maximum(tf.linalg.global_norm(total), options.max_grad_norm)
            gradients = [gradient * scale for gradient in gradients]
        optimizer.apply(gradients, trained)  # sums over replicas
        return sums

    # XLA does not support collectives: with several devices only the gradients are compiled.
    @tf.function(jit_compile=options.compile and world.num_replicas == 1, autograph=False)
    def train(shares: Any) -> tf.Tensor:
        return strategy.reduce('SUM', strategy.run(step, args=(shares,)), axis=None)

    return train


def make_predict_step(
    render: HeatmapRenderer, model: keras.Model, options: TrainOptions, world: distributed.World
) -> PredictStep:
    """Returns a function of keypoints and scores in a distributed batch -> logits (N, K) float32, in batch order.

    N includes the padding of all shares, which comes last.
    """
    strategy = world.strategy

    @tf.function(jit_compile=options.compile, autograph=False)
    def logits_of_share(share: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.cast(model(render(share['keypoint'], share['score']), training=False), tf.float32)

    def step(share: dict[str, tf.Tensor]) -> tf.Tensor:
        return logits_of_share(share)  # passed to strategy.run directly, an XLA function mixes up the devices

    @tf.function(autograph=False)
    def predict(shares: Any) -> tf.Tensor:
        logits = strategy.gather(strategy.run(step, args=(shares,)), axis=0)
        # Clip i of a batch is clip i // num_replicas of replica i % num_replicas.
        logits = tf.transpose(tf.reshape(logits, (world.num_replicas, -1, model.num_classes)), (1, 0, 2))
        return tf.reshape(logits, (-1, model.num_classes))

    return predict


def load_batches(
    clips: Clips, epoch: int, options: TrainOptions, world: distributed.World, first: int = 0
) -> Iterator[tuple[int, list[dict[str, np.ndarray]]]]:
    """Yields the steps of an epoch from `first` on, with one share of each batch per replica of this worker.

    clips: `Clips.for_rank` among all replicas. A share adds 'weight' (n,) float32, the weight of each clip in the mean
    over the batch, and 'seed' (2,) int64 of the dropout. Shares are padded to a fixed size with clips of weight 0.
    Threads prepare the next batches.
    """
    share_size = math.ceil(clips.batch_size / world.num_replicas)
    shares = {replica: clips.for_rank(replica, world.num_replicas) for replica in world.local_replicas}

    def load_share(replica: int, b: int) -> dict[str, np.ndarray]:
        share = shares[replica][epoch, b]
        weight = np.full(len(share['label']), 1 / clips.batch_sizes[b], np.float32)
        seed = np.array(divmod(step_seed(options.seed, epoch, b, replica), 2**32), np.int64) & (2**31 - 1)
        return pad_batch(share | {'weight': weight}, share_size) | {'seed': seed}

    def load(b: int) -> tuple[int, list[dict[str, np.ndarray]]]:
        return b, [load_share(replica, b) for replica in shares]

    return prefetch(load, range(first, clips.num_steps), options.num_workers)


def predict(
    predict_step: PredictStep,
    clips: Clips,
    options: TrainOptions,
    world: distributed.World,
    after_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Predicts logits (N, views, K) float32 for a split, in its order; every worker returns all of them.

    after_batch: called after each batch.
    """
    logits = []
    for _, shares in load_batches(clips, 0, options, world):
        inputs = [{name: share[name] for name in ('keypoint', 'score')} for share in shares]
        if clips.num_views == 1:
            inputs = [{name: array[:, None] for name, array in share.items()} for share in inputs]
        # One view at a time, to save memory.
        views = [
            predict_step(world.distribute([{name: array[:, k] for name, array in share.items()} for share in inputs]))
            for k in range(clips.num_views)
        ]
        logits.append(tf.stack(views, axis=1)[: clips.batch_size])  # without padding
        after_batch()
    return tf.concat(logits, axis=0).numpy()[: clips.num_clips]


def describe(model: keras.Model) -> str:
    """Class and number of parameters, for the log."""
    return f'{type(model).__name__}, {count_parameters(model)[0]:,} parameters'


def log_heatmaps(log: Log, render: HeatmapRenderer, clips: Clips) -> None:
    """Logs an image of the first clip's heatmaps."""
    log.image(*clip_image(clips, render.kind, partial(draw, render)))


def draw(render: HeatmapRenderer, keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Renders a NumPy batch to a NumPy volume (N,T,C,H,W)."""
    return np.moveaxis(render(keypoint, score).numpy(), -1, 2)


def load_model(
    config: EasyDict,
    num_joints: int,
    weights: Mapping[str, np.ndarray],
    path: Path,
    world: distributed.World,
) -> tuple[HeatmapRenderer, keras.Model]:
    """Creates renderer and model and loads `weights`, those of the checkpoint `path`, for evaluation.

    Raises UserError if a device does not support the precision, or weights or joints do not fit the model.
    """
    TrainOptions(**config.train).set_precision()
    render, model = make_model(config, num_joints, world)
    checkpoint.assign(model.variables, weights, path)
    return render, model


def classify(
    render: HeatmapRenderer, model: keras.Model, config: EasyDict, clips: Clips, world: distributed.World
) -> np.ndarray:
    """Predicts scores (N, K) for a split (see lib.evaluation.scores_of)."""
    options = TrainOptions(**config.train)
    clips = clips.for_rank(0, world.num_replicas)
    return scores_of(predict(make_predict_step(render, model, options, world), clips, options, world), clips)


def count_parameters(model: keras.Model) -> tuple[int, int]:
    """Numbers of parameters and of trained parameters."""
    return model.count_params(), sum(math.prod(variable.shape) for variable in model.trainable_variables)
