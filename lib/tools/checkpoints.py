"""Models and checkpoints of either framework for the tools."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from lib.errors import UserError
from lib.evaluation import Checkpoint, find_checkpoint
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


def open_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """Reads a checkpoint file, or the best checkpoint in the folder of a run.

    overrides: of the evaluation config, see lib.run.evaluation_config. Raises UserError naming the file.
    """
    frameworks = {suffix: framework for framework, suffix in SUFFIXES.items()}
    path = find_checkpoint(path, list(frameworks))
    if path.suffix not in frameworks:
        raise UserError(f'{path} is not a checkpoint. Give the folder of a run, or its {" or ".join(frameworks)} file.')
    content = importlib.import_module(f'lib.{frameworks[path.suffix]}.checkpoint').read(path)
    script = check_checkpoint(content, None, path)['config']['script']
    if script == 'pretrain':
        raise UserError(
            f'{path} is pretrained and has no classes. Fine-tune it first: train_action_vanilla.py --pretrained.'
        )
    config = evaluation_config(path, content['config'], overrides)
    names = names_of(content, config)
    return Checkpoint(path, config, content['epoch'], content['model'], names)
