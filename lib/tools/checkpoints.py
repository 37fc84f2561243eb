"""What the tools need of configs and checkpoints, whichever of the three models they are of.

A framework is imported when something of its models is asked for, and only that one.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from easydict import EasyDict

from lib.config import load_config, read_config
from lib.data.clips import Clips
from lib.errors import UserError
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this project, to be used as --evaluate uses it. epoch: epochs done. weights: of the model."""

    path: Path
    kind: str
    epoch: int
    config: EasyDict
    weights: dict[str, Any]

    @property
    def training(self) -> ModuleType:
        """lib.pytorch.training or lib.tensorflow.training."""
        return script_of(self.kind).training

    def model(self, num_joints: int) -> tuple[Any, Any]:
        """Renderer (None for keypoint inputs) and model with the weights, for evaluation.

        num_joints: those of a person in a batch. Raises UserError, naming the keys, where they do not suit the model.
        """
        world = self.training.distributed.init()
        return self.training.load_model(
            script_of(self.kind).SECTIONS, self.config, num_joints, self.weights, self.path, world
        )

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
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} is no checkpoint: name a run's folder, or its {' or '.join(ENDINGS)} file.")
    content = importlib.import_module(f'lib.{ENDINGS[path.suffix]}.checkpoint').read(path)
    kind = content.get('kind') if isinstance(content, dict) else None
    check_checkpoint(content, kind, path)
    config = evaluation_config(path, content['config'], script_of(kind).SECTIONS, overrides)
    return Checkpoint(path, kind, content['epoch'], config, content['model'])


def _best_of(folder: Path) -> Path:
    for stem in ('best_epoch', 'latest_epoch'):
        for ending in ENDINGS:
            if (folder / f'{stem}{ending}').is_file():
                return folder / f'{stem}{ending}'
    raise UserError(f"{folder} holds no checkpoint (best_epoch.bin, best_epoch.npz, ...): name a run's folder.")
