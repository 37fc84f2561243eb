"""Runs of the training scripts on tiny models and 30 generated clips: 20 for training (3 steps), 10 for testing."""

import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torchvision  # noqa: F401 before TensorFlow (see conftest.py)
import yaml

import train_action_mbert
import train_action_vanilla
from lib import cli
from lib.pytorch import checkpoint as pytorch_checkpoint
from lib.tools import pretrain
from tests.annotations import make_annotations
from tests.killing import different

SCRIPTS = {script.SCRIPT: script for script in (train_action_mbert, train_action_vanilla)}
CHECKPOINTS = {'.bin': pytorch_checkpoint}
if importlib.util.find_spec('tensorflow'):  # the tests marked gpu need PyTorch alone
    import train_action_vivit
    from lib.tensorflow import checkpoint as tensorflow_checkpoint

    SCRIPTS[train_action_vivit.SCRIPT] = train_action_vivit
    CHECKPOINTS['.npz'] = tensorflow_checkpoint
PROGRAMS = {**SCRIPTS, pretrain.SCRIPT: pretrain}
MODELS = {
    'mbert': {'num_joints': 17, 'maxlen': 8, 'dim_in': 144, 'dim_feat': 16, 'dim_rep': 16, 'depth': 1, 'num_heads': 2,
              'mlp_ratio': 2, 'dropout_ratio': 0.5, 'num_classes': 4},
    'vanilla': {'num_joints': 17, 'num_frames': 8, 't_patch_size': 4, 'dim_in': 144, 'dim_feat': 16, 'depth': 1,
                'num_heads': 2, 'mlp_ratio': 2, 'protocol': 'finetune', 'dropout_ratio': 0.5, 'num_classes': 4},
    'vivit': {'clip_len': 8, 'size': 12, 'num_joints': 17, 'tubelet_size': [4, 4, 4], 'dim_feat': 16, 'depth': 1,
              'num_heads': 2, 'drop_path_rate': 0.1, 'num_classes': 4},
}  # fmt: skip
PRETRAINING = {'num_joints': 17, 'num_frames': 8, 't_patch_size': 4, 'dim_in': 144, 'dim_feat': 16, 'depth': 1,
               'num_heads': 2, 'mlp_ratio': 2, 'decoder_depth': 1}  # fmt: skip


def optimizer(kind: str) -> dict[str, float]:
    """Section `optimizer` of a model."""
    rates = {'lr': 1e-3} if kind == 'vivit' else {'lr_backbone': 1e-3, 'lr_head': 1e-3}
    return rates | {'weight_decay': 0.01}


def content(kind: str, folder: Path, model: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Returns the config of a tiny model and writes its pickle to the folder."""
    ann_file = folder / 'generated.pkl'
    ann_file.write_bytes(pickle.dumps(make_annotations([5, 12, 40] * 10, persons=[1, 2, 1] * 10)))
    return {
        'script': kind,
        'data': {'ann_file': str(ann_file), 'benchmark': 'xsub', 'clip_len': 8, 'batch_size': 8, 'seed': 0},
        'heatmap': {'size': 12},
        'model': dict(model or (PRETRAINING if kind == 'pretrain' else MODELS[kind])),
        'optimizer': optimizer(kind),
        'train': {'epochs': 2, 'lr_decay': 0.9},
    }


def write_config(kind: str, folder: Path, model: dict[str, Any] | None = None) -> Path:
    """Writes config and pickle to the folder; returns the path of the config. model: section `model`."""
    path = folder / 'tiny.yaml'
    path.write_text(yaml.safe_dump(content(kind, folder, model)))
    return path


def overrides(*changes: str) -> list[str]:
    """Arguments --set for 'section.key=value'."""
    return [part for change in changes for part in ('--set', change)]


def caller(script: ModuleType) -> Callable[..., int]:
    """Returns call(*argv) -> exit code of the script."""

    def call(*argv: object) -> int:
        args = cli.parse_args(script.__doc__, script.SCRIPT, list(map(str, argv)))
        return cli.run(script.evaluate if args.evaluate else script.train, args)

    return call


def tool_modules() -> dict[str, str]:
    """Modules with the function main of all tools, by name: lib.tools.NAME, or its __main__ if it is a package."""
    tools = Path(cli.__file__).parent / 'tools'
    modules = {path.stem: f'lib.tools.{path.stem}' for path in tools.glob('*.py') if '\ndef main(' in path.read_text()}
    return modules | {
        path.parent.name: f'lib.tools.{path.parent.name}.__main__' for path in tools.glob('*/__main__.py')
    }


def files(folder: Path) -> dict[Path, bytes]:
    """Content of all files in a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def lines(folder: Path) -> list[dict]:
    """Content of metrics.jsonl."""
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def latest(folder: Path) -> dict[str, Any]:
    """Content of the latest checkpoint."""
    (path,) = folder.glob('latest_epoch.[bn]*[nz]')
    return CHECKPOINTS[path.suffix].read(path)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    with path.open('wb') as file:
        CHECKPOINTS[path.suffix].write(file, content)


def assert_same_run(one: Path, other: Path) -> None:
    """Asserts equal metrics and bit-equal weights, optimizer state and random generators."""
    assert (one / 'metrics.jsonl').read_text() == (other / 'metrics.jsonl').read_text()
    a, b = latest(one), latest(other)
    for part in ('history', 'model', 'optimizer'):
        assert different(a[part], b[part], part) == []
