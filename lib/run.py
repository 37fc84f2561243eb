"""A training run as its folder keeps it, and what may go on with it or evaluate it; the same for both frameworks."""

import hashlib
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn, Self

import numpy as np
from easydict import EasyDict

from lib.config import Sections, differences, load_config, plain, resolve_config
from lib.data.classes import class_names
from lib.data.clips import Clips
from lib.errors import UserError
from lib.files import check_writable, hold_lock, make_folder
from lib.recipe import Recipe
from lib.runlog import RunLog, say, say_facts
from lib.stop import Stop, Stopped

# May change between two runs of one folder: where the data lies, and what its classes are called.
FREE_KEYS = ('data.ann_file', 'data.store_dir', 'data.class_names')
# May change for an evaluation: which data it is and where, what changes speed alone, how often a clip is looked at.
EVALUATION_KEYS = (
    *FREE_KEYS, 'data.benchmark', 'data.batch_size', 'data.test_clips', 'data.test_flip',
    'train.precision', 'train.compile', 'train.num_workers',
)  # fmt: skip


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    """Whether it is a finite number; a whole one of hundreds of digits is none."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**63)


def _are_numbers(values: object, *names: str) -> bool:
    """Whether it is a dict of finite numbers that has these names."""
    return isinstance(values, dict) and values.keys() >= {*names} and all(map(_is_number, values.values()))


def is_line(line: object) -> bool:
    """Whether it is what the history has of an epoch."""
    return (
        isinstance(line, dict)
        and _are_numbers({name: line.get(name) for name in ('epoch', 'lr')})
        and _are_numbers(line.get('train'), 'loss', 'top1')
        and _are_numbers(line.get('val'), 'loss', 'top1', 'top5', 'mean_class')
    )


# What a checkpoint of this project must have, and how it is checked: to evaluate it, and to go on from it.
TO_EVALUATE = {
    'kind': lambda kind: isinstance(kind, str) and kind.isidentifier(),
    'config': lambda config: isinstance(config, dict) and all(isinstance(keys, dict) for keys in config.values()),
    'epoch': _is_count,
    'model': lambda weights: isinstance(weights, dict) and all(hasattr(value, 'shape') for value in weights.values()),
}
TO_GO_ON = TO_EVALUATE | {
    'step': _is_count,
    'loss_sum': lambda total: type(total) is float and math.isfinite(total),
    'hits': _is_count,
    'best': lambda best: _are_numbers(best, 'top1', 'epoch'),
    'history': lambda history: isinstance(history, list) and all(map(is_line, history)),
    'optimizer': lambda state: isinstance(state, dict),
}


@dataclass
class Run:
    """A training run in its folder, as far as it has come. How a checkpoint is read and written is the framework's.

    epoch: epochs done. step: steps done of the epoch under way; loss_sum, hits: of the clips in them the sum of the
    losses, and how many were got right. best: {'top1', 'epoch'} of the best epoch. history: a line for each epoch (see
    RunLog). news: what the user should know about how it goes on. path, saved: the checkpoint that it goes on from.
    damaged: checkpoints that could not be read. is_main: whether this process, of several that train together, is the
    one that writes. stop: whether it was asked to stop.
    """

    LATEST: ClassVar[str]
    BEST: ClassVar[str]
    read: ClassVar[Callable[[Path], dict[str, Any]]]
    write: ClassVar[Callable[[Path, Mapping[str, Any], Sequence[Path]], None]]

    folder: Path
    kind: str
    config: EasyDict
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    hits: int = 0
    best: dict[str, Any] = field(default_factory=lambda: {'top1': -1.0, 'epoch': 0})
    history: list[dict[str, Any]] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    path: Path | None = None
    saved: dict[str, Any] | None = None
    damaged: list[Path] = field(default_factory=list)
    is_main: bool = True
    stop: Stop = field(default_factory=Stop)
    lock: IO[str] | None = None

    @classmethod
    def open(
        cls, folder: str, resume: str | None, kind: str, config: EasyDict, sections: Sections, is_main: bool = True
    ) -> Self:
        """A new run in `folder`, or the one that is there, or for an empty folder the one of the file `resume`.

        A folder that is there is locked, and nothing but its lock is written yet. Where its latest checkpoint is
        damaged or missing, the run goes on from the one before, in the end from the best. Raises UserError
        where another process uses the folder, none of its checkpoints can be read, or the run is of another model or
        other data.
        """
        run = cls(Path(folder), kind, config, is_main=is_main)
        if is_main:
            check_writable(run.folder, 'Name another folder as --checkpoint.')
            if run.folder.is_dir():
                run._hold_lock()
        best = run.folder / cls.BEST
        if checkpoints := run._checkpoints() + [best] * best.is_file():
            if resume and not checkpoints[0].samefile(resume):
                raise UserError(
                    f'{folder} holds a run of its own ({checkpoints[0]}), which goes on by itself. To go on from '
                    f'{resume}, name another, empty folder as --checkpoint.'
                )
            run._read_newest(checkpoints)
        elif resume:
            run.path = Path(resume)
            run.saved = cls.read(run.path)
        if run.path:
            saved = check_content(run.saved, kind, run.path, TO_GO_ON)
            if [line['epoch'] for line in saved['history']] != list(range(1, saved['epoch'] + 1)):
                raise UserError(f'{run.path} is no sound checkpoint of this project: it lacks some of its epochs.')
            changed = check_same_run(run.path, resolve_config(saved['config'], sections, (), str(run.path)), config)
            run.epoch, run.history = saved['epoch'], saved['history']
            run.step, run.loss_sum, run.hits = saved['step'], saved['loss_sum'], saved['hits']
            if best.is_file():  # another folder, given a file to go on from, finds a best of its own
                run.best = saved['best']
            run.news += [f'goes on from {run.path}, after {run.done}']
            run.news += [f'changed since: {key} was {before}, is {now}' for key, (before, now) in changed.items()]
        return run

    @property
    def done(self) -> str:
        """How far the run has come, in words."""
        return f'epoch {self.epoch}' + (f' and {self.step} steps' if self.step else '')

    def add_steps(self, losses: Sequence[float], hits: int, clips: Clips) -> None:
        """Notes steps of the epoch under way: the mean loss of each, and how many of their clips were got right.

        Raises FloatingPointError, naming step and clips, where a loss is not finite.
        """
        check_losses(losses, clips, self.epoch, self.step)
        for loss in losses:  # one by one, so that the sum does not depend on how many come at a time
            self.loss_sum += loss * clips.batch_sizes[self.step]
            self.step += 1
        self.hits += hits

    def means(self, clips: Clips) -> dict[str, float]:
        """{'loss', 'top1'} over the steps done of the epoch under way."""
        count = sum(clips.batch_sizes[: self.step])
        return {'loss': self.loss_sum / count, 'top1': self.hits / count}

    def save(self) -> None:
        """Saves the run as it stands. The last `train.keep` checkpoints stay."""
        self._write(self._content())

    def finish_epoch(self, train: dict[str, float], val: dict[str, float]) -> None:
        """Notes the metrics of one more epoch and saves the run, as the best one too where it is."""
        self.epoch, self.step, self.loss_sum, self.hits = self.epoch + 1, 0, 0.0, 0
        self.history.append({'epoch': self.epoch, 'lr': self.learning_rate(), 'train': train, 'val': val})
        is_best = val['top1'] > self.best['top1']
        if is_best:
            self.best = {'top1': val['top1'], 'epoch': self.epoch}
        content = self._content()
        if is_best and self.is_main:  # before the latest: a run killed in between repeats this, and finds the same best
            self.write(self.folder / self.BEST, content, ())
        self._write(content)

    def leave(self, world: Any) -> NoReturn:
        """Saves the run as it stands and ends it, in all processes of `world` alike."""
        self.save()
        world.wait_for_all()  # a process that ends may take others with it, even one that is still writing
        raise Stopped

    def leave_if_alone(self, world: Any) -> None:
        """Leaves where that was asked for. Several processes go on, for they would have to agree on it."""
        if self.stop.asked and world.is_alone:
            self.leave(world)

    def learning_rate(self) -> float:
        """That of the last step."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """{'model', 'optimizer'}: all that they have learned."""
        raise NotImplementedError

    def _content(self) -> dict[str, Any]:
        return {
            'kind': self.kind,
            'config': plain(self.config),
            'epoch': self.epoch,
            'step': self.step,
            'loss_sum': self.loss_sum,
            'hits': self.hits,
            'best': self.best,
            'history': self.history,
            **self.state(),
        }

    def _write(self, content: Mapping[str, Any]) -> None:
        if not self.is_main:
            return
        for path in self.damaged:
            os.replace(path, path.with_name(f'{path.name}.damaged'))
        self.damaged = []
        stem, suffix = os.path.splitext(self.LATEST)
        keep = self.config.train.keep
        self.write(self.folder / self.LATEST, content, [self.folder / f'{stem}.{i}{suffix}' for i in range(1, keep)])
        for path in self._checkpoints()[keep:]:
            path.unlink()

    def _checkpoints(self) -> list[Path]:
        """The run's checkpoints that there are, newest first."""
        stem, suffix = os.path.splitext(self.LATEST)
        form = re.compile(rf'{stem}(?:\.(\d+))?{re.escape(suffix)}')
        found = {path: form.fullmatch(path.name) for path in self.folder.glob(f'{stem}*') if path.is_file()}
        return sorted((path for path in found if found[path]), key=lambda path: int(found[path][1] or 0))

    def _read_newest(self, checkpoints: list[Path]) -> None:
        """Reads the newest checkpoint that is not damaged. Raises UserError where there is none."""
        for path in checkpoints:
            try:
                self.path, self.saved = path, self.read(path)
            except ValueError as error:
                self.damaged.append(path)
                self.news.append(f'warning: {error}')
            else:
                return
        raise UserError(
            f'none of the checkpoints of {self.folder} can be read. {self.news[0].removeprefix("warning: ")} To begin '
            'anew, name another folder as --checkpoint.'
        )

    def _hold_lock(self) -> None:
        self.lock = hold_lock(self.folder / 'run.lock', f'{self.folder}')

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
        Raises UserError where the folder cannot be written or another process has taken it meanwhile.
        """
        if self.step > len(train_clips):
            raise UserError(
                f'{self.path} has done {self.step} steps of an epoch of {len(train_clips)}: it is of other data.'
            )
        if self.is_main and self.lock is None:
            make_folder(self.folder)
            self._hold_lock()
            if there := self._checkpoints():
                raise UserError(f'another process has just begun a run in {self.folder}: {there[0]}.')
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
    class_names(config)  # before anything long: what they are wanted for comes at the end
    clips = Clips(split, **size, **config.data)
    clips.check_labels(config.model.num_classes)
    return clips


def prefetched(load: Callable[[int], Any], numbers: Sequence[int], num_workers: int) -> Iterator[Any]:
    """load(number) of each, in this order, made ahead by threads: NumPy computes beside Python in them."""
    with ThreadPoolExecutor(num_workers) as loader:
        ahead = deque(loader.submit(load, number) for number in numbers[: num_workers + 1])
        for i in range(len(numbers)):
            batch = ahead.popleft().result()
            ahead.extend(loader.submit(load, number) for number in numbers[i + num_workers + 1 :][:1])
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


def check_losses(losses: Sequence[float], clips: Clips, epoch: int, first: int) -> None:
    """Raises FloatingPointError, naming step and clips, for the first of these losses that is not finite.

    first: the step of an epoch that they begin with.
    """
    for step, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f'the loss became {loss} in epoch {epoch + 1}, step {step + 1} of {len(clips)}, with the clips '
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
    """Raises UserError where those who train together have different numbers; what: what they count."""
    if len(set(numbers)) > 1:
        raise UserError(
            f'the {who} have found different {what}: {", ".join(map(str, numbers))}. --checkpoint must name one '
            'folder that all hosts share.'
        )


def digest(content: object, as_array: Callable[[Any], np.ndarray] = np.asarray) -> str:
    """SHA-256 over the values of nested dicts and lists of plain values and arrays, whatever file they come from."""
    hashed = hashlib.sha256()

    def add(item: object) -> None:
        if isinstance(item, Mapping):
            hashed.update(b'{')
            for key, value in item.items():
                hashed.update(json.dumps(key).encode())
                add(value)
        elif isinstance(item, list | tuple):
            hashed.update(b'[')
            for value in item:
                add(value)
        elif item is None or isinstance(item, str | int | float):
            hashed.update(json.dumps(item).encode())
        else:
            array = as_array(item)
            hashed.update(f'{array.dtype.str}{array.shape}'.encode())
            hashed.update(np.ascontiguousarray(array).reshape(-1))
        hashed.update(b',')

    add(content)
    return hashed.hexdigest()


def check_digest(content: Mapping[str, Any], path: Path, as_array: Callable[[Any], np.ndarray] = np.asarray) -> None:
    """Raises UserError where a checkpoint's 'checksum' is not that of the rest."""
    rest = {key: value for key, value in content.items() if key != 'checksum'}
    try:
        is_right = content['checksum'] == digest(rest, as_array)
    except (TypeError, AttributeError):  # of what no checkpoint of ours holds
        is_right = False
    if not is_right:
        raise UserError(f'{path} is damaged: its checksum is not that of its content. Copy it again.')


