"""What the PyTorch scripts share: the parts of a run, an epoch of training, evaluation."""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from lib.config import Sections
from lib.data.clips import Clips
from lib.metrics import classification_metrics
from lib.pytorch import checkpoint
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.pretrained import freeze_backbone, load_backbone
from lib.recipe import Recipe
from lib.run import check_logits, check_losses, evaluation_config, make_clips, prefetched, report_evaluation
from lib.runlog import RunLog, say_facts
from lib.tools.preview import draw_clip

Forward = Callable[..., Tensor]


@dataclass(kw_only=True)
class TrainOptions(Recipe):
    """Section `train`: the recipe, and what is trained.

    finetune: whether a new run begins with the weights of `--pretrained FOLDER --selection FILE`.
    partial_train: parts of names; of the backbone only the parameters whose names hold one of them are trained, null
    for all. The head is trained in any case.
    """

    finetune: bool = False
    partial_train: list[str] | None = None


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def make_model(
    make: Callable[..., nn.Module], config: EasyDict, clips: Clips, device: torch.device
) -> tuple[HeatmapRenderer | None, nn.Module]:
    """The renderer, None for keypoint inputs, and the model with its first weights, on the device.

    Raises ValueError, naming the keys, where the model does not suit the clips.
    """
    torch.manual_seed(config.train.seed)
    model = make(**config.model)
    render = HeatmapRenderer(**config.heatmap).to(device) if 'heatmap' in config else None
    if render is None:
        num_joints, channels = clips.num_joints, 3
    else:
        num_joints, channels = render.num_channels(clips.num_joints), config.heatmap.size**2
    model.check_input(clip_len=config.data.clip_len, num_joints=num_joints, channels=channels)
    freeze_backbone(model, config.train.partial_train)
    return render, model.to(device)


def load_pretrained(
    model: nn.Module, options: TrainOptions, args: argparse.Namespace, run: checkpoint.Run
) -> list[str]:
    """Begins a new run with others' weights where the config says so; returns lines on what was loaded and what not.

    Raises ValueError where config and command line disagree about it, or the file does not suit the model.
    """
    if args.pretrained and not options.finetune:
        raise ValueError('--pretrained is for fine-tuning, but train.finetune is false: --set train.finetune=true.')
    if run.epoch or not options.finetune:
        return []
    if not args.pretrained:
        raise ValueError(
            'train.finetune is true: name the folder with the weights to begin with, --pretrained FOLDER, and by '
            '--selection the file in it.'
        )
    return load_backbone(model, Path(args.pretrained) / args.selection)


def make_optimizer(model: nn.Module, *, lr_backbone: float, lr_head: float, weight_decay: float) -> torch.optim.AdamW:
    """Section `optimizer`: AdamW over the parameters that train, with one learning rate each for backbone and head."""
    backbone, head = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (head if name.startswith('head.') else backbone).append(parameter)
    groups = [
        {'params': parameters, 'lr': lr, 'initial_lr': lr}
        for parameters, lr in ((backbone, lr_backbone), (head, lr_head))
    ]
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def make_forward(render: HeatmapRenderer | None, model: nn.Module, compile: bool) -> Forward:
    """(keypoint, score) -> logits: draws the volume on the device and classifies it; or (keypoint) -> logits."""

    def forward(keypoint: Tensor, score: Tensor | None = None) -> Tensor:
        return model(keypoint if render is None else render(keypoint, score))

    return torch.compile(forward) if compile else forward


