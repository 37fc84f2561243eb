"""Evaluation of checkpoints: metrics, predictions, confusion matrix."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.console import log_facts
from lib.data.batches import make_clips
from lib.data.clips import Clips
from lib.errors import UserError
from lib.files import check_writable, make_folder, read_arrays, replacing, require_file, write_text
from lib.metrics import bootstrap_intervals, classification_metrics, confusion_matrix, mean_over_views, most_confused
from lib.models import MODELS, load_config
from lib.plots import confusion_figure, save_figure
from lib.run import evaluation_config, names_of

log = logging.getLogger(__name__)


# Files written by an evaluation.
WRITTEN = ('evaluation.json', 'predictions.npz', 'confusion_matrix.png')


def find_checkpoint(path: Path, suffixes: Sequence[str]) -> Path:
    """Returns `path` if it is a file, or the best (else the latest) checkpoint in the run folder `path`.

    suffixes: suffixes of checkpoint files. Raises UserError if there is no checkpoint.
    """
    if path.is_dir():
        names = [f'{stem}{suffix}' for stem in ('best_epoch', 'latest_epoch') for suffix in suffixes]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(f'{path} holds no checkpoint ({", ".join(names)}). Give the folder of a run.')
        return found[0]
    require_file(path)
    return path


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and the config to evaluate it with.

    epoch: number of completed epochs; None in other projects' checkpoints. config_file: the file of the config if it
    is not the checkpoint's own.
    """

    path: Path
    config: EasyDict
    epoch: int | None
    weights: Mapping[str, Any]
    class_names: list[str]
    config_file: str | None = None

    @property
    def script(self) -> str:
        """Name of the model."""
        return self.config.script

    @property
    def training(self) -> ModuleType:
        """lib.pytorch.training or lib.tensorflow.training."""
        return MODELS[self.script].training

    @cached_property
    def world(self) -> Any:
        """The devices and processes that predict."""
        return self.training.distributed.init()

    def model(self, num_joints: int) -> tuple[Any, Any]:
        """Renderer (None for keypoint inputs) and model with the weights, for evaluation.

        num_joints: joints per person in a batch. Raises UserError, naming the keys, if they do not fit the model.
        """
        return self.training.load_model(self.config, num_joints, self.weights, self.path, self.world)

    def predict(self, render: Any, model: Any, clips: Clips) -> np.ndarray:
        """Scores (N, K) float32 of all clips. render, model: see `model`."""
        return self.training.classify(render, model, self.config, clips, self.world)


def evaluate_checkpoint(args: argparse.Namespace, script: str) -> None:
    """Evaluates the checkpoint `args.evaluate`, a file or a run folder (see evaluate_weights).

    script: name of the model. A checkpoint of this project is evaluated with its own config, another project's
    checkpoint with --config or the default config. Raises UserError naming the file.
    """
    model = MODELS[script]
    path = find_checkpoint(Path(args.evaluate), [model.suffix])
    folder = Path(args.checkpoint or path.parent)
    check_writable(folder, 'Choose another folder for --checkpoint.')
    saved = model.training.checkpoint.load(path, script)
    if saved['config'] is None:
        config_file = args.config or model.default_config
        config = load_config(config_file, args.set, script)
    else:
        config_file = None
        config = evaluation_config(path, saved['config'], args.set, args.config)
    names = names_of(saved, config)
    evaluate_weights(Checkpoint(path, config, saved['epoch'], saved['model'], names, config_file), folder)


def evaluate_weights(checkpoint: Checkpoint, folder: Path) -> None:
    """Classifies the validation clips of a checkpoint's config and writes a report, see report_evaluation."""
    world = checkpoint.world  # initialised before the clips are read
    clips = make_clips(checkpoint.config, 'val')
    render, model = checkpoint.model(clips.num_joints)
    about = {
        'checkpoint': str(checkpoint.path),
        'script': checkpoint.script,
        'epoch': checkpoint.epoch,
        'class_names': checkpoint.class_names,
    }
    origin = f'epoch {checkpoint.epoch}'
    if checkpoint.config_file:
        about['config'], origin = checkpoint.config_file, f'config {checkpoint.config_file}'
    log_facts({'data': clips.description, 'val': clips.split_description, 'checkpoint': f'{checkpoint.path}, {origin}'})
    scores = checkpoint.predict(render, model, clips)
    if world.is_main:
        about['parameters'], _ = checkpoint.training.count_parameters(model)
        report_evaluation(folder, about, clips, scores)


