"""What the TensorFlow script is made of: the parts of a run, an epoch of training, evaluation."""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from easydict import EasyDict

from lib.config import Sections
from lib.data.clips import Clips
from lib.errors import UserError
from lib.evaluation import report_evaluation
from lib.log import Log, say_facts
from lib.metrics import classification_metrics
from lib.pictures import draw_clip
from lib.recipe import Recipe, cpu_has_bf16
from lib.run import evaluation_config
from lib.stop import StopSignal
from lib.tensorflow import checkpoint, distributed
from lib.tensorflow.distributed import World
from lib.tensorflow.heatmap import HeatmapRenderer
from lib.training import check_logits, check_losses, make_clips, pad_batch, prefetch


@dataclass(kw_only=True)
class TrainOptions(Recipe):
    """Section `train`: the recipe. compile: whether XLA compiles the steps, which are TensorFlow graphs in any case."""

    def check_device(self) -> None:
        """Raises UserError where a device does not have the precision."""
        if self.precision != 'bf16':
            return
        gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices('GPU')]
        lacking = [gpu.get('device_name', 'the GPU') for gpu in gpus if gpu.get('compute_capability', (0, 0)) < (8, 0)]
        if not gpus and not cpu_has_bf16():
            lacking = ['this CPU']
        if lacking:
            raise UserError(
                f'train.precision is bf16, but {lacking[0]} does not compute in bfloat16 (GPUs do from Ampere on, CPUs '
                'with AVX512-BF16 or AMX): set train.precision to fp32.'
            )


def make_model(
    make: Callable[..., keras.Model], config: EasyDict, num_joints: int, world: World
) -> tuple[HeatmapRenderer, keras.Model]:
    """The renderer, and the model with its first weights, on all devices of `world`.

    num_joints: those of a person in a batch (see Clips). Raises UserError, naming the keys, where the model does not
    suit them.
    """
    if 'heatmap' not in config:
        raise UserError(f'ViViT sees heatmaps alone, but data.input is {config.data.input}: set data.input to heatmap.')
    keras.utils.set_random_seed(config.train.seed % 2**32)
    # The policy is the process's, and a model keeps the one that it is made under.
    keras.config.set_dtype_policy('mixed_bfloat16' if config.train.precision == 'bf16' else 'float32')
    with world.strategy.scope():
        model, render = make(**config.model), HeatmapRenderer(**config.heatmap)
    channels = render.num_channels(num_joints)
    model.check_input(clip_len=config.data.clip_len, size=config.heatmap.size, num_joints=channels)
    return render, model


def make_optimizer(model: keras.Model, *, lr: float, weight_decay: float) -> keras.optimizers.Optimizer:
    """Section `optimizer`: Adam, or with a weight_decay above 0 AdamW; built for the model."""
    if weight_decay < 0:
        raise UserError(f'optimizer.weight_decay is {weight_decay}; it must be 0 or more.')
    with model.distribute_strategy.scope():
        if weight_decay:
            optimizer = keras.optimizers.AdamW(lr, weight_decay, name='adam')  # the name is that of its saved variables
        else:
            optimizer = keras.optimizers.Adam(lr, name='adam')
        optimizer.build(model.trainable_variables)
    return optimizer


