"""Building blocks of the PyTorch scripts: options, model, optimizer, training step, prediction."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from lib.pytorch import checkpoint, distributed, dstformer, vanilla
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.pretrained import freeze_backbone
from lib.pytorch.pretraining import MotionPretraining
from lib.recipe import Recipe, cpu_has_bf16, refuse_precision


@dataclass(kw_only=True)
class TrainOptions(Recipe):
    """Section `train`: the recipe, plus options of PyTorch models.

    partial_train: substrings of parameter names; other backbone parameters are frozen. null: train all. The head is
    always trained.
    activation_checkpointing: whether to recompute activations in the backward pass, which takes a third more time and
    much less memory.
    """

    partial_train: list[str] | None = None
    activation_checkpointing: bool = False

    def set_precision(self, device: torch.device) -> None:
        """Sets the precision of float32 matrix products in this process (bf16 acts in RenderAndClassify).

        Raises UserError if the device does not support the precision.
        """
        if device.type == 'cuda':
            lacks = self.precision != 'fp32' and torch.cuda.get_device_capability(device) < (8, 0)
        else:
            lacks = self.precision == 'tf32' or (self.precision == 'bf16' and not cpu_has_bf16())
        if lacks:
            refuse_precision(
                self.precision, torch.cuda.get_device_name(device) if device.type == 'cuda' else 'this CPU'
            )
        torch.set_float32_matmul_precision('high' if self.precision == 'tf32' else 'highest')


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


def make_optimizer(
    model: nn.Module, *, lr_backbone: float, lr_head: float, weight_decay: float, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """Section `optimizer`: AdamW on all trainable parameters, with learning rates for backbone and head (or decoder).

    layer_decay: factor on the learning rate for each layer above a parameter, see layers_above; 1: none.
    """
    values = {'lr_backbone': lr_backbone, 'lr_head': lr_head, 'weight_decay': weight_decay}
    rules = {key: (value >= 0, '0 or more') for key, value in values.items()}
    rules['layer_decay'] = (0 < layer_decay <= 1, 'above 0 and at most 1')
    check_values('optimizer', values | {'layer_decay': layer_decay}, rules)
    above = layers_above(name for name, _ in model.named_parameters())
    parameters = {}  # of each group, (part of the model, factor on its rate)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = 'head' if name.startswith(('head.', 'decoder_', 'mask_token')) else 'backbone'
            scale = 1.0 if part == 'head' else layer_decay ** above[name]
            parameters.setdefault((part, scale), []).append(parameter)
    groups = []
    for part, scale in sorted(parameters):  # the largest rate of the backbone last: that one is logged
        lr = scale * (lr_head if part == 'head' else lr_backbone)
        groups.append({'name': part, 'params': parameters[part, scale], 'lr': lr, 'initial_lr': lr})
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def layers_above(names: Iterable[str]) -> dict[str, int]:
    """Exponent of the layer decay for each parameter, as in MAMP (after BEiT).

    depth - i for block i of `depth` (`blocks.i`, or `blocks_st.i`, `blocks_ts.i` and `ts_attn.i` of DSTformer),
    depth + 1 for the embeddings, 0 for what follows the blocks.
    """
    blocks = {name: re.search(r'\b(?:blocks|blocks_st|blocks_ts|ts_attn)\.(\d+)\.', name) for name in names}
    depth = max((int(block[1]) + 1 for block in blocks.values() if block), default=0)
    return {
        name: depth - int(block[1]) if block else depth + 1 if '_embed' in name else 0 for name, block in blocks.items()
    }


class RenderAndClassify(nn.Module):
    """Renders heatmaps and classifies them, or classifies keypoints: (keypoint, score) -> logits (N, K) float32.

    In pretraining the output is errors (N, 2), see MotionPretraining.
    """

    def __init__(self, render: HeatmapRenderer | None, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.render, self.model = render, model
        self.dtype = torch.bfloat16 if precision == 'bf16' else torch.float32

    def forward(self, keypoint: Tensor, score: Tensor | None = None) -> Tensor:
        is_bf16 = self.dtype == torch.bfloat16
        with torch.autocast(keypoint.device.type, torch.bfloat16) if is_bf16 else contextlib.nullcontext():
            x = keypoint if self.render is None else self.render(keypoint, score, self.dtype)
            is_pretraining = isinstance(self.model, MotionPretraining)  # its targets are keypoints, for any input
            return (self.model(x, keypoint, score) if is_pretraining else self.model(x)).float()


def recompute_blocks(model: nn.Module) -> None:
    """Enables activation checkpointing of the transformer blocks."""
    for module in model.modules():
        if isinstance(module, dstformer.Block | vanilla.Block):
            module.forward = partial(activation_checkpoint, module.forward, use_reentrant=False)


def make_forward(
    render: HeatmapRenderer | None, model: nn.Module, options: TrainOptions, world: distributed.World
) -> nn.Module:
    """Combines renderer and model in one module, wrapped for `world` and compiled if options.compile is set.

    On one GPU compiled code runs as CUDA graphs, since kernel launches would limit small models. Each call overwrites
    the outputs and gradients of the one before, so that gradients cannot be accumulated.
    """
    forward = world.wrap(RenderAndClassify(render, model, options.precision))
    if not options.compile:
        return forward
    has_graphs = world.device.type == 'cuda' and world.size == 1 and options.accumulation_steps == 1
    return torch.compile(forward, mode='reduce-overhead' if has_graphs else 'default')


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


def classification_loss(
    forward: nn.Module, options: TrainOptions, label: Tensor, **inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a batch and the number of correct clips."""
    logits = forward(**inputs)
    loss = F.cross_entropy(logits, label, label_smoothing=options.label_smoothing)
    return loss, (logits.detach().argmax(1) == label).sum()


def train_step(
    forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    options: TrainOptions,
    size: int,
    seed: int,
    criterion: Callable[..., tuple[Tensor, Tensor]] = classification_loss,
) -> Tensor:
    """Trains on this process's share of a batch; returns [mean loss, correct clips] on the device.

    size: clips in a full share, which is split into `options.accumulation_steps` micro-batches. A short share is split
    into fewer, so that none is too small for batch norm. seed: for dropout. criterion: (forward, options, **batch) ->
    mean loss and number of correct clips.
    """
    torch.manual_seed(seed)
    optimizer.zero_grad()
    num_clips = len(batch['label'])
    parts = micro_batches(batch, max(1, num_clips * options.accumulation_steps // size))
    results = torch.zeros(2, device=batch['label'].device)
    for i, part in enumerate(parts):
        if options.compile:
            for tensor in part.values():
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # no recompilation for a short batch
        is_last = i == len(parts) - 1  # gradients are synchronised only once
        with contextlib.nullcontext() if is_last else getattr(forward, 'no_sync', contextlib.nullcontext)():
            loss, num_correct = criterion(forward, options, **part)
            loss = loss * (len(part['label']) / num_clips)
            loss.backward()
        results += torch.stack([loss.detach(), num_correct])
    if options.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group['params']], options.max_grad_norm
        )
    optimizer.step()
    return results


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
        # One view at a time, to save memory. A CUDA graph overwrites its output in the next call.
        parts = ({name: tensor[:, k] for name, tensor in batch.items()} for k in range(clips.num_views))
        views = [forward(**part).clone() for part in parts]
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
    volume = render(torch.from_numpy(keypoint).to(device), torch.from_numpy(score).to(device))
    return (volume.amax(1) if render.per_person else volume).cpu().numpy()


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
    TrainOptions(**config.train).set_precision(world.device)
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
