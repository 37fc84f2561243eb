"""What the tools need of configs and checkpoints, whichever of the three models they are of.

A framework is imported when something of its models is asked for, and only that one.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.data.clips import Clips
from lib.errors import UserError
from lib.models import MODELS, SUFFIXES
from lib.run import check_checkpoint, evaluation_config


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this project, to be used as --evaluate uses it. epoch: epochs done. weights: of the model."""

    path: Path
    script: str
    epoch: int
    config: EasyDict
    weights: dict[str, Any]

    @property
    def training(self) -> ModuleType:
        """lib.pytorch.training or lib.tensorflow.training."""
        return MODELS[self.script].training

    def model(self, num_joints: int) -> tuple[Any, Any]:
        """Renderer (None for keypoint inputs) and model with the weights, for evaluation.

        num_joints: those of a person in a batch. Raises UserError, naming the keys, where they do not suit the model.
        """
        world = self.training.distributed.init()
        return self.training.load_model(self.config, num_joints, self.weights, self.path, world)

    def predict(self, clips: Clips) -> np.ndarray:
        """Scores (N, K) float32 of all clips, as --evaluate finds them."""
        render, model = self.model(clips.num_joints)
        return self.training.classify(render, model, self.config, clips, self.training.distributed.init())


def open_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """Reads a checkpoint, or of a run's folder its best one, else its latest.

    overrides: as --evaluate takes them by --set. Raises UserError naming the file.
    """
    if path.is_dir():
        path = _best_of(path)
    elif not path.is_file():
        there = sorted(item.name for item in path.parent.glob('*'))
        raise UserError(
            f'{path}: there is no such folder or file. {path.parent} holds {", ".join(there[:6]) or "nothing"}'
            f'{", ..." if len(there) > 6 else ""}.'
        )
    frameworks = {suffix: framework for framework, suffix in SUFFIXES.items()}
    if path.suffix not in frameworks:
        raise UserError(f"{path} is not a checkpoint: name a run's folder, or its {' or '.join(frameworks)} file.")
    content = importlib.import_module(f'lib.{frameworks[path.suffix]}.checkpoint').read(path)
    check_checkpoint(content, None, path)
    config = evaluation_config(path, content['config'], overrides)
    return Checkpoint(path, config.script, content['epoch'], config, content['model'])


def _best_of(folder: Path) -> Path:
    for stem in ('best_epoch', 'latest_epoch'):
        for ending in SUFFIXES.values():
            if (folder / f'{stem}{ending}').is_file():
                return folder / f'{stem}{ending}'
    raise UserError(f"{folder} holds no checkpoint (best_epoch.bin, best_epoch.npz, ...): name a run's folder.")
