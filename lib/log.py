"""Training log: console, progress bar, TensorBoard, metrics.jsonl and timing.jsonl."""

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import yaml
from tqdm import tqdm

from lib.config import flat, plain
from lib.console import log_facts
from lib.data.clips import Clips
from lib.errors import user_file
from lib.files import write_text
from lib.plots import confusion_figure
from lib.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def formatted(metrics: Mapping[str, float], separator: str = ' ') -> str:
    """'loss 1.2345 top1 67.89%'."""
    parts = (f'loss {v:.4f}' if name == 'loss' else f'{name} {v:6.2%}' for name, v in metrics.items())
    return separator.join(parts)


class Log:
    """Log of a training run, a context manager. Only the main process writes.

    metrics.jsonl has one line per epoch and no timing, so that equal runs write equal files. It is rewritten from the
    history in the checkpoint, so the two always agree. Timing goes to timing.jsonl.

    print_freq: steps between two reports.
    """

    def __init__(self, run: Run, print_freq: int) -> None:
        self.run, self.print_freq, self.epochs = run, print_freq, run.config.train.epochs
        self._bar: tqdm | None = None
        self._clips, self._seconds, self._waited = 0, math.nan, 0.0  # of the current epoch, in this process
        if not run.is_main:
            return
        config = yaml.safe_dump(plain(run.config), sort_keys=False, default_flow_style=None, width=120)
        write_text(run.folder / 'config.yaml', config)
        self._write_metrics()
        from tensorboardX import SummaryWriter  # takes seconds: it imports torch

        with user_file(run.folder / 'logs', 'written'):  # purge_step hides epochs that were not saved
            epoch = len(run.history)  # the suffix distinguishes files created in the same second
            self._board = SummaryWriter(str(run.folder / 'logs'), purge_step=epoch + 1, filename_suffix=f'.{epoch}')
        self._add_hparams()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.close()
        if self.run.is_main:
            self._board.close()

    def start(self, train_clips: Clips, val_clips: Clips, model: str, world: Any, messages: Sequence[str]) -> None:
        """Logs a summary of data, model and run. model: its description. world: the devices. messages: more lines."""
        run, self._world = self.run, world
        log_facts(
            {
                'data': train_clips.description,
                'train': train_clips.split_description,
                'val': val_clips.split_description,
                'model': model,
                'run': f'{self.epochs} epochs, {run.epoch} done, {len(train_clips)} steps each, on {world.description}',
                'output': f'{run.folder}: checkpoints, metrics.jsonl, config.yaml; '
                f'tensorboard --logdir {run.folder / "logs"}',
            }
        )
        for line in (*messages, *run.messages):
            log.info(line)

    def image(self, name: str, image: np.ndarray) -> None:
        """Adds an image (3, H, W), uint8, to TensorBoard."""
        if self.run.is_main:
            self._board.add_image(name, image)
            self._board.flush()

    def figure(self, name: str, figure: 'Figure') -> None:
        """Adds a figure of the last completed epoch to TensorBoard."""
        if self.run.is_main:
            self._board.add_figure(name, figure, self.run.epoch)

    def progress(
        self, batches: Iterable[tuple[int, dict[str, Any]]], clips: Clips
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the steps and batches of an epoch with a progress bar, and records the time spent waiting for them.

        Without a terminal there is no bar; `report` prints lines instead.
        """
        form = '{desc}  {percentage:3.0f} %  {n_fmt}/{total_fmt} clips{postfix}, {rate_noinv_fmt}, {remaining} left'
        screen = sys.stderr if sys.stderr.isatty() and self.run.is_main else open(os.devnull, 'w')  # noqa: SIM115 closed with the process
        width = shutil.get_terminal_size((120, 24)).columns  # tqdm prints nothing if the width is unknown
        total, done, title = sum(clips.batch_sizes), self.run.num_clips, f'epoch {self.run.epoch + 1}/{self.epochs}'
        settings = {'unit': ' clips', 'bar_format': form, 'leave': False, 'file': screen, 'ncols': width}
        self._clips, self._seconds, self._waited = 0, math.nan, 0.0
        self._bar = tqdm(desc=title, total=total, initial=done, **settings)
        begin = time.perf_counter()
        for step, batch in batches:
            self._waited += time.perf_counter() - begin
            self._bar.update(clips.batch_sizes[step])
            yield step, batch
            begin = time.perf_counter()

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to report after `step` (counted from 0) of the `steps` in an epoch."""
        return (step + 1) % self.print_freq == 0 or step + 1 == steps

    def report(self) -> None:
        """Reports the mean loss, and top-1, of the current epoch so far."""
        means, bar = self.run.means(), self._bar
        bar.set_postfix_str(formatted(means, ', '))
        self._clips, self._seconds = bar.n - bar.initial, bar.format_dict['elapsed']
        if not sys.stderr.isatty():
            log.info(str(bar))
        if self._world:  # the first report
            log.info(f'peak memory {self._world.peak_memory() / 1e9:.1f} GB')
            self._world = None

    def epoch(self, confusion: np.ndarray | None = None) -> None:
        """Logs the last completed epoch. Its speed covers the steps of this process only.

        confusion: confusion matrix of the validation, drawn if the epoch is the best one.
        """
        if self._bar:
            self._bar.close()
        if not self.run.is_main:
            return
        line, best = self.run.history[-1], self.run.best
        self._write_metrics()
        for part in ('train', 'val', 'lr'):
            for name, value in line[part].items():
                self._board.add_scalar(f'{part}/{name}', value, line['epoch'])
        metric = self.run.metric
        self._board.add_scalar(f'best/{metric}', best[metric], line['epoch'])
        if confusion is not None and best['epoch'] == line['epoch']:
            self.figure('best/confusion_matrix', confusion_figure(confusion, self.run.class_names))
        speed = ''
        if self._clips:
            clips_per_second = self._clips / self._seconds
            timing = {
                'epoch': line['epoch'],
                'train_seconds': self._seconds,
                'clips_per_second': clips_per_second,
                'waited_for_data': self._waited / self._seconds,
            }
            path = self.run.folder / 'timing.jsonl'
            with user_file(path, 'written'), path.open('a') as file:
                file.write(json.dumps(timing) + '\n')
            self._board.add_scalar('clips_per_second', clips_per_second, line['epoch'])
            speed = f'  {clips_per_second:.1f} clips/s'
        self._board.flush()
        train, val = formatted(line['train']), formatted(line['val'])
        log.info(
            f'epoch {line["epoch"]}/{self.epochs}  train {train}  val {val}  '
            f'best {best[metric]:.2%} (epoch {best["epoch"]}){speed}'
        )

    def end(self) -> None:
        """Logs the best and the last epoch of the run."""
        metric, best, last = self.run.metric, self.run.best, self.run.history[-1]['val']
        log.info(f'done: best {metric} {best[metric]:.2%} at epoch {best["epoch"]}, last {last[metric]:.2%}')

    def _add_hparams(self) -> None:
        """Adds the config to TensorBoard's HParams tab.

        SummaryWriter.add_hparams would create a second run, and limit the tab to the config keys of one model.
        """
        from tensorboardX.summary import hparams

        config = flat(self.run.config)
        values = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in config.items()}
        _, session_start, _ = hparams(values, {})
        self._board.file_writer.add_summary(session_start)

    def _write_metrics(self) -> None:
        text = ''.join(json.dumps(line) + '\n' for line in self.run.history)
        write_text(self.run.folder / 'metrics.jsonl', text)
