"""What the tools need of configs and checkpoints, whichever of the three models they are of.

A framework is imported when something of its models is asked for, and only that one.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.config import Sections, load_config, read_config
from lib.data.clips import Clips
from lib.errors import UserError
from lib.evaluation import find_checkpoint
from lib.run import check_checkpoint, evaluation_config

KINDS = ('mbert', 'vanilla', 'vivit')
TELLING_KEYS = {'maxlen': 'mbert', 'num_frames': 'vanilla', 'tubelet_size': 'vivit'}  # of section model
ENDINGS = {'.bin': 'pytorch', '.npz': 'tensorflow'}


def script_of(kind: str) -> ModuleType:
    """The training script of a kind of model, with its KIND, SECTIONS and DEFAULT_CONFIG."""
    assert kind in KINDS
    return importlib.import_module(f'train_action_{kind}')


def kind_of(config: Mapping[str, dict], where: str) -> str:
    """Which script a config is for, told by the keys of its section model. Raises UserError where they do not tell."""
    told = {kind for key, kind in TELLING_KEYS.items() if key in config.get('model', {})}
    if len(told) != 1:
        raise UserError(
            f'{where}: its section model does not tell which script it is for. It must have one of '
            f'{", ".join(f"{key} ({kind})" for key, kind in TELLING_KEYS.items())}.'
        )
    return told.pop()


def load_config_file(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, EasyDict]:
    """Kind of model and resolved config of a YAML file, changed by `overrides` as --set does. Raises as load_config."""
    kind = kind_of(read_config(path, ('data', 'heatmap', 'model', 'optimizer', 'train')), str(path))
    return kind, load_config(path, script_of(kind).SECTIONS, overrides)


def build_model(kind: str, config: EasyDict, num_joints: int) -> tuple[Any, Any]:
    """Renderer (None for keypoint inputs) and untrained model; in PyTorch on the meta device, without content.

    num_joints: joints per person in a batch. Raises UserError, naming the keys, if they do not fit the model.
    """
    script = script_of(kind)
    make, distributed = script.training.make_model, script.training.distributed
    if kind == 'vivit':
        import tensorflow as tf

        return make(script.SECTIONS['model'], config, num_joints, distributed.World(tf.distribute.get_strategy()))
    import torch

    with torch.device('meta'):
        return make(script.SECTIONS['model'], config, num_joints, torch.device('meta'))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this project and the config of its evaluation. epoch: completed ones. weights: of the model."""

    path: Path
    kind: str
    epoch: int
    config: EasyDict
    weights: dict[str, Any]

    @property
    def training(self) -> ModuleType:
        """lib.pytorch.training or lib.tensorflow.training."""
        return script_of(self.kind).training

    @property
    def sections(self) -> Sections:
        """The schema of the config."""
        return script_of(self.kind).SECTIONS

    @cached_property
    def world(self) -> Any:
        """The devices and processes that predict."""
        return self.training.distributed.init()

    def model(self, num_joints: int) -> tuple[Any, Any]:
        """Renderer (None for keypoint inputs) and model with the weights, for evaluation.

        num_joints: joints per person in a batch. Raises UserError, naming the keys, if they do not fit the model.
        """
        return self.training.load_model(self.sections, self.config, num_joints, self.weights, self.path, self.world)

    def predict(self, clips: Clips) -> np.ndarray:
        """Scores (N, K) float32 of all clips, those of an evaluation."""
        render, model = self.model(clips.num_joints)
        return self.training.classify(render, model, self.config, clips, self.world)


def open_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """Reads a checkpoint file, or the best checkpoint in the folder of a run.

    overrides: of the evaluation's config, see lib.run.evaluation_config. Raises UserError naming the file.
    """
    path = find_checkpoint(path, list(ENDINGS))
    if path.suffix not in ENDINGS:
        raise UserError(f'{path} is not a checkpoint: name the folder of a run, or its {" or ".join(ENDINGS)} file.')
    content = importlib.import_module(f'lib.{ENDINGS[path.suffix]}.checkpoint').read(path)
    kind = content.get('kind') if isinstance(content, dict) else None
    check_checkpoint(content, kind, path)
    config = evaluation_config(path, content['config'], script_of(kind).SECTIONS, overrides)
    return Checkpoint(path, kind, content['epoch'], config, content['model'])
