"""Building blocks of the PyTorch scripts: options, model, optimizer, training step, prediction."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as activation_checkpoint

from lib.data.batches import pad_batch, prefetch
from lib.data.clips import Clips
from lib.errors import UserError, check_values
from lib.evaluation import scores_of
from lib.log import Log
from lib.models import MODELS
from lib.plots import clip_image
from lib.pytorch import checkpoint, distributed
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.pretrained import freeze_backbone
from lib.recipe import Recipe, cpu_has_bf16, refuse_bf16


@dataclass(kw_only=True)
class TrainOptions(Recipe):
    """Section `train`: the recipe, plus options of PyTorch models.

    mixup: alpha of mixup (see `mix`); 0 disables it.
    partial_train: substrings of parameter names; other backbone parameters are frozen. null: train all. The head is
    always trained.
    activation_checkpointing: whether to recompute activations in the backward pass, which takes a third more time and
    much less memory.
    """

    mixup: float = 0.0
    partial_train: list[str] | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_values('train', vars(self), {'mixup': (self.mixup >= 0, '0 or more')})

    def check_device(self, device: torch.device) -> None:
        """Raises UserError if the device does not support the precision."""
        if self.precision == 'bf16' and not (
            torch.cuda.is_bf16_supported(including_emulation=False) if device.type == 'cuda' else cpu_has_bf16()
        ):
            refuse_bf16(torch.cuda.get_device_name(device) if device.type == 'cuda' else 'this CPU')


def make_model(config: EasyDict, num_joints: int, device: torch.device) -> tuple[HeatmapRenderer | None, nn.Module]:
    """Creates the renderer (None for keypoint inputs) and the model of config.script on the device.

    num_joints: joints per person. Raises UserError, naming the keys, if the model does not fit the input.
    """
    torch.manual_seed(config.train.seed)
    model = MODELS[config.script].load_classifier()(**config.model)
    render = HeatmapRenderer(**config.heatmap).to(device) if 'heatmap' in config else None
    if render is None:
        model.check_input(clip_len=config.data.clip_len, num_joints=num_joints, dim_in=3)
    else:
        num_maps, num_pixels = render.num_maps(num_joints), config.heatmap.size**2
        model.check_input(clip_len=config.data.clip_len, num_joints=num_maps, dim_in=num_pixels)
    freeze_backbone(model, config.train.partial_train)
    return render, model.to(device)


def check_batch_norm(model: nn.Module, options: TrainOptions, batch_size: int, world: distributed.World) -> None:
    """Raises UserError if batch norm would see a single clip, whose variance is zero."""
    clips = batch_size // options.accumulation_steps
    if world.device.type == 'cpu':  # each process normalises its own clips
        clips //= world.size
    if clips < 2 and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        raise UserError(
            f'data.batch_size {batch_size} is too small: batch norm needs at least 2 clips. Set data.batch_size '
            f'to {2 * batch_size // max(clips, 1)} or more.'
        )


def make_optimizer(model: nn.Module, *, lr_backbone: float, lr_head: float, weight_decay: float) -> torch.optim.AdamW:
    """Section `optimizer`: AdamW on all trainable parameters, with learning rates for backbone and head."""
    values = {'lr_backbone': lr_backbone, 'lr_head': lr_head, 'weight_decay': weight_decay}
    check_values('optimizer', values, {key: (value >= 0, '0 or more') for key, value in values.items()})
    backbone, head = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (head if name.startswith('head.') else backbone).append(parameter)
    groups = [
        {'name': name, 'params': parameters, 'lr': lr, 'initial_lr': lr}
        for name, parameters, lr in (('backbone', backbone, lr_backbone), ('head', head, lr_head))
        if parameters
    ]
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


class RenderAndClassify(nn.Module):
    """Renders heatmaps and classifies them, or classifies keypoints: (keypoint, score) -> logits (N, K) float32."""

    def __init__(self, render: HeatmapRenderer | None, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.render, self.model = render, model
        self.dtype = torch.bfloat16 if precision == 'bf16' else torch.float32

    def forward(self, keypoint: Tensor, score: Tensor | None = None) -> Tensor:
        with torch.autocast(keypoint.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.model(keypoint if self.render is None else self.render(keypoint, score, self.dtype)).float()


def recompute_blocks(model: nn.Module, script: str) -> None:
    """Enables activation checkpointing of the model's blocks. Raises UserError if lib/models.py lists none for it."""
    if MODELS[script].blocks is None:
        raise UserError(f'train.activation_checkpointing is not supported by {script}: set it to false.')
    block = MODELS[script].load_blocks()
    for module in model.modules():
        if isinstance(module, block):
            module.forward = partial(activation_checkpoint, module.forward, use_reentrant=False)


