"""A training run as its folder keeps it, and what may go on with it or evaluate it; the same for both frameworks."""

import argparse
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from easydict import EasyDict

from lib.config import Sections, differences, load_config, plain, resolve_config
from lib.data.clips import Clips
from lib.files import write_text
from lib.metrics import classification_metrics
from lib.recipe import Recipe
from lib.runlog import RunLog, metrics_line, say, say_facts

# May change between two runs of one folder: where the data lies.
FREE_KEYS = ('data.ann_file', 'data.store_dir')
# May change for an evaluation: where the data lies, what changes speed alone, and how often a clip is looked at.
EVALUATION_KEYS = (
    *FREE_KEYS, 'data.batch_size', 'data.test_clips', 'data.test_flip',
    'train.precision', 'train.compile', 'train.num_workers',
)  # fmt: skip


@dataclass
class Run:
    """A training run in its folder, as far as it has come. How a checkpoint is read and written is the framework's.

    epoch: epochs done. best: {'top1', 'epoch'} of the best of them. history: a line for each (see RunLog). news: what
    the user should know about how it goes on. path, saved: the checkpoint that it goes on from. is_main: whether this
    process, of several that train together, is the one that writes.
    """

    LATEST: ClassVar[str]
    BEST: ClassVar[str]
    load: ClassVar[Callable[[Path, str], dict[str, Any]]]
    save: ClassVar[Callable[[Path, Mapping[str, Any]], None]]

    folder: Path
    kind: str
    config: EasyDict
    epoch: int = 0
    best: dict[str, Any] = field(default_factory=lambda: {'top1': -1.0, 'epoch': 0})
    history: list[dict[str, Any]] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    path: Path | None = None
    saved: dict[str, Any] | None = None
    is_main: bool = True

    @classmethod
    def open(
        cls, folder: str, resume: str | None, kind: str, config: EasyDict, sections: Sections, is_main: bool = True
    ) -> Self:
        """A new run in `folder`, or the one that is there, or for an empty folder the one of the file `resume`.

        Nothing is written yet. Raises OSError or ValueError where that run is of another model or other data.
        """
        run = cls(Path(folder), kind, config, is_main=is_main)
        latest = run.folder / cls.LATEST
        if latest.is_file():
            if resume and not latest.samefile(resume):
                raise ValueError(
                    f'{folder} holds a run of its own ({latest}), which goes on by itself. To go on from {resume}, '
                    'name another, empty folder as --checkpoint.'
                )
            run.path = latest
        elif resume:
            run.path = Path(resume)
        if run.path:
            saved = run.saved = cls.load(run.path, kind)
            changed = check_same_run(run.path, resolve_config(saved['config'], sections, (), str(run.path)), config)
            run.epoch, run.history = saved['epoch'], saved['history']
            if (run.folder / cls.BEST).is_file():  # another folder, given a file to go on from, finds a best of its own
                run.best = saved['best']
            run.news = [f'goes on from {run.path}, after epoch {run.epoch}']
            run.news += [f'changed since: {key} was {before}, is {now}' for key, (before, now) in changed.items()]
        return run

    def add_epoch(self, lr: float, train: dict[str, float], val: dict[str, float], state: Mapping[str, Any]) -> None:
        """Notes the metrics of one more epoch and saves the run with `state`, as the best one too where it is."""
        self.epoch += 1
        self.history.append({'epoch': self.epoch, 'lr': lr, 'train': train, 'val': val})
        is_best = val['top1'] > self.best['top1']
        if is_best:
            self.best = {'top1': val['top1'], 'epoch': self.epoch}
        if not self.is_main:
            return
        content = {
            'kind': self.kind,
            'config': plain(self.config),
            'epoch': self.epoch,
            'best': self.best,
            'history': self.history,
            **state,
        }
        if is_best:  # before the latest: a run killed in between repeats this epoch, and finds the same best
            self.save(self.folder / self.BEST, content)
        self.save(self.folder / self.LATEST, content)

    def open_log(
        self,
        options: Recipe,
        train_clips: Clips,
        val_clips: Clips,
        model: str,
        device: str,
        picture: tuple[str, np.ndarray] | None,
        notes: list[str],
    ) -> RunLog:
        """Opens the log in the run's folder, which is created now, and says what is about to be run.

        model, device: their descriptions. picture: (name, (3, H, W) uint8) for TensorBoard. notes: further lines.
        """
        log = RunLog(self.folder, plain(self.config), self.history, self.is_main)
        say_facts(
            {
                'data': train_clips.description,
                'train': train_clips.split_description,
                'val': val_clips.split_description,
                'model': model,
                'run': f'{options.epochs} epochs, {self.epoch} done, {len(train_clips)} steps each, on {device}',
                'output': f'{self.folder}: checkpoints, metrics.jsonl, config.yaml; '
                f'tensorboard --logdir {self.folder / "logs"}',
            }
        )
        for line in (*notes, *self.news):
            say(line)
        if picture:
            log.picture(*picture)
        return log

    def say_end(self) -> None:
        """Says how the run has ended."""
        last = self.history[-1]['val']['top1']
        say(f'done: best top1 {self.best["top1"]:.2%} at epoch {self.best["epoch"]}, last {last:.2%}')


