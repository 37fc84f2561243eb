"""Training runs: progress, folder, checkpoints, and the checks that a config fits a checkpoint."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn, Self

from easydict import EasyDict

from lib.config import differences, plain
from lib.data.classes import class_names
from lib.data.clips import Clips
from lib.errors import UserError, user_file
from lib.files import check_writable, hold_lock, make_folder, replacing, require_file
from lib.models import MODELS, load_config, resolve_config
from lib.stop import Stopped, StopSignal

FORMAT = 2  # checkpoint format; increment it when the meaning of the content changes
# Keys that may change when a run is resumed: paths and class names.
FREE_KEYS = ('data.ann_file', 'data.store_dir', 'data.class_names')
# Keys that may change for an evaluation: data, test-time options, speed. Those of `train` are listed only for the error
# message: of this section, _fixed refuses only partial_train.
EVALUATION_KEYS = (
    *FREE_KEYS, 'data.benchmark', 'data.batch_size', 'data.test_clips', 'data.test_flip',
    'train.precision', 'train.compile', 'train.num_workers',
)  # fmt: skip


@dataclass
class Run:
    """Progress and folder of a training run. A subclass per framework saves and restores model and optimizer.

    epoch: completed epochs. step: completed steps of the current epoch; num_clips, loss_sum, num_correct: over these
    steps. best: {metric, 'epoch'} of the best epoch. history: one entry per epoch (see finish_epoch). source: the
    checkpoint that the run resumes from; saved: its content, until `restore`. messages: log lines about resuming.
    is_main: whether this process writes the files.
    """

    read: ClassVar[Callable[[Path], dict[str, Any]]]
    write: ClassVar[Callable[[BinaryIO, Mapping[str, Any]], None]]

    folder: Path
    config: EasyDict
    is_main: bool = True
    epoch: int = 0
    step: int = 0
    num_clips: int = 0
    loss_sum: float = 0.0
    num_correct: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    source: Path | None = None
    saved: dict[str, Any] | None = None
    class_names: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    lock: BinaryIO | None = None
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, 'checkpoint'))
    writing: Future | None = None

    @classmethod
    def open(cls, folder: str, resume: str | None, config: EasyDict, is_main: bool = True) -> Self:
        """Opens the run in `folder`, or a new run that starts from the checkpoint `resume`.

        Locks an existing folder and writes nothing else. If the latest checkpoint is damaged or missing, falls back to
        the previous ones, then to the best one. Raises UserError if another process uses the folder, no checkpoint can
        be read, or the run was trained with another model or other data.
        """
        run = cls(Path(folder), config, is_main)
        if resume:
            require_file(Path(resume))
        if is_main:
            check_writable(run.folder, 'Choose another folder for --checkpoint.')
            if run.folder.is_dir():
                run.lock = hold_lock(run.folder / 'run.lock', folder)
        checkpoints = run._checkpoints()
        if run.best_path.is_file():
            checkpoints.append(run.best_path)
        if checkpoints:
            if resume and not checkpoints[0].samefile(resume):
                raise UserError(
                    f'{folder} already contains a run ({checkpoints[0]}), which resumes automatically. To resume from '
                    f'{resume}, choose an empty folder for --checkpoint.'
                )
            run._read_newest(checkpoints)
        elif resume:
            run.source, run.saved = Path(resume), cls.read(Path(resume))
        if run.source:
            run._resume()
        if run.epoch >= config.train.epochs and not checkpoints:
            raise UserError(f'{resume} has completed all {run.epoch} epochs. Raise train.epochs to continue it.')
        run.class_names = names_of(run.saved, config)
        return run

    @property
    def suffix(self) -> str:
        return MODELS[self.config.script].suffix

    @property
    def metric(self) -> str:
        return MODELS[self.config.script].metric

    @property
    def latest_path(self) -> Path:
        return self.folder / f'latest_epoch{self.suffix}'

    @property
    def best_path(self) -> Path:
        return self.folder / f'best_epoch{self.suffix}'

    def begin(self, world: Any, steps: int) -> None:
        """Creates and locks the folder of a new run. Call it after all other checks. steps: steps per epoch.

        Raises UserError if the processes of `world` have not found the same checkpoint.
        """
        world.check_same('numbers of completed epochs', self.epoch)
        world.check_same('numbers of completed steps', self.step)
        if self.step > steps:
            raise UserError(
                f'{self.source} has completed {self.step} steps of the current epoch, but an epoch has only {steps}.'
            )
        if self.is_main and self.lock is None:
            make_folder(self.folder)
            self.lock = hold_lock(self.folder / 'run.lock', f'{self.folder}')
            if checkpoints := self._checkpoints():
                raise UserError(f'another process has just started a run in {self.folder}: {checkpoints[0]}.')

    def add_steps(self, losses: Sequence[float], num_correct: int, clips: Clips) -> None:
        """Records the mean losses of the next steps and the number of correct clips in all of them.

        Raises FloatingPointError, naming step and clips, if a loss is not finite.
        """
        check_losses(losses, clips, self.epoch, self.step)
        for loss in losses:  # one at a time: the sum must not depend on the reporting interval
            self.loss_sum += loss * clips.batch_sizes[self.step]
            self.num_clips += clips.batch_sizes[self.step]
            self.step += 1
        self.num_correct += num_correct
        if self.writing and self.writing.done():
            self.wait()  # raises the error of a failed save

    def means(self) -> dict[str, float]:
        """{'loss', 'top1'} over the completed steps of the current epoch; without classes {'loss'}."""
        accuracy = {'top1': self.num_correct / self.num_clips} if self.metric == 'top1' else {}
        return {'loss': self.loss_sum / self.num_clips} | accuracy

    def finish_epoch(self, val: dict[str, float]) -> None:
        """Records the metrics of the current epoch and saves a checkpoint, also as the best one if it is."""
        self.epoch += 1
        self.history.append({'epoch': self.epoch, 'lr': self.learning_rates(), 'train': self.means(), 'val': val})
        self.step, self.num_clips, self.loss_sum, self.num_correct = 0, 0, 0.0, 0
        is_best = val[self.metric] > self.best.get(self.metric, -math.inf)
        if is_best:
            self.best = {self.metric: val[self.metric], 'epoch': self.epoch}
        self.save(is_best)

    def save(self, is_best: bool = False) -> None:
        """Copies the state to host memory and writes a checkpoint in a background thread.

        Waits for the previous save and raises UserError if it failed. Keeps the last `train.keep` checkpoints.
        """
        if not self.is_main:
            return
        self.wait()
        content = {
            'format': FORMAT,
            'config': plain(self.config),
            'class_names': self.class_names,
            'epoch': self.epoch,
            'step': self.step,
            'num_clips': self.num_clips,
            'loss_sum': self.loss_sum,
            'num_correct': self.num_correct,
            'best': self.best,
            'history': list(self.history),
            **self.state(),
        }
        self.writing = self.writer.submit(self._write, content, is_best)

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises UserError if it failed."""
        if self.writing:
            writing, self.writing = self.writing, None
            writing.result()

    def save_and_exit(self, world: Any) -> NoReturn:
        """Saves the run and raises Stopped. All processes of `world` must call it."""
        self.save()
        self.wait()
        world.wait_for_all()  # an exiting process may terminate one that is still writing
        raise Stopped

    def exit_if(self, stop: StopSignal, world: Any) -> None:
        """Saves and exits on a stop signal if this is the only process. Several would have to agree first."""
        if stop.requested and world.is_alone:
            self.save_and_exit(world)

    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each parameter group in the last step."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Copies of {'model', 'optimizer'} in host memory."""
        raise NotImplementedError

    def _resume(self) -> None:
        saved = check_checkpoint(self.saved, self.config.script, self.source, to_resume=True)
        own = resolve_config(saved['config'], (), str(self.source))
        changed = check_same_run(self.source, own, self.config)
        self.epoch, self.step, self.history = saved['epoch'], saved['step'], saved['history']
        self.num_clips, self.loss_sum, self.num_correct = saved['num_clips'], saved['loss_sum'], saved['num_correct']
        if self.best_path.is_file():  # a new folder (--resume) selects its own best epoch
            self.best = saved['best']
        steps = f' and {self.step} steps' if self.step else ''
        self.messages.append(f'resuming from {self.source}, after epoch {self.epoch}{steps}')
        self.messages += [f'changed: {key} was {before}, is {now}' for key, (before, now) in changed.items()]

    def _write(self, content: Mapping[str, Any], is_best: bool) -> None:
        keep = self.config.train.keep
        older = [self.latest_path.with_stem(f'latest_epoch.{i}') for i in range(1, keep)]
        with user_file(self.folder, 'written'):
            for path in self.damaged:
                os.replace(path, path.with_name(f'{path.name}.damaged'))
            self.damaged = []
            # Best before latest: a run killed in between repeats the end of this epoch and selects the same best.
            with replacing(self.latest_path, older, self.best_path if is_best else None) as file:
                self.write(file, content)
            for path in self._checkpoints()[keep:]:
                path.unlink()

    def _checkpoints(self) -> list[Path]:
        """The latest checkpoints in the folder, newest first."""
        form = re.compile(rf'latest_epoch(?:\.(\d+))?{re.escape(self.suffix)}')
        found = {path: form.fullmatch(path.name) for path in self.folder.glob('latest_epoch*') if path.is_file()}
        return sorted((path for path in found if found[path]), key=lambda path: int(found[path][1] or 0))

    def _read_newest(self, checkpoints: list[Path]) -> None:
        """Reads the newest readable checkpoint. Raises UserError if there is none."""
        errors = []
        for path in checkpoints:
            try:
                self.source, self.saved = path, self.read(path)
            except UserError as error:
                self.damaged.append(path)
                errors.append(error)
            else:
                self.messages += [f'warning: {error}' for error in errors]
                return
        raise UserError(
            f'none of the checkpoints in {self.folder} can be read. {errors[0]} To start again, choose another folder '
            'for --checkpoint.'
        )


