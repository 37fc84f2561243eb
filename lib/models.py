"""The table of models. A config names its model in `script`; everything else about it is found here.

To add a model: its module, a row here, a training script (a copy of the nearest one) and a config. A framework is
imported when something of one of its models is used, and only that one.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from easydict import EasyDict

from lib.config import Sections, bind, override, read_config
from lib.data.augmentation import Augmentation
from lib.data.clips import Clips
from lib.errors import UserError, shown


@dataclass(frozen=True)
class Model:
    """A row of the table.

    framework: folder of lib. classifier: the class that a config's section `model` binds to, 'module.Class' in that
    folder. blocks: the class of its blocks, recomputed in the backward pass with train.activation_checkpointing.
    """

    framework: Literal['pytorch', 'tensorflow']
    classifier: str
    default_config: str
    blocks: str | None = None

    @property
    def training(self) -> ModuleType:
        """lib.pytorch.training or lib.tensorflow.training."""
        return importlib.import_module(f'lib.{self.framework}.training')

    @property
    def suffix(self) -> str:
        """Suffix of its checkpoints."""
        return SUFFIXES[self.framework]

    def load_classifier(self) -> type:
        """The class that section `model` binds to."""
        return self._load(self.classifier)

    def load_blocks(self) -> type:
        """The class of its blocks."""
        return self._load(self.blocks)

    def _load(self, name: str) -> type:
        module, _, attribute = name.partition('.')
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
    'mbert': Model('pytorch', 'mbert.MotionBERT', 'configs/action/MB_train.yaml', blocks='dstformer.Block'),
    'vanilla': Model('pytorch', 'vanilla.VanillaTransformer', 'configs/action/vanilla.yaml', blocks='vanilla.Block'),
    'vivit': Model('tensorflow', 'vivit.ViViT', 'configs/action/vivit.yaml'),
}


def load_config(path: str | Path, overrides: Iterable[str] = (), script: str | None = None) -> EasyDict:
    """Reads a config, applies `overrides` ('section.key=value') and checks it against the model it names.

    script: the model it must be for; None: any. Returns `script` and all keys of all sections, with defaults filled in.
    Raises UserError naming file and key.
    """
    return resolve_config(read_config(path), overrides, str(path), script)


def resolve_config(
    config: Mapping[str, Any], overrides: Iterable[str], where: str, script: str | None = None
) -> EasyDict:
    """As `load_config`, for a config that has been read; `where` names it in errors."""
    named = config.get('script')
    if not isinstance(named, str) or named not in MODELS:
        found = 'missing' if named is None else shown(named)
        raise UserError(f'{where}: script is {found}; it must name the model, one of {", ".join(MODELS)}.')
    if script and named != script:
        raise UserError(f'{where} has script: {named}. Use train_action_{named}.py.')
    config = override({section: keys for section, keys in config.items() if section != 'script'}, overrides)
    sections: Sections = MODELS[named].sections
    model_input = config.get('data', {}).get('input', 'heatmap')
    if model_input in ('keypoint_2d', 'keypoint_3d'):
        if 'heatmap' in config:
            raise UserError(f'{where}: no heatmaps are drawn with data.input {model_input}. Omit the section heatmap.')
        del sections['heatmap']
    return EasyDict({'script': named, **bind(config, sections, where)})