def make_clips(config: EasyDict, split: str) -> Clips:
    """The clips of a split as section `data` describes them, checked for labels that the model does not have."""
    size = {'size': config.heatmap.size} if 'heatmap' in config else {}
    clips = Clips(split, **size, **config.data)
    clips.check_labels(config.model.num_classes)
    return clips


def prefetched(load: Callable[[int], Any], count: int, num_workers: int) -> Iterator[Any]:
    """load(0), ..., load(count - 1), in this order, made ahead by threads: NumPy computes beside Python in them."""
    with ThreadPoolExecutor(num_workers) as loader:
        ahead = deque(loader.submit(load, b) for b in range(min(num_workers + 1, count)))
        for b in range(count):
            batch = ahead.popleft().result()
            if b + num_workers + 1 < count:
                ahead.append(loader.submit(load, b + num_workers + 1))
            yield batch


def padded(batch: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """A batch with clips of zeros at its end, so that it has at least `count`: for what is compiled one shape alone."""
    missing = max(0, count - len(batch['label']))
    return {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16, as far as the system tells (Linux)."""
    try:
        told = Path('/proc/cpuinfo').read_text()
    except OSError:
        return False
    return re.search(r'^(flags|Features)\s*:.*\b(avx512_bf16|amx_bf16|bf16)\b', told, re.MULTILINE) is not None


def check_losses(losses: np.ndarray, clips: Clips, epoch: int) -> None:
    """Raises FloatingPointError, naming step and clips, for the first loss of an epoch's steps that is not finite."""
    bad = ~np.isfinite(losses)
    if bad.any():
        step = int(bad.argmax())
        raise FloatingPointError(
            f'the loss became {losses[step]} in epoch {epoch + 1}, step {step + 1} of {len(clips)}, with the clips '
            f'{" ".join(clips.names(epoch, step))}. The last good checkpoint stays as it is. A lower learning rate '
            'may help.'
        )


def check_logits(logits: np.ndarray, clips: Clips) -> None:
    """Raises FloatingPointError, naming the clip, where a logit (N, K) of a split is not finite."""
    bad = (~np.isfinite(logits)).any(axis=1)
    if bad.any():
        name = clips.store.name(clips.clips[bad.argmax()])
        raise FloatingPointError(f'the scores of {bad.sum()} clips of {clips.list_name} are not finite, first {name}.')


def check_same(who: str, what: str, numbers: Sequence[int]) -> None:
    """Raises ValueError where those who train together have different numbers; what: what they count."""
    if len(set(numbers)) > 1:
        raise ValueError(
            f'the {who} have found different {what}: {", ".join(map(str, numbers))}. --checkpoint must name one '
            'folder that all hosts share.'
        )


def check_kind(found: str, kind: str, path: str | os.PathLike) -> None:
    """Raises ValueError where a checkpoint is of another kind of model ('mbert', ...) than the script's."""
    if found != kind:
        raise ValueError(f'{path} is a checkpoint of {found}: use train_action_{found}.py for it.')


def check_weights(own: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError where saved arrays are not, by name and shape, those of the model's `own`."""
    wrong = [f'{name} is missing' for name in own if name not in saved]
    wrong += [f'{name} is not in the model' for name in saved if name not in own]
    wrong += [
        f'{name} has shape {tuple(saved[name].shape)}, not {tuple(value.shape)}'
        for name, value in own.items()
        if name in saved and tuple(saved[name].shape) != tuple(value.shape)
    ]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise ValueError(f'{path} is a checkpoint of another model: {"; ".join(wrong[:3])}{more}.')


def check_same_run(path: Path, saved: Mapping[str, dict], given: Mapping[str, dict]) -> dict[str, tuple[Any, Any]]:
    """Raises ValueError where `given` describes another model or other data than the checkpoint's config `saved`.

    Returns what else differs, {'section.key': (saved, given)}.
    """
    changed = differences(saved, given)
    if fixed := _fixed(changed, FREE_KEYS):
        listed = '; '.join(f'{key}: {changed[key][0]} there, {changed[key][1]} in this command' for key in fixed)
        raise ValueError(f'{path} is of another model or other data ({listed}). Name another folder as --checkpoint.')
    return {key: pair for key, pair in changed.items() if key not in FREE_KEYS}


def check_evaluation(path: str | Path, saved: Mapping[str, dict], given: Mapping[str, dict]) -> None:
    """Raises ValueError where an evaluation of the checkpoint is asked for under another model or other data."""
    if fixed := _fixed(differences(saved, given), EVALUATION_KEYS):
        raise ValueError(
            f'{path} was trained with other values of {", ".join(fixed)}, and is evaluated with its own config. Leave '
            f'--config away; --set may change {", ".join(EVALUATION_KEYS)}.'
        )


def _fixed(changed: Mapping[str, Any], free: tuple[str, ...]) -> list[str]:
    """Those of the changed keys that make it another model or other data."""
    fixed = [key for key in changed if key.split('.')[0] in ('data', 'heatmap', 'model') and key not in free]
    return fixed + [key for key in changed if key == 'train.partial_train']


def evaluation_config(
    args: argparse.Namespace, saved: Mapping[str, dict] | None, sections: Sections, default_config: str
) -> EasyDict:
    """The config to evaluate the checkpoint `args.evaluate` with: its own, `saved`, as far as `--set` may change it.

    Weights of others bring none along (None): theirs is the one that the command names. Raises ValueError.
    """
    if saved is None:
        return load_config(args.config or default_config, sections, args.set)
    path = args.evaluate
    own = resolve_config(saved, sections, (), path)
    config = resolve_config(saved, sections, args.set, path)
    check_evaluation(path, own, config)
    if args.config:
        check_evaluation(path, own, load_config(args.config, sections, args.set))
    return config


def report_evaluation(
    args: argparse.Namespace,
    kind: str,
    epoch: int | None,
    parameters: int,
    clips: Clips,
    logits: np.ndarray,
    label: np.ndarray,
) -> None:
    """Prints the metrics of an evaluation and writes evaluation.json, beside the checkpoint or into `--checkpoint`.

    kind, parameters: which model it is, and how large.
    """
    metrics = classification_metrics(logits, label)
    say(metrics_line(metrics))
    about = {
        'checkpoint': args.evaluate,
        'kind': kind,
        'parameters': parameters,
        'epoch': epoch,
        'list': clips.list_name,
        'num_clips': clips.num_clips,
        'views': clips.num_views,
    }
    folder = Path(args.checkpoint) if args.checkpoint else Path(args.evaluate).parent
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'evaluation.json', json.dumps(about | metrics, indent=2) + '\n')