# Both take a batch in shares, as World.distribute gives it. See make_train_step and make_predict_step.
TrainStep = Callable[[Any], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
PredictStep = Callable[[Any], tf.Tensor]


def make_train_step(
    render: HeatmapRenderer,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    options: TrainOptions,
    world: World,
) -> TrainStep:
    """A batch in shares (see `batches`) -> (loss, hits, stops) of all of it; the volumes exist inside alone.

    hits: clips that were got right. stops: how many shares had 1 as 'stop' (see `train_one_epoch`).
    """
    strategy, trained = world.strategy, model.trainable_variables
    generators = [variable for variable in model.non_trainable_variables if variable.name == 'seed_generator_state']

    def gradients_of_part(part: dict[str, tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(render(part['keypoint'], part['score']), training=True), tf.float32)
            target = tf.one_hot(part['label'], logits.shape[-1])
            smoothed = target * (1 - options.label_smoothing) + options.label_smoothing / logits.shape[-1]
            loss = tf.reduce_sum(part['weight'] * tf.nn.softmax_cross_entropy_with_logits(smoothed, logits))
        hit = (tf.argmax(logits, axis=-1) == part['label']) & (part['weight'] > 0)
        return tf.stack([loss, tf.reduce_sum(tf.cast(hit, tf.float32))]), tape.gradient(loss, trained)

    # Nothing here needs AutoGraph, which would take a third of the time of a start.
    @tf.function(jit_compile=options.compile, autograph=False)
    def gradients_of_share(share: dict[str, tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        share = dict(share)
        seed = share.pop('seed')
        for i, state in enumerate(generators):
            first = tf.stack([seed[0], seed[1] + (i << 16)])
            state.assign(first)  # and counts on from there, by less than that in a step
        if options.accumulation_steps == 1:
            return gradients_of_part(share)
        count = options.accumulation_steps
        parts = {name: tf.reshape(tensor, (count, -1, *tensor.shape[1:])) for name, tensor in share.items()}

        def add_part(i: tf.Tensor, sums: tf.Tensor, gradients: list[tf.Tensor]) -> tuple:
            more, further = gradients_of_part({name: tensor[i] for name, tensor in parts.items()})
            return i + 1, sums + more, [a + b for a, b in zip(gradients, further, strict=True)]

        zeros = [tf.zeros(variable.shape) for variable in trained]
        # A loop of the graph, for TensorFlow would work on the parts of an unrolled one at the same time.
        _, sums, gradients = tf.while_loop(
            lambda i, *_: i < count, add_part, (0, tf.zeros(2), zeros), parallel_iterations=1
        )
        return sums, gradients

    def step(share: dict[str, tf.Tensor]) -> tf.Tensor:
        share = dict(share)
        stop = share.pop('stop')
        sums, gradients = gradients_of_share(share)
        if options.max_grad_norm is not None:
            total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            scale = options.max_grad_norm / tf.maximum(tf.linalg.global_norm(total), options.max_grad_norm)
            gradients = [gradient * scale for gradient in gradients]
        optimizer.apply(gradients, trained)  # which sums them over the replicas
        return tf.concat([sums, stop], axis=0)

    # XLA knows nothing of exchanges between devices: with several it compiles the gradients alone.
    @tf.function(jit_compile=options.compile and world.num_replicas == 1, autograph=False)
    def train(shares: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return tuple(tf.unstack(strategy.reduce('SUM', strategy.run(step, args=(shares,)), axis=None)))

    return train


def make_predict_step(render: HeatmapRenderer, model: keras.Model, options: TrainOptions, world: World) -> PredictStep:
    """The keypoints and scores of a batch in shares -> logits (N, K) float32 in the order of the batch.

    The N are those of all shares, what fills them up included, which comes last.
    """
    strategy = world.strategy

    @tf.function(jit_compile=options.compile, autograph=False)
    def logits_of_share(share: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.cast(model(render(share['keypoint'], share['score']), training=False), tf.float32)

    def step(share: dict[str, tf.Tensor]) -> tf.Tensor:
        return logits_of_share(share)  # handed to strategy.run as it is, XLA's function would mix up the devices

    @tf.function(autograph=False)
    def predict(shares: Any) -> tf.Tensor:
        logits = strategy.gather(strategy.run(step, args=(shares,)), axis=0)
        # Clip i of a batch is clip i // num_replicas of replica i % num_replicas.
        logits = tf.transpose(tf.reshape(logits, (world.num_replicas, -1, model.num_classes)), (1, 0, 2))
        return tf.reshape(logits, (-1, model.num_classes))

    return predict


def batches(
    clips: Clips, epoch: int, options: TrainOptions, world: World, first: int = 0
) -> Iterator[list[dict[str, np.ndarray]]]:
    """The batches of an epoch from `first` on: of each the shares of this worker's replicas, all of one size.

    To what Clips gives of n clips come 'weight' (n,) float32, the part of a clip in the mean over the whole batch,
    'seed' (2,) int64, which makes the dropout of (train.seed, epoch, step, replica), and 'stop' (1,) float32, 0. A
    share is filled up with clips of weight 0. Threads make the next batches while the last one is at work.
    """
    share_size = math.ceil(clips.batch_size / world.num_replicas)
    shares = {replica: clips.shared(replica, world.num_replicas) for replica in world.local_replicas}

    def load_share(replica: int, b: int) -> dict[str, np.ndarray]:
        share = shares[replica][epoch, b]
        weight = np.full(len(share['label']), 1 / len(clips.batch_clips(epoch, b)), np.float32)
        rest = {'seed': step_seed(options.seed, epoch, b, replica), 'stop': np.zeros(1, np.float32)}
        return pad_batch(share | {'weight': weight}, share_size) | rest

    left = range(first, len(clips))
    return prefetch(lambda b: [load_share(replica, b) for replica in shares], left, options.num_workers)


def step_seed(seed: int, epoch: int, step: int, replica: int) -> np.ndarray:
    """The seed of a step's dropout on a replica, (2,) int64 of 31 bits each."""
    state = np.random.SeedSequence([seed % 2**64, epoch, step, replica]).generate_state(2)
    return (state >> 1).astype(np.int64)


def train_one_epoch(
    train_step: TrainStep,
    optimizer: keras.optimizers.Optimizer,
    lr: float,
    clips: Clips,
    run: checkpoint.Run,
    options: TrainOptions,
    world: World,
    log: Log,
    stop: StopSignal,
) -> dict[str, float]:
    """Trains on every clip of the run's epoch that is left; returns the means over the epoch, {'loss', 'top1'}.

    The devices are waited for only when a line is printed or the run is saved. Raises FloatingPointError, naming step
    and clips, where the loss is not finite, and Stopped, the run saved, where it was asked to stop.
    """
    epoch, steps, done = run.epoch, len(clips), run.step
    counts = clips.batch_sizes
    losses, hits, stops = [], [], tf.zeros(())
    left = batches(clips, epoch, options, world, first=done)
    with log.progress(sum(counts), sum(counts[:done])) as bar:
        for b, shares in enumerate(log.timed(left), done):
            optimizer.learning_rate.assign(lr * options.lr_factor(epoch, b, steps))
            vote = np.full(1, stop.requested, np.float32)
            stops_before = stops
            loss, correct, stops = train_step(world.distribute([share | {'stop': vote} for share in shares]))
            losses.append(loss)
            hits.append(correct)
            bar.update(counts[b])

            # Workers agree by what they have told each other in the step before, which is done by now.
            to_exit = stop.requested if world.is_alone else float(stops_before) > 0
            to_save, to_report = options.saves_after(b), log.is_due(b, steps)
            if to_report or to_save or to_exit:
                values = tf.stack(losses).numpy().tolist()
                check_losses(values, clips, epoch, run.step)
                run.add_steps(values, counts[run.step : b + 1], int(tf.add_n(hits)))
                losses, hits = [], []
            if to_report:
                log.report(bar, **run.means(sum(counts[: b + 1])))
            if to_exit:
                run.save_and_exit(world)
            if to_save:
                run.save()
    return run.means(sum(counts))


def predict(
    predict_step: PredictStep,
    clips: Clips,
    options: TrainOptions,
    world: World,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) float32 and labels (N,) of all clips of a split, in the order of the split, in every worker.

    Of a clip with several views: the logarithm of the mean of their probabilities. Raises FloatingPointError, naming
    the clip, where a logit is not finite.
    """
    logits = []
    for shares in batches(clips, 0, options, world):
        seen = [{name: share[name] for name in ('keypoint', 'score')} for share in shares]
        if clips.num_views > 1:  # one after the other: no more memory than one view takes
            views = [
                predict_step(world.distribute([{name: array[:, k] for name, array in share.items()} for share in seen]))
                for k in range(clips.num_views)
            ]
            views = tf.stack([tf.nn.log_softmax(view) for view in views])
            logits.append(tf.reduce_logsumexp(views, axis=0) - math.log(clips.num_views))
        else:
            logits.append(predict_step(world.distribute(seen)))
        after_batch()
    # The shares may be larger than the batch, and the last batch shorter than the others.
    logits = tf.concat([batch[: clips.batch_size] for batch in logits], axis=0).numpy()[: clips.num_clips]
    check_logits(logits, clips)
    return logits, clips.store.label[clips.clips]


def validate(
    predict_step: PredictStep, clips: Clips, run: checkpoint.Run, options: TrainOptions, world: World, stop: StopSignal
) -> dict[str, float]:
    """{'loss', 'top1', 'top5', 'mean_class'} of a split. Raises Stopped, with the run saved, on a stop signal."""

    def check_stop() -> None:
        if stop.requested and world.is_alone:  # several workers would have to agree: they finish the validation
            run.save_and_exit(world)

    logits, label = predict(predict_step, clips, options, world, check_stop)
    metrics = classification_metrics(logits, label)
    del metrics['per_class']
    return metrics


def start_log(
    log: Log, train_clips: Clips, val_clips: Clips, render: HeatmapRenderer, model: keras.Model, world: World
) -> None:
    """Logs what is about to run, and an image of a validation clip's heatmaps."""
    described = f'{type(model).__name__}, {model.count_params():,} parameters'
    log.start(train_clips, val_clips, described, world.description, [])
    log.image(*draw_clip(val_clips, render.kind, lambda *clip: np.moveaxis(render(*clip).numpy(), -1, 2)))


def load_model(
    sections: Sections, config: EasyDict, num_joints: int, weights: Mapping[str, np.ndarray], path: Path, world: World
) -> tuple[HeatmapRenderer, keras.Model]:
    """Renderer and model as make_model has them, with the weights of the checkpoint `path`, for evaluation.

    Raises UserError where a device does not have the precision, or the model does not suit weights or joints.
    """
    TrainOptions(**config.train).check_device()
    render, model = make_model(sections['model'], config, num_joints, world)
    checkpoint.assign(model.variables, weights, path)
    return render, model


def classify(
    render: HeatmapRenderer, model: keras.Model, config: EasyDict, clips: Clips, world: World
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) and labels (N,) of all clips of a split (see predict)."""
    options = TrainOptions(**config.train)
    return predict(make_predict_step(render, model, options, world), clips, options, world)


def count_parameters(model: keras.Model) -> int:
    return model.count_params()


def evaluate(args: argparse.Namespace, kind: str, sections: Sections, default_config: str) -> None:
    """Evaluates the checkpoint `args.evaluate`, prints the metrics and writes what report_evaluation does."""
    path = Path(args.evaluate)
    saved: dict[str, Any] = checkpoint.load(path, kind)
    config, world = evaluation_config(path, saved['config'], sections, args.set, args.config), distributed.init()
    clips = make_clips(config, 'val')
    render, model = load_model(sections, config, clips.num_joints, saved['model'], path, world)
    origin = f'{path}, epoch {saved["epoch"]}'
    say_facts({'data': clips.description, 'val': clips.split_description, 'checkpoint': origin})
    logits, labels = classify(render, model, config, clips, world)
    if world.is_main:
        about = {'checkpoint': str(path), 'kind': kind, 'parameters': count_parameters(model), 'epoch': saved['epoch']}
        report_evaluation(args.checkpoint or path.parent, about, config, clips, logits, labels)