def check_checkpoint(content: Any, script: str | None, path: str | Path, to_resume: bool = False) -> dict[str, Any]:
    """Returns `content` if it is a checkpoint of this project, else raises UserError.

    script: name of the required model; None: any.
    """
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise UserError(
            f'{path} is not a checkpoint of this version of the project. Train again, or use the version that wrote it.'
        )
    own = content['config']['script']
    if script and own != script:
        raise UserError(f'{path} is a checkpoint of {own}: use {MODELS[own].program}.')
    if to_resume and 'optimizer' not in content:
        raise UserError(
            f'{path} has no optimizer state and cannot be resumed. It can be evaluated, or used as --pretrained '
            'weights.'
        )
    return content


def names_of(content: Mapping[str, Any] | None, config: EasyDict) -> list[str]:
    """Class names of a checkpoint, or those of `config` if it sets another class-name file or the checkpoint has none.

    Raises UserError if the class-name file cannot be read.
    """
    saved = content and content.get('class_names')
    if saved and config.data.class_names in (None, content['config']['data'].get('class_names')):
        return saved
    return class_names(config)


def check_same_run(path: Path, saved: Mapping[str, dict], given: Mapping[str, dict]) -> dict[str, tuple[Any, Any]]:
    """Raises UserError if the `saved` config of a checkpoint and the `given` config differ in model or data.

    Returns the other differences, {'section.key': (saved, given)}.
    """
    changed = differences(saved, given)
    if fixed := _fixed(changed, FREE_KEYS):
        listed = '; '.join(f'{key}: {changed[key][0]} in the checkpoint, {changed[key][1]} now' for key in fixed)
        advice = 'Choose another folder for --checkpoint.'
        if fixed == ['data.batch_size']:
            advice += ' To use less memory, keep the batch size and set train.accumulation_steps.'
        raise UserError(f'{path} was trained with another model or other data ({listed}). {advice}')
    return {key: pair for key, pair in changed.items() if key not in FREE_KEYS}


