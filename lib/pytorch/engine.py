"""One epoch of training, one pass of evaluation, and what they need."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.clips import Clips
from lib.pytorch.heatmap import HeatmapRenderer
from lib.runlog import RunLog

Forward = Callable[[Tensor, Tensor], Tensor]


@dataclass(kw_only=True)
class TrainOptions:
    """Section `train`. The learning rates are multiplied by lr_decay after each epoch; seed is for weights and dropout.

    compile: whether the model and the renderer run through torch.compile (needs a C++ compiler on a CPU).
    """

    epochs: int
    lr_decay: float = 1.0
    seed: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr_decay <= 0:
            raise ValueError(
                f'train.epochs {self.epochs} must be at least 1 and train.lr_decay {self.lr_decay} above 0.'
            )


def make_optimizer(model: nn.Module, *, lr_backbone: float, lr_head: float, weight_decay: float) -> torch.optim.AdamW:
    """Section `optimizer`: AdamW over the parameters that train, with one learning rate each for backbone and head."""
    groups = [
        {'params': [p for p in module.parameters() if p.requires_grad], 'lr': lr, 'initial_lr': lr}
        for module, lr in ((model.backbone, lr_backbone), (model.head, lr_head))
    ]
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def make_forward(render: HeatmapRenderer, model: nn.Module, compile: bool) -> Forward:
    """(keypoint, score) -> logits: draws the volume on the device and classifies it."""

    def forward(keypoint: Tensor, score: Tensor) -> Tensor:
        return model(render(keypoint, score))

    return torch.compile(forward) if compile else forward


def batches(clips: Clips, epoch: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The batches of an epoch on the device; the next one is made in a thread while the last one is at work."""

    def load(b: int) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(array) for name, array in clips[epoch, b].items()}
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if device.type == 'cuda' else batch

    with ThreadPoolExecutor(max_workers=1) as loader:
        ahead = loader.submit(load, 0)
        for b in range(len(clips)):
            batch = ahead.result()
            if b + 1 < len(clips):
                ahead = loader.submit(load, b + 1)
            yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def train_one_epoch(
    forward: Forward,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clips: Clips,
    epoch: int,
    options: TrainOptions,
    device: torch.device,
    log: RunLog,
    print_freq: int,
) -> dict[str, float]:
    """Trains on every clip once; returns the means over the epoch, {'loss', 'top1'}.

    Dropout of a step is a function of (seed, epoch, step). The device is waited for only when a line is printed.
    Raises FloatingPointError, naming step and clips, where the loss is not finite.
    """
    model.train()
    for group in optimizer.param_groups:
        group['lr'] = group['initial_lr'] * options.lr_decay**epoch
    losses, counts, correct = [], [], torch.zeros((), device=device)
    with log.progress(f'epoch {epoch + 1}/{options.epochs}', clips.clips_per_epoch) as bar:
        for b, batch in enumerate(batches(clips, epoch, device)):
            torch.manual_seed(step_seed(options.seed, epoch, b))
            logits = forward(batch['keypoint'], batch['score'])
            loss = F.cross_entropy(logits, batch['label'])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            counts.append(len(logits))
            correct += (logits.detach().argmax(1) == batch['label']).sum()
            bar.update(counts[-1])
            if (b + 1) % print_freq == 0 or b + 1 == len(clips):
                values = torch.stack(losses).double().cpu()
                check_finite(values, clips, epoch)
                mean_loss = float(np.average(values, weights=counts))
                top1 = float(correct) / sum(counts)
                log.report(bar, f'loss {mean_loss:.4f}, top1 {top1:.2%}')
    return {'loss': mean_loss, 'top1': top1}


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of a step's dropout."""
    return int(np.random.SeedSequence([seed % 2**64, epoch, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def check_finite(losses: Tensor, clips: Clips, epoch: int) -> None:
    """Raises FloatingPointError for the first loss of an epoch's steps that is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FloatingPointError(
            f'the loss became {losses[step]} in epoch {epoch + 1}, step {step + 1} of {len(clips)}, with the clips '
            f'{" ".join(clips.names(epoch, step))}. The last good checkpoint stays as it is. A lower learning rate '
            'may help.'
        )


@torch.inference_mode()
def evaluate(forward: Forward, model: nn.Module, clips: Clips, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) float32 and labels (N,) of all clips of a split, in the order of the split.

    Raises FloatingPointError, naming the clip, where a logit is not finite.
    """
    model.eval()
    logits, labels = [], []
    for batch in batches(clips, 0, device):
        logits.append(forward(batch['keypoint'], batch['score']).float())
        labels.append(batch['label'])
    logits = torch.cat(logits).cpu().numpy()
    bad = (~np.isfinite(logits)).any(axis=1)
    if bad.any():
        name = clips.store.name(clips.clips[bad.argmax()])
        raise FloatingPointError(f'the scores of {bad.sum()} clips of {clips.list_name} are not finite, first {name}.')
    return logits, torch.cat(labels).cpu().numpy()