def check_content(content: Mapping[str, Any], kind: str, path: str | os.PathLike, form: Mapping[str, Any]) -> dict:
    """Returns a checkpoint of this project's `kind` of model ('mbert', ...) that has what `form` says.

    Raises UserError, naming the file, where it lacks something or is of another kind.
    """
    wanting = [key for key, is_sound in form.items() if key not in content or not is_sound(content[key])]
    if wanting and set(wanting) == form.keys() - TO_EVALUATE.keys():
        raise UserError(
            f'{path} holds weights alone, so that no run can go on from it. It can be evaluated, and a run of PyTorch '
            'can begin with it (--pretrained).'
        )
    if wanting:
        raise UserError(f'{path} is no sound checkpoint of this project: {", ".join(wanting)} is missing or wrong.')
    if content['kind'] != kind:
        raise UserError(f'{path} is a checkpoint of {content["kind"]}: use train_action_{content["kind"]}.py for it.')
    return content


def check_weights(own: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Raises UserError where saved arrays are not, by name and shape, those of the model's `own`."""
    wrong = [f'{name} is missing' for name in own if name not in saved]
    wrong += [f'{name} is not in the model' for name in saved if name not in own]
    wrong += [
        f'{name} has shape {tuple(saved[name].shape)}, not {tuple(value.shape)}'
        for name, value in own.items()
        if name in saved and tuple(saved[name].shape) != tuple(value.shape)
    ]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise UserError(f'{path} is a checkpoint of another model: {"; ".join(wrong[:3])}{more}.')


def check_same_run(path: Path, saved: Mapping[str, dict], given: Mapping[str, dict]) -> dict[str, tuple[Any, Any]]:
    """Raises UserError where `given` describes another model or other data than the checkpoint's config `saved`.

    Returns what else differs, {'section.key': (saved, given)}.
    """
    changed = differences(saved, given)
    if fixed := _fixed(changed, FREE_KEYS):
        listed = '; '.join(f'{key}: {changed[key][0]} there, {changed[key][1]} in this command' for key in fixed)
        raise UserError(f'{path} is of another model or other data ({listed}). Name another folder as --checkpoint.')
    return {key: pair for key, pair in changed.items() if key not in FREE_KEYS}


def check_evaluation(path: str | Path, saved: Mapping[str, dict], given: Mapping[str, dict]) -> None:
    """Raises UserError where an evaluation of the checkpoint is asked for under another model or other data."""
    if fixed := _fixed(differences(saved, given), EVALUATION_KEYS):
        raise UserError(
            f'{path} was trained with other values of {", ".join(fixed)}, and is evaluated with its own config. Leave '
            f'--config away; --set may change {", ".join(EVALUATION_KEYS)}.'
        )


def _fixed(changed: Mapping[str, Any], free: tuple[str, ...]) -> list[str]:
    """Those of the changed keys that make it another model or other data."""
    fixed = [key for key in changed if key.split('.')[0] in ('data', 'heatmap', 'model') and key not in free]
    return fixed + [key for key in changed if key == 'train.partial_train']


def evaluation_config(
    path: str | Path,
    saved: Mapping[str, dict] | None,
    sections: Sections,
    overrides: Sequence[str],
    named: str | None = None,
) -> EasyDict:
    """The config to evaluate a checkpoint with: its own, `saved`, as far as `overrides` (--set) may change it.

    named: a config file that must not differ from it. Weights of others bring no config along (None): theirs is the
    one that is named. Raises UserError.
    """
    if saved is None:
        return load_config(named, sections, overrides)
    own = resolve_config(saved, sections, (), str(path))
    config = resolve_config(saved, sections, overrides, str(path))
    check_evaluation(path, own, config)
    if named:
        check_evaluation(path, own, load_config(named, sections, overrides))
    return config
