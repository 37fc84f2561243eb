"""What the TensorFlow script is made of: the parts of a run, an epoch of training, evaluation."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from easydict import EasyDict

from lib.config import Sections
from lib.data.clips import Clips
from lib.metrics import classification_metrics
from lib.recipe import Recipe
from lib.run import check_logits, check_losses, evaluation_config, make_clips, prefetched, report_evaluation
from lib.runlog import RunLog, say_facts
from lib.tensorflow import checkpoint
from lib.tensorflow.heatmap import HeatmapRenderer
from lib.tools.preview import draw_clip


@dataclass(kw_only=True)
class TrainOptions(Recipe):
    """Section `train`: the recipe. compile: whether XLA compiles the steps, which are TensorFlow graphs in any case."""


def make_model(make: Callable[..., keras.Model], config: EasyDict, clips: Clips) -> tuple[HeatmapRenderer, keras.Model]:
    """The renderer, and the model with its first weights.

    Raises ValueError, naming the keys, where the model does not suit the clips.
    """
    if 'heatmap' not in config:
        raise ValueError(
            f'ViViT sees heatmaps alone, but data.input is {config.data.input}: set data.input to heatmap.'
        )
    keras.utils.set_random_seed(config.train.seed % 2**32)
    model, render = make(**config.model), HeatmapRenderer(**config.heatmap)
    channels = render.num_channels(clips.num_joints)
    model.check_input(clip_len=config.data.clip_len, size=config.heatmap.size, num_joints=channels)
    return render, model


def make_optimizer(model: keras.Model, *, lr: float, weight_decay: float) -> keras.optimizers.Optimizer:
    """Section `optimizer`: Adam, or with a weight_decay above 0 AdamW; built for the model."""
    if weight_decay < 0:
        raise ValueError(f'optimizer.weight_decay is {weight_decay}; it must be 0 or more.')
    if weight_decay:
        optimizer = keras.optimizers.AdamW(lr, weight_decay, name='adam')  # the name is that of its saved variables
    else:
        optimizer = keras.optimizers.Adam(lr, name='adam')
    optimizer.build(model.trainable_variables)
    return optimizer


TrainStep = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[tf.Tensor, tf.Tensor]]
PredictStep = Callable[[np.ndarray, np.ndarray], tf.Tensor]


def signature(shape: tuple[int, int, int]) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """Keypoints and scores of any number of clips of `shape` (M, T, V)."""
    return tf.TensorSpec((None, *shape, 2), tf.float32), tf.TensorSpec((None, *shape), tf.float32)


def make_train_step(
    render: HeatmapRenderer,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    options: TrainOptions,
    shape: tuple[int, int, int],
) -> TrainStep:
    """(keypoint, score, label) -> (loss, number of hits), compiled: the volumes exist inside alone.

    shape: (M, T, V) of the clips.
    """

    @tf.function(input_signature=(*signature(shape), tf.TensorSpec((None,), tf.int64)), jit_compile=options.compile)
    def train(keypoint: tf.Tensor, score: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(render(keypoint, score), training=True)
            target = tf.one_hot(label, logits.shape[-1])
            smoothed = target * (1 - options.label_smoothing) + options.label_smoothing / logits.shape[-1]
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(smoothed, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        if options.max_grad_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, options.max_grad_norm)
        optimizer.apply(gradients, model.trainable_variables)
        hits = tf.math.count_nonzero(tf.argmax(logits, axis=-1) == label, dtype=tf.int32)
        return loss, hits

    return train


def make_predict_step(
    render: HeatmapRenderer, model: keras.Model, options: TrainOptions, shape: tuple[int, int, int]
) -> PredictStep:
    """(keypoint, score) -> logits, compiled; shape as in make_train_step."""

    @tf.function(input_signature=signature(shape), jit_compile=options.compile)
    def predict(keypoint: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        return model(render(keypoint, score), training=False)

    return predict


def train_one_epoch(
    train_step: TrainStep,
    optimizer: keras.optimizers.Optimizer,
    lr: float,
    clips: Clips,
    epoch: int,
    options: TrainOptions,
    log: RunLog,
    print_freq: int,
) -> dict[str, float]:
    """Trains on every clip once; returns the means over the epoch, {'loss', 'top1'}.

    The device is waited for only when a line is printed. Raises FloatingPointError, naming step and clips, where the
    loss is not finite.
    """
    losses, counts, hits = [], [], []
    with log.progress(f'epoch {epoch + 1}/{options.epochs}', clips.clips_per_epoch) as bar:
        for b, batch in enumerate(prefetched(lambda b: clips[epoch, b], len(clips), options.num_workers)):
            optimizer.learning_rate.assign(lr * options.lr_factor(epoch, b, len(clips)))
            loss, correct = train_step(batch['keypoint'], batch['score'], batch['label'])
            losses.append(loss)
            hits.append(correct)
            counts.append(len(batch['label']))
            bar.update(counts[-1])
            if (b + 1) % print_freq == 0 or b + 1 == len(clips):
                values = tf.stack(losses).numpy().astype(np.float64)
                check_losses(values, clips, epoch)
                mean_loss = float(np.average(values, weights=counts))
                top1 = int(tf.add_n(hits)) / sum(counts)
                log.report(bar, f'loss {mean_loss:.4f}, top1 {top1:.2%}')
    return {'loss': mean_loss, 'top1': top1}


def predict(predict_step: PredictStep, clips: Clips) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) float32 and labels (N,) of all clips of a split, in the order of the split.

    Of a clip with several views: the logarithm of the mean of their probabilities. Raises FloatingPointError, naming
    the clip, where a logit is not finite.
    """
    logits, labels = [], []
    for batch in prefetched(lambda b: clips[0, b], len(clips), 1):
        labels.append(batch['label'])
        keypoint, score = batch['keypoint'], batch['score']
        if clips.num_views > 1:  # one after the other: no more memory than one view takes
            views = [tf.nn.log_softmax(predict_step(keypoint[:, k], score[:, k])) for k in range(clips.num_views)]
            logits.append(tf.reduce_logsumexp(tf.stack(views), axis=0) - math.log(clips.num_views))
        else:
            logits.append(predict_step(keypoint, score))
    logits = tf.concat(logits, axis=0).numpy()
    check_logits(logits, clips)
    return logits, np.concatenate(labels)