def evaluation_config(
    path: Path, saved: Mapping[str, Any], overrides: Sequence[str], config_file: str | None = None
) -> EasyDict:
    """Returns the config to evaluate a checkpoint with: `saved`, the checkpoint's own, with `overrides` (--set).

    config_file: a config to compare with it. Raises UserError if model, data, train.partial_train or
    optimizer.layer_decay differ; other keys are not compared.
    """
    own = resolve_config(saved, (), str(path))
    config = resolve_config(saved, overrides, str(path))
    for other in (config, load_config(config_file, overrides, own.script)) if config_file else (config,):
        if fixed := _fixed(differences(own, other), EVALUATION_KEYS):
            raise UserError(
                f'{path} was trained with other values of {", ".join(fixed)} and is evaluated with its own config. '
                f'Omit --config; --set may change {", ".join(EVALUATION_KEYS)}.'
            )
    return config


def _fixed(changed: Mapping[str, Any], free: tuple[str, ...]) -> list[str]:
    """The changed keys that define the model, the data or the optimizer's parameter groups."""
    fixed = [key for key in changed if key.split('.')[0] not in ('optimizer', 'train') and key not in free]
    return fixed + [key for key in changed if key in ('train.partial_train', 'optimizer.layer_decay')]


def check_same(who: str, what: str, numbers: Sequence[int]) -> None:
    """Raises UserError if `numbers`, one per process, differ. who, what: names for the message."""
    if len(set(numbers)) > 1:
        raise UserError(
            f'the {who} found different {what}: {", ".join(map(str, numbers))}. --checkpoint must name one '
            'folder that all hosts share.'
        )


def check_losses(losses: Sequence[float], clips: Clips, epoch: int, first: int) -> None:
    """Raises FloatingPointError, naming step and clips, for the first loss that is not finite.

    first: step of losses[0] in the epoch.
    """
    for step, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f'the loss became {loss} in epoch {epoch + 1}, step {step + 1} of {len(clips)}, with the clips '
                f'{" ".join(clips.names(epoch, step))}. The last checkpoint is intact. A lower learning rate may help.'
            )
