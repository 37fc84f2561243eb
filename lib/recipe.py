"""The training recipe, independent of the framework: options, learning-rate schedule, seeds."""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from lib.errors import UserError, check_values


@dataclass(kw_only=True)
class Recipe:
    """Keys of section `train` shared by all models, see configs/README.md.

    Raises UserError, naming the key, for a value out of range.
    """

    epochs: int
    lr_schedule: Literal['step', 'cosine'] = 'step'
    lr_decay: float = 1.0
    lr_end: float = 0.0
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    seed: int = 0
    precision: Literal['fp32', 'tf32', 'bf16'] = 'fp32'
    accumulation_steps: int = 1
    compile: bool = False
    num_workers: int = 1
    save_every: int | None = 1000
    keep: int = 2
    finetune: bool = False

    def __post_init__(self) -> None:
        rules = {
            'epochs': (self.epochs >= 1, 'at least 1'),
            'lr_decay': (self.lr_decay > 0, 'above 0'),
            'lr_end': (0 <= self.lr_end <= 1, 'between 0 and 1'),
            'warmup_epochs': (0 <= self.warmup_epochs < self.epochs, f'0 or more, and below the {self.epochs} epochs'),
            'label_smoothing': (0 <= self.label_smoothing < 1, 'at least 0 and below 1'),
            'max_grad_norm': (self.max_grad_norm is None or self.max_grad_norm > 0, 'above 0, or null'),
            'accumulation_steps': (self.accumulation_steps >= 1, 'at least 1'),
            'num_workers': (self.num_workers >= 1, 'at least 1'),
            'save_every': (self.save_every is None or self.save_every >= 1, 'at least 1, or null'),
            'keep': (self.keep >= 1, 'at least 1'),
        }
        check_values('train', vars(self), rules)

    def check_batch_size(self, batch_size: int, num_devices: int) -> None:
        """Raises UserError if a batch cannot be divided equally among devices and micro-batches."""
        shares = num_devices * self.accumulation_steps
        if batch_size % shares:
            parts = f' times train.accumulation_steps {self.accumulation_steps}' if self.accumulation_steps > 1 else ''
            raise UserError(
                f'data.batch_size {batch_size}, over all devices, cannot be divided among {num_devices} '
                f'devices{parts}: set data.batch_size to a multiple of {shares}.'
            )

    def pretrained_file(self, args: argparse.Namespace, resumes: bool) -> Path | None:
        """The weights to start a new run from. Raises UserError if config and command line disagree."""
        if args.pretrained and not self.finetune:
            raise UserError('--pretrained is for fine-tuning, but train.finetune is false: --set train.finetune=true.')
        if resumes or not self.finetune:
            return None
        if not args.pretrained:
            raise UserError(
                'train.finetune is true: specify the pretrained weights with --pretrained FOLDER and --selection FILE.'
            )
        return Path(args.pretrained) / args.selection

    def saves_after(self, step: int) -> bool:
        """Whether to save after a step (counted from 0) of an epoch."""
        return self.save_every is not None and (step + 1) % self.save_every == 0

    def lr_factor(self, epoch: int, step: int, steps: int) -> float:
        """Factor on the learning rates in step `step` of an epoch of `steps`; epoch and step count from 0."""
        if epoch < self.warmup_epochs:
            return (epoch + (step + 1) / steps) / self.warmup_epochs
        if self.lr_schedule == 'cosine':
            done = (epoch + step / steps - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
            return self.lr_end + (1 - self.lr_end) * (1 + math.cos(math.pi * done)) / 2
        return self.lr_decay ** (epoch - self.warmup_epochs)


def cpu_has_bf16() -> bool:
    """Whether Linux reports bfloat16 instructions for this CPU."""
    try:
        info = Path('/proc/cpuinfo').read_text()
    except OSError:
        return False
    return re.search(r'^(flags|Features)\s*:.*\b(avx512_bf16|amx_bf16|bf16)\b', info, re.MULTILINE) is not None


def refuse_precision(precision: str, device: str) -> NoReturn:
    """Raises UserError for a train.precision that the device of this name lacks."""
    having = {'tf32': 'GPUs from Ampere on do', 'bf16': 'GPUs from Ampere on and CPUs with AVX512-BF16 or AMX do'}
    raise UserError(
        f'train.precision is {precision}, but {device} does not support it ({having[precision]}): set train.precision '
        'to fp32.'
    )


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Dropout seed of a step in one process, below 2**63."""
    state = np.random.SeedSequence([seed % 2**64, epoch, step, rank]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