def batches(clips: Clips, epoch: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The batches of an epoch on the device; the next one is made in a thread while the last one is at work."""

    def load(b: int) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(array) for name, array in clips[epoch, b].items()}
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if device.type == 'cuda' else batch

    for batch in prefetched(load, len(clips), 1):
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
    trained = [parameter for group in optimizer.param_groups for parameter in group['params']]
    losses, counts, correct = [], [], torch.zeros((), device=device)
    with log.progress(f'epoch {epoch + 1}/{options.epochs}', clips.clips_per_epoch) as bar:
        for b, batch in enumerate(batches(clips, epoch, device)):
            label = batch.pop('label')
            for group in optimizer.param_groups:
                group['lr'] = group['initial_lr'] * options.lr_factor(epoch, b, len(clips))
            torch.manual_seed(step_seed(options.seed, epoch, b))
            logits = forward(**batch)
            loss = F.cross_entropy(logits, label, label_smoothing=options.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if options.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            optimizer.step()
            losses.append(loss.detach())
            counts.append(len(logits))
            correct += (logits.detach().argmax(1) == label).sum()
            bar.update(counts[-1])
            if (b + 1) % print_freq == 0 or b + 1 == len(clips):
                values = torch.stack(losses).double().cpu().numpy()
                check_losses(values, clips, epoch)
                mean_loss = float(np.average(values, weights=counts))
                top1 = float(correct) / sum(counts)
                log.report(bar, f'loss {mean_loss:.4f}, top1 {top1:.2%}')
    return {'loss': mean_loss, 'top1': top1}


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of a step's dropout."""
    return int(np.random.SeedSequence([seed % 2**64, epoch, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@torch.inference_mode()
def predict(forward: Forward, model: nn.Module, clips: Clips, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) float32 and labels (N,) of all clips of a split, in the order of the split.

    Of a clip with several views: the logarithm of the mean of their probabilities. Raises FloatingPointError, naming
    the clip, where a logit is not finite.
    """
    model.eval()
    logits, labels = [], []
    for batch in batches(clips, 0, device):
        labels.append(batch.pop('label'))
        if clips.num_views > 1:  # one after the other: no more memory than one view takes
            views = [
                forward(**{name: tensor[:, k] for name, tensor in batch.items()}).float().log_softmax(-1)
                for k in range(clips.num_views)
            ]
            logits.append(torch.stack(views).logsumexp(0) - math.log(clips.num_views))
        else:
            logits.append(forward(**batch).float())
    logits = torch.cat(logits).cpu().numpy()
    check_logits(logits, clips)
    return logits, torch.cat(labels).cpu().numpy()


def validate(forward: Forward, model: nn.Module, clips: Clips, device: torch.device) -> dict[str, float]:
    """{'loss', 'top1', 'top5', 'mean_class'} of a split."""
    metrics = classification_metrics(*predict(forward, model, clips, device))
    del metrics['per_class']
    return metrics


def open_log(
    run: checkpoint.Run,
    options: TrainOptions,
    train_clips: Clips,
    val_clips: Clips,
    render: HeatmapRenderer | None,
    model: nn.Module,
    pretrained: list[str],
    device: torch.device,
) -> RunLog:
    """The log of a run (see Run.open_log), with a picture of a test clip's heatmaps."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    described = f'{type(model).__name__}, {parameters:,} parameters, of which {trained:,} are trained'
    picture = None if render is None else draw_clip(val_clips, render.kind, partial(draw, render, device))
    return run.open_log(options, train_clips, val_clips, described, str(device), picture, pretrained)


def draw(render: HeatmapRenderer, device: torch.device, keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The volume (N,T,V,H,W) of a batch, all in NumPy."""
    return render(torch.from_numpy(keypoint).to(device), torch.from_numpy(score).to(device)).cpu().numpy()


def evaluate(args: argparse.Namespace, kind: str, sections: Sections, default_config: str) -> None:
    """Evaluates the checkpoint `args.evaluate`, prints the metrics and writes evaluation.json.

    A checkpoint of this project brings its config along. To others' weights (MotionBERT's, the original project's)
    belongs the config that the command names.
    """
    path = Path(args.evaluate)
    saved = checkpoint.load_any(path, kind)
    config = evaluation_config(args, saved['config'], sections, default_config)
    device = default_device()
    clips = make_clips(config, 'val')
    render, model = make_model(sections['model'], config, clips, device)
    checkpoint.load_weights(model, saved['model'], path)
    foreign = f'not of this project; config {args.config or default_config}'
    origin = f'epoch {saved["epoch"]}' if saved['config'] else foreign
    say_facts({'data': clips.description, 'val': clips.split_description, 'checkpoint': f'{path}, {origin}'})
    forward = make_forward(render, model, config.train.compile)
    parameters = sum(p.numel() for p in model.parameters())
    report_evaluation(args, kind, saved['epoch'], parameters, clips, *predict(forward, model, clips, device))
