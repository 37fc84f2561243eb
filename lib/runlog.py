"""What a run tells: lines on the screen, progress, TensorBoard, metrics.jsonl, timing.jsonl."""

import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tensorboardX import SummaryWriter
from tqdm import tqdm

from lib.errors import user_file
from lib.files import make_folder, write_text


class RunLog:
    """The log of a training run in its checkpoint folder.

    metrics.jsonl has one line per epoch and no clock in it: equal runs have equal files. It is written anew from the
    history that the checkpoint keeps, so the two never disagree. Times and speeds are in timing.jsonl. Of several
    processes that train together only the one that `is_main` writes.
    """

    def __init__(
        self, folder: Path, config: dict[str, dict[str, Any]], history: Sequence[dict[str, Any]], is_main: bool = True
    ) -> None:
        self.folder = folder
        self.is_main = is_main
        self._trained_clips, self._train_seconds = 0, math.nan  # of the epoch under way, in this process
        self._waited_seconds = 0.0  # for data, of them
        if not is_main:
            return
        make_folder(folder)
        write_text(folder / 'config.yaml', yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120))
        self._write_metrics(history)
        # A process that was killed may have saved its last epoch, but not written it here: it is written again.
        self._board = SummaryWriter(str(folder / 'logs'), purge_step=len(history))
        if history:
            self._draw_curves(history[-1])

    def progress(self, title: str, num_clips: int, done: int = 0) -> tqdm:
        """A progress bar over the clips of an epoch, `done` of them in another process.

        Where there is no terminal, `report` prints it as lines.
        """
        form = '{desc}  {percentage:3.0f} %  {n_fmt}/{total_fmt} clips{postfix}, {rate_noinv_fmt}, {remaining} left'
        screen = sys.stderr if sys.stderr.isatty() and self.is_main else open(os.devnull, 'w')  # noqa: SIM115 closed with the process
        width = shutil.get_terminal_size((120, 24)).columns  # tqdm shows nothing on terminals that do not tell theirs
        self._trained_clips, self._train_seconds = 0, math.nan
        settings = {'unit': ' clips', 'bar_format': form, 'leave': False, 'file': screen, 'ncols': width}
        return tqdm(desc=title, total=num_clips, initial=done, **settings)

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Passes on the batches of an epoch, and notes how long they are waited for."""
        self._waited_seconds, begin = 0.0, time.perf_counter()
        for batch in batches:
            self._waited_seconds += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def report(self, bar: tqdm, *, loss: float, top1: float) -> None:
        """Adds to the progress bar what is known of the epoch so far."""
        bar.set_postfix_str(f'loss {loss:.4f}, top1 {top1:.2%}')
        self._trained_clips, self._train_seconds = bar.n - bar.initial, bar.format_dict['elapsed']
        if not sys.stderr.isatty():
            say(str(bar))

    def epoch(self, history: Sequence[dict[str, Any]], *, epochs: int, best: dict[str, Any]) -> None:
        """Tells the last line of `history`: {'epoch': ..., 'lr': ..., 'train': {...}, 'val': {...}}.

        Speed is that of the steps of the epoch that this process has done; there is none where it has only validated.
        """
        if not self.is_main:
            return
        line = history[-1]
        self._write_metrics(history)
        self._draw_curves(line)
        speed = ''
        if self._trained_clips:
            clips_per_second = self._trained_clips / self._train_seconds
            timing = {
                'epoch': line['epoch'],
                'train_seconds': self._train_seconds,
                'clips_per_second': clips_per_second,
                'waited_for_data': self._waited_seconds / self._train_seconds,
            }
            path = self.folder / 'timing.jsonl'
            with user_file(path, 'written'), path.open('a') as file:
                file.write(json.dumps(timing) + '\n')
            self._board.add_scalar('clips_per_second', clips_per_second, line['epoch'])
            speed = f'  {clips_per_second:.1f} clips/s'
        self._board.flush()
        train, val = line['train'], line['val']
        say(
            f'epoch {line["epoch"]}/{epochs}  train loss {train["loss"]:.4f} top1 {train["top1"]:6.2%}  '
            f'val loss {val["loss"]:.4f} top1 {val["top1"]:6.2%} top5 {val["top5"]:6.2%} '
            f'mean class {val["mean_class"]:6.2%}  best {best["top1"]:.2%} (epoch {best["epoch"]}){speed}'
        )

    def picture(self, name: str, image: np.ndarray) -> None:
        """Puts a picture (3, H, W), uint8, on TensorBoard."""
        if not self.is_main:
            return
        self._board.add_image(name, image)
        self._board.flush()

    def _draw_curves(self, line: dict[str, Any]) -> None:
        for split in ('train', 'val'):
            for name, value in line[split].items():
                self._board.add_scalar(f'{split}/{name}', value, line['epoch'])
        self._board.add_scalar('lr', line['lr'], line['epoch'])

    def _write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        write_text(self.folder / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in history))


def say(text: str) -> None:
    """Prints a line above a progress bar that may be running."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def say_no_more() -> None:
    """Silences this process, for of several that train together one tells for all. Errors are still told."""
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 closed with the process
    logging.disable()
    warnings.simplefilter('ignore')


def say_facts(facts: dict[str, str]) -> None:
    """Prints a run's facts, a line each."""
    for name, fact in facts.items():
        say(f'{name:<12}{fact}')


def metrics_line(metrics: dict[str, Any]) -> str:
    """The line that an evaluation prints."""
    return (
        f'Loss {metrics["loss"]:.4f} Acc@1 {100 * metrics["top1"]:.2f} Acc@5 {100 * metrics["top5"]:.2f} '
        f'MeanClass {100 * metrics["mean_class"]:.2f}'
    )
