"""Table of the models; a config selects one by `script`.

Frameworks are imported on first use, so that each model needs only its own. configs/README.md explains how to add a
model.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from easydict import EasyDict

from lib.config import bind, override, read_config
from lib.data.augmentation import Augmentation
from lib.data.clips import Clips
from lib.errors import UserError, shown


@dataclass(frozen=True)
class Model:
    """Entry of the table of models.

    framework: folder in lib. classifier: 'module.Class' in that folder, to which the config section `model` binds.
    program: the command that trains it. metric: of the validation, selects the best epoch.
    """

    framework: Literal['pytorch', 'tensorflow']
    classifier: str
    default_config: str
    program: str
    metric: str = 'top1'

    @property
    def training(self) -> ModuleType:
        """lib.pytorch.training or lib.tensorflow.training."""
        return importlib.import_module(f'lib.{self.framework}.training')

    @property
    def suffix(self) -> str:
        """Suffix of checkpoint files."""
        return SUFFIXES[self.framework]

    def load_classifier(self) -> type:
        """Imports the class to which section `model` binds."""
        module, _, attribute = self.classifier.partition('.')
        return getattr(importlib.import_module(f'lib.{self.framework}.{module}'), attribute)

    @property
    def sections(self) -> dict[str, Callable[..., Any]]:
        """The callable to which each section of a config binds."""
        return {
            'data': Clips,
            'augmentation': Augmentation,
            'heatmap': self.training.HeatmapRenderer,
            'model': self.load_classifier(),
            'optimizer': self.training.make_optimizer,
            'train': self.training.TrainOptions,
        }


SUFFIXES = {'pytorch': '.bin', 'tensorflow': '.npz'}
MODELS = {
    'mbert': Model(
        framework='pytorch',
        classifier='mbert.MotionBERT',
        default_config='configs/action/MB_train.yaml',
        program='train_action_mbert.py',
    ),
    'vanilla': Model(
        framework='pytorch',
        classifier='vanilla.VanillaTransformer',
        default_config='configs/action/vanilla.yaml',
        program='train_action_vanilla.py',
    ),
    'vivit': Model(
        framework='tensorflow',
        classifier='vivit.ViViT',
        default_config='configs/action/vivit.yaml',
        program='train_action_vivit.py',
    ),
    'pretrain': Model(  # of the vanilla transformer
        framework='pytorch',
        classifier='pretraining.MotionPretraining',
        default_config='configs/pretrain/vanilla.yaml',
        program='python -m lib.tools.pretrain',
        metric='explained',
    ),
}


def load_config(path: str | Path, overrides: Iterable[str] = (), script: str | None = None) -> EasyDict:
    """Reads a config, applies `overrides` ('section.key=value') and checks all sections.

    script: name of the required model; None: any. Returns `script` and all sections, with defaults filled in. Raises
    UserError naming file and key.
    """
    return resolve_config(read_config(path), overrides, str(path), script)


def resolve_config(
    config: Mapping[str, Any], overrides: Iterable[str], where: str, script: str | None = None
) -> EasyDict:
    """Like `load_config`, for a config already read. where: its name in error messages."""
    own_script = config.get('script')
    if not isinstance(own_script, str) or own_script not in MODELS:
        found = 'missing' if own_script is None else shown(own_script)
        raise UserError(f'{where}: script is {found}; it must be one of {", ".join(MODELS)}.')
    if script and own_script != script:
        raise UserError(f'{where} has script: {own_script}. Use {MODELS[own_script].program}.')
    config = override({section: keys for section, keys in config.items() if section != 'script'}, overrides)
    sections = MODELS[own_script].sections
    model_input = config.get('data', {}).get('input', 'heatmap')
    if model_input in ('keypoint_2d', 'keypoint_3d'):
        if 'heatmap' in config:
            raise UserError(f'{where}: data.input {model_input} uses no heatmaps. Omit the section heatmap.')
        del sections['heatmap']
    return EasyDict({'script': own_script, **bind(config, sections, where)})