def validate(predict_step: PredictStep, clips: Clips) -> dict[str, float]:
    """{'loss', 'top1', 'top5', 'mean_class'} of a split."""
    metrics = classification_metrics(*predict(predict_step, clips))
    del metrics['per_class']
    return metrics


def open_log(
    run: checkpoint.Run,
    options: TrainOptions,
    train_clips: Clips,
    val_clips: Clips,
    render: HeatmapRenderer,
    model: keras.Model,
) -> RunLog:
    """The log of a run (see Run.open_log), with a picture of a test clip's heatmaps."""
    described = f'{type(model).__name__}, {model.count_params():,} parameters'
    picture = draw_clip(val_clips, render.kind, lambda *clip: np.moveaxis(render(*clip).numpy(), -1, 2))
    return run.open_log(options, train_clips, val_clips, described, device(), picture, [])


def device() -> str:
    """What TensorFlow computes on."""
    return 'cuda' if tf.config.list_physical_devices('GPU') else 'cpu'


def evaluate(args: argparse.Namespace, kind: str, sections: Sections, default_config: str) -> None:
    """Evaluates the checkpoint `args.evaluate`, prints the metrics and writes evaluation.json."""
    path = Path(args.evaluate)
    saved: dict[str, Any] = checkpoint.load(path, kind)
    config = evaluation_config(args, saved['config'], sections, default_config)
    clips = make_clips(config, 'val')
    render, model = make_model(sections['model'], config, clips)
    checkpoint.assign(model.variables, saved['model'], path)
    origin = f'{path}, epoch {saved["epoch"]}'
    say_facts({'data': clips.description, 'val': clips.split_description, 'checkpoint': origin})
    predict_step = make_predict_step(render, model, TrainOptions(**config.train), clips.shape)
    report_evaluation(args, kind, saved['epoch'], model.count_params(), clips, *predict(predict_step, clips))