def make_forward(
    render: HeatmapRenderer | None, model: nn.Module, options: TrainOptions, world: distributed.World
) -> nn.Module:
    """Combines renderer and model in one module, wrapped for `world` and compiled if options.compile is set."""
    forward = world.wrap(RenderAndClassify(render, model, options.precision))
    return torch.compile(forward) if options.compile else forward


def load_batches(
    clips: Clips, epoch: int, options: TrainOptions, world: distributed.World, first: int = 0, pad_to: int = 0
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yields (step, this process's share of the batch, on the device) for the steps of an epoch from `first` on.

    pad_to: minimum clips per share, see pad_batch. Threads prepare the next batches, in pinned memory for GPUs.
    """

    def load(b: int) -> tuple[int, dict[str, Tensor]]:
        batch = {name: torch.from_numpy(array) for name, array in pad_batch(clips[epoch, b], pad_to).items()}
        return b, {name: t.pin_memory() for name, t in batch.items()} if world.device.type == 'cuda' else batch

    for b, batch in prefetch(load, range(first, clips.num_steps), options.num_workers):
        yield b, {name: tensor.to(world.device, non_blocking=True) for name, tensor in batch.items()}


def train_step(
    forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    options: TrainOptions,
    size: int,
    seed: int,
) -> Tensor:
    """Trains on this process's share of a batch; returns [mean loss, correct clips] on the device.

    size: clips in a full share, which is split into `options.accumulation_steps` micro-batches. A short share is split
    into fewer, so that none is too small for batch norm. seed: for dropout and mixup. With mixup, a clip is correct if
    the heavier one of the two is recognised.
    """
    torch.manual_seed(seed)
    optimizer.zero_grad()
    num_clips = len(batch['label'])
    batch, weight = mix(batch, options.mixup, seed) if options.mixup else (batch, 1.0)
    parts = micro_batches(batch, max(1, num_clips * options.accumulation_steps // size))
    results = torch.zeros(2, device=batch['label'].device)
    for i, part in enumerate(parts):
        label, other_label = part.pop('label'), part.pop('other_label', None)
        if options.compile:
            for tensor in part.values():
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # no recompilation for a short batch
        is_last = i == len(parts) - 1  # gradients are synchronised only once
        with contextlib.nullcontext() if is_last else getattr(forward, 'no_sync', contextlib.nullcontext)():
            logits = forward(**part)
            loss = F.cross_entropy(logits, label, label_smoothing=options.label_smoothing)
            if other_label is not None:
                other_loss = F.cross_entropy(logits, other_label, label_smoothing=options.label_smoothing)
                loss = weight * loss + (1 - weight) * other_loss
            loss = loss * (len(label) / num_clips)
            loss.backward()
        results += torch.stack([loss.detach(), (logits.detach().argmax(1) == label).sum()])
    if options.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group['params']], options.max_grad_norm
        )
    optimizer.step()
    return results


def mix(batch: dict[str, Tensor], alpha: float, seed: int) -> tuple[dict[str, Tensor], float]:
    """Mixup (Zhang et al., ICLR 2018): mixes each clip of a shuffled batch with the one before it.

    Heatmaps: both clips are drawn into one map, as 2 M persons with weighted scores. Keypoints: weighted means of the
    coordinates and so of their embeddings, because the models embed linearly.
    Returns the batch with 'other_label', and the weight of 'label': the greater of lambda ~ Beta(alpha, alpha) and
    1 - lambda, which only exchanges the roles of the two clips. Drawn on the host, so that the device does not wait.
    """
    weight = np.random.default_rng(seed).beta(alpha, alpha)
    weight = max(weight, 1 - weight)
    other = {name: tensor.roll(1, 0) for name, tensor in batch.items()}
    if 'score' in batch:
        keypoint = torch.cat([batch['keypoint'], other['keypoint']], dim=1)
        score = torch.cat([weight * batch['score'], (1 - weight) * other['score']], dim=1)
        mixed = {'keypoint': keypoint, 'score': score}
    else:
        mixed = {'keypoint': weight * batch['keypoint'] + (1 - weight) * other['keypoint']}
    return {**mixed, 'label': batch['label'], 'other_label': other['label']}, weight


def micro_batches(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Splits a batch into `count` parts of nearly equal size."""
    parts = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
    return [{name: tensors[i] for name, tensors in parts.items()} for i in range(count)]


def set_learning_rates(
    optimizer: torch.optim.Optimizer, options: TrainOptions, epoch: int, step: int, steps: int
) -> None:
    """Sets the learning rates for a step (see Recipe.lr_factor)."""
    for group in optimizer.param_groups:
        group['lr'] = group['initial_lr'] * options.lr_factor(epoch, step, steps)


@torch.inference_mode()
def predict(
    forward: nn.Module,
    model: nn.Module,
    clips: Clips,
    options: TrainOptions,
    world: distributed.World,
    after_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Predicts logits (N, views, K) float32 for a split, in dataset order; every process returns the full array.

    Each process computes its share of each batch, padded to a fixed size. after_batch: called after each batch.
    """
    model.eval()
    share_size = math.ceil(clips.batch_size / world.size)
    logits = []
    for _, batch in load_batches(clips, 0, options, world, pad_to=share_size):
        del batch['label']
        if clips.num_views == 1:
            batch = {name: tensor[:, None] for name, tensor in batch.items()}
        # One view at a time, to save memory.
        views = [forward(**{name: tensor[:, k] for name, tensor in batch.items()}) for k in range(clips.num_views)]
        logits.append(torch.stack(views, dim=1))
        after_batch()
    # Clip i of a batch is clip i // size of process i % size.
    gathered = rearrange(world.gather(torch.stack(logits)), 'rank b i view k -> b (i rank) view k')
    return gathered[:, : clips.batch_size].flatten(0, 1)[: clips.num_clips].cpu().numpy()


def describe(model: nn.Module) -> str:
    """Class and number of parameters, for the log."""
    total, trained = count_parameters(model)
    return f'{type(model).__name__}, {total:,} parameters, {trained:,} trainable'


def log_heatmaps(log: Log, render: HeatmapRenderer | None, clips: Clips) -> None:
    """Logs an image of the first clip's heatmaps, if the model uses heatmaps."""
    if render is not None:
        log.image(*clip_image(clips, render.kind, partial(draw, render)))


def draw(render: HeatmapRenderer, keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Renders a NumPy batch to a NumPy volume (N,T,C,H,W)."""
    device = render.tap_row.device
    return render(torch.from_numpy(keypoint).to(device), torch.from_numpy(score).to(device)).cpu().numpy()


def load_model(
    config: EasyDict,
    num_joints: int,
    weights: Mapping[str, Tensor],
    path: Path,
    world: distributed.World,
) -> tuple[HeatmapRenderer | None, nn.Module]:
    """Creates renderer and model and loads `weights`, those of the checkpoint `path`, for evaluation.

    Raises UserError if the device does not support the precision, or weights or joints do not fit the model.
    """
    TrainOptions(**config.train).check_device(world.device)
    render, model = make_model(config, num_joints, world.device)
    checkpoint.load_weights(model, weights, path)
    return render, model.eval()


def classify(
    render: HeatmapRenderer | None, model: nn.Module, config: EasyDict, clips: Clips, world: distributed.World
) -> np.ndarray:
    """Predicts scores (N, K) for a split (see lib.evaluation.scores_of)."""
    options = TrainOptions(**config.train)
    forward = make_forward(render, model, options, world)
    return scores_of(predict(forward, model, clips.for_rank(world.rank, world.size), options, world), clips)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of parameters and of trained parameters."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