def report_evaluation(folder: Path, about: Mapping[str, Any], clips: Clips, logits: np.ndarray) -> None:
    """Prints metrics and the ten most confused pairs of classes, and writes to `folder`:

    evaluation.json       `about` (see evaluate_weights), metrics and their 95 % intervals
    predictions.npz       ids (N,) text, labels (N,) int64, logits (N, K) float32, in the order of the split
    confusion_matrix.png  classes that occur as labels or predictions

    Raises UserError if a file cannot be written.
    """
    labels = clips.labels
    make_folder(folder)
    metrics, interval = classification_metrics(logits, labels), bootstrap_intervals(logits, labels)
    names, matrix = about['class_names'], confusion_matrix(logits, labels)
    log.info(f'Loss {metrics["loss"]:.4f} {accuracy_line(metrics)}')
    low, high = (100 * edge for edge in interval['top1'])
    log.info(f'95 % interval of Acc@1 {low:.2f} to {high:.2f} (bootstrap over {clips.num_clips:,} clips)')
    for line in confused_lines(matrix, names):
        log.info(line)

    about = {**about, 'split': clips.split_name, 'num_clips': clips.num_clips, 'views': clips.num_views}
    report = {**about, **metrics, 'interval': interval}
    write_text(folder / 'evaluation.json', json.dumps(report, indent=2) + '\n')
    write_predictions(folder / 'predictions.npz', [clips.store.name(i) for i in clips.indices], labels, logits)
    save_figure(confusion_figure(matrix, names), folder / 'confusion_matrix.png')
    log.info(f'wrote {", ".join(WRITTEN)} to {folder}')


def confused_lines(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    """Formats the ten most frequent errors in a confusion matrix (K, K), one per line."""
    pairs = most_confused(matrix)
    if not pairs:
        return ['no clip was misclassified']
    width = max(len(names[true]) for true, _, _ in pairs)
    rows = [
        f'{count:7,d}  {count / matrix[true].sum():6.1%}  {names[true]:<{width}}  predicted as {names[predicted]}'
        for true, predicted, count in pairs
    ]
    return ['most confused: clips, share of the class, class', *rows]


def write_predictions(path: Path, ids: Sequence[str], labels: np.ndarray, logits: np.ndarray) -> None:
    """Writes predictions.npz (see report_evaluation)."""
    with replacing(path) as file:
        np.savez(file, ids=np.array(ids, np.str_), labels=labels.astype(np.int64), logits=logits.astype(np.float32))


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads ids (N,), labels (N,) and logits (N, K) from a predictions.npz. Raises UserError naming the file."""
    arrays = read_arrays(path)
    ids, labels, logits = (arrays.get(key, np.zeros(0)) for key in ('ids', 'labels', 'logits'))
    valid = (
        (ids.ndim, labels.ndim, logits.ndim) == (1, 1, 2)
        and 0 < len(ids) == len(labels) == len(logits)
        and (ids.dtype.kind, labels.dtype.kind, logits.dtype.kind) == ('U', 'i', 'f')
        and 0 <= labels.min() <= labels.max() < logits.shape[1]
        and np.isfinite(logits).all()
    )
    if not valid:
        raise UserError(
            f'{path} is not a predictions file of an evaluation: it must hold ids (N,) text, labels (N,) integers and '
            'finite logits (N, K).'
        )
    return ids, labels, logits


def scores_of(logits: np.ndarray, clips: Clips) -> np.ndarray:
    """Averages the probabilities over the views of a split: logits (N, views, K) -> scores (N, K), see mean_over_views.

    Raises FloatingPointError, naming the first clip, if any is not finite.
    """
    bad = (~np.isfinite(logits)).any(axis=(1, 2))
    if bad.any():
        name = clips.store.name(clips.indices[bad.argmax()])
        raise FloatingPointError(f'the scores of {bad.sum()} clips of {clips.split_name} are not finite, first {name}.')
    return mean_over_views(logits)


def validation_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{'loss', 'top1', 'top5', 'mean_class'} of scores (N, K) and labels (N,)."""
    metrics = classification_metrics(scores, labels)
    del metrics['per_class']
    return metrics


def accuracy_line(metrics: Mapping[str, Any]) -> str:
    """Formats the accuracies of an evaluation as one line."""
    top1, top5, mean_class = (100 * metrics[key] for key in ('top1', 'top5', 'mean_class'))
    return f'Acc@1 {top1:.2f} Acc@5 {top5:.2f} MeanClass {mean_class:.2f}'
