"""Models and checkpoints of either framework for the tools."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.data.clips import Clips
from lib.errors import UserError
from lib.evaluation import find_checkpoint
from lib.models import MODELS, SUFFIXES
from lib.run import check_checkpoint, evaluation_config, names_of


def build_model(config: EasyDict, num_joints: int) -> tuple[Any, Any]:
    """Renderer (None for keypoint inputs) and untrained model; PyTorch models are on the meta device.

    num_joints: joints per person in a batch. Raises UserError, naming the keys, if they do not fit the model.
    """
    training = MODELS[config.script].training
    if MODELS[config.script].framework == 'tensorflow':
        import tensorflow as tf

        return training.make_model(config, num_joints, training.distributed.World(tf.distribute.get_strategy()))
    import torch

    with torch.device('meta'):
        return training.make_model(config, num_joints, torch.device('meta'))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this project and its evaluation config. epoch: number of completed epochs."""

    path: Path
    script: str
    epoch: int
    config: EasyDict
    weights: dict[str, Any]
    class_names: list[str]

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

    def predict(self, clips: Clips) -> np.ndarray:
        """Scores (N, K) float32 of all clips, equal to those of an evaluation."""
        render, model = self.model(clips.num_joints)
        return self.training.classify(render, model, self.config, clips, self.world)


def open_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """Reads a checkpoint file, or the best checkpoint in the folder of a run.

    overrides: of the evaluation config, see lib.run.evaluation_config. Raises UserError naming the file.
    """
    frameworks = {suffix: framework for framework, suffix in SUFFIXES.items()}
    path = find_checkpoint(path, list(frameworks))
    if path.suffix not in frameworks:
        raise UserError(f'{path} is not a checkpoint. Name the folder of a run, or its {" or ".join(frameworks)} file.')
    content = importlib.import_module(f'lib.{frameworks[path.suffix]}.checkpoint').read(path)
    check_checkpoint(content, None, path)
    config = evaluation_config(path, content['config'], overrides)
    names = names_of(content, config)
    return Checkpoint(path, config.script, content['epoch'], config, content['model'], names)
