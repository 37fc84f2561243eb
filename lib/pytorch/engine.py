"""What the PyTorch scripts share: the parts of a run, an epoch of training, evaluation."""

import argparse
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

from lib.config import Sections
from lib.data.clips import Clips
from lib.errors import UserError
from lib.evaluation import report_evaluation
from lib.log import Log, say_facts
from lib.metrics import classification_metrics
from lib.pictures import draw_clip
from lib.pytorch import checkpoint, distributed, dstformer, vanilla
from lib.pytorch.distributed import GlobalBatchNorm1d, World
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.pretrained import freeze_backbone, load_backbone
from lib.recipe import Recipe, cpu_has_bf16
from lib.run import evaluation_config
from lib.stop import StopSignal
from lib.training import check_logits, check_losses, make_clips, pad_batch, prefetch

# Repeated in backward() instead of kept, with train.activation_checkpointing.
CHECKPOINTED = (dstformer.Block, vanilla.Block)


@dataclass(kw_only=True)
class TrainOptions(Recipe):
    """Section `train`: the recipe, and what is trained.

    finetune: whether a new run begins with the weights of `--pretrained FOLDER --selection FILE`.
    partial_train: parts of names; of the backbone only the parameters whose names hold one of them are trained, null
    for all. The head is trained in any case.
    activation_checkpointing: whether a block's inner results are computed again in the backward pass instead of kept,
    which takes a third more time and much less memory.
    """

    finetune: bool = False
    partial_train: list[str] | None = None
    activation_checkpointing: bool = False

    def check_device(self, device: torch.device) -> None:
        """Raises UserError where the device does not have the precision."""
        if self.precision == 'bf16' and not (
            torch.cuda.is_bf16_supported(including_emulation=False) if device.type == 'cuda' else cpu_has_bf16()
        ):
            name = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'this CPU'
            raise UserError(
                f'train.precision is bf16, but {name} does not compute in bfloat16 (GPUs do from Ampere on, CPUs with '
                'AVX512-BF16 or AMX): set train.precision to fp32.'
            )


def make_model(
    make: Callable[..., nn.Module], config: EasyDict, num_joints: int, device: torch.device
) -> tuple[HeatmapRenderer | None, nn.Module]:
    """The renderer, None for keypoint inputs, and the model with its first weights, on the device.

    num_joints: those of a person in a batch (see Clips). Raises UserError, naming the keys, where the model does not
    suit them.
    """
    torch.manual_seed(config.train.seed)
    model = make(**config.model)
    render = HeatmapRenderer(**config.heatmap).to(device) if 'heatmap' in config else None
    channels = 3
    if render is not None:
        num_joints, channels = render.num_channels(num_joints), config.heatmap.size**2
    model.check_input(clip_len=config.data.clip_len, num_joints=num_joints, channels=channels)
    freeze_backbone(model, config.train.partial_train)
    return render, model.to(device)


def check_batch_norm(model: nn.Module, options: TrainOptions, batch_size: int) -> None:
    """Raises UserError where a model with batch norm would see one clip at a time, which has no spread to norm by."""
    parts = options.accumulation_steps
    if batch_size // parts < 2 and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        in_parts = f' in train.accumulation_steps {parts}' if parts > 1 else ''
        raise UserError(
            f'data.batch_size {batch_size}{in_parts} is too small: batch norm takes 2 clips or more at once. Set '
            f'data.batch_size to {2 * parts} or more.'
        )


def load_pretrained(
    model: nn.Module, options: TrainOptions, args: argparse.Namespace, run: checkpoint.Run
) -> list[str]:
    """Begins a new run with others' weights where the config says so; returns lines on what was loaded and what not.

    Raises UserError where config and command line disagree about it, or the file does not suit the model.
    """
    if args.pretrained and not options.finetune:
        raise UserError('--pretrained is for fine-tuning, but train.finetune is false: --set train.finetune=true.')
    if run.source or not options.finetune:
        return []
    if not args.pretrained:
        raise UserError(
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
        {'name': name, 'params': parameters, 'lr': lr, 'initial_lr': lr}
        for name, parameters, lr in (('backbone', backbone, lr_backbone), ('head', head, lr_head))
        if parameters
    ]
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


class Forward(nn.Module):
    """(keypoint, score) -> logits (N, K) float32: draws the volume on the device and classifies it; or (keypoint)."""

    def __init__(self, render: HeatmapRenderer | None, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.render, self.model = render, model
        self.dtype = torch.bfloat16 if precision == 'bf16' else torch.float32

    def forward(self, keypoint: Tensor, score: Tensor | None = None) -> Tensor:
        with torch.autocast(keypoint.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.model(keypoint if self.render is None else self.render(keypoint, score, self.dtype)).float()


def make_forward(render: HeatmapRenderer | None, model: nn.Module, options: TrainOptions, world: World) -> nn.Module:
    """Renderer and model as one module (see Forward), for all processes of `world`, compiled if `options` say so."""
    if options.activation_checkpointing:
        for module in model.modules():
            if isinstance(module, CHECKPOINTED):
                module.forward = partial(activation_checkpoint, module.forward, use_reentrant=False)
    forward = world.wrap(Forward(render, model, options.precision))
    return torch.compile(forward) if options.compile else forward


def batches(
    clips: Clips, epoch: int, device: torch.device, num_workers: int, first: int = 0, at_least: int = 1
) -> Iterator[dict[str, Tensor]]:
    """The batches of an epoch on the device; the next ones are made in threads while the last one is at work.

    first: which of them to begin with. at_least: clips to which smaller batches are filled up, with zeros.
    """

    def load(b: int) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(array) for name, array in pad_batch(clips[epoch, b], at_least).items()}
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if device.type == 'cuda' else batch

    for batch in prefetch(load, range(first, len(clips)), num_workers):
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def train_one_epoch(
    forward: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clips: Clips,
    run: checkpoint.Run,
    options: TrainOptions,
    world: World,
    log: Log,
    stop: StopSignal,
) -> dict[str, float]:
    """Trains on every clip of the run's epoch that is left; returns the means over the epoch, {'loss', 'top1'}.

    Every process works on its share of each batch; the step is that of the mean loss over the whole batch. Dropout is
    a function of (seed, epoch, step, rank). The device is waited for only when a line is printed or the run is saved.
    Raises FloatingPointError, naming step and clips, where the loss is not finite, and Stopped, the run saved, where it
    was asked to stop.
    """
    model.train()
    trained = [parameter for group in optimizer.param_groups for parameter in group['params']]
    epoch, steps, done = run.epoch, len(clips), run.step
    counts = clips.batch_sizes
    losses, correct = [], torch.zeros((), device=world.device)
    share, vote = clips.shared(world.rank, world.size), world.vote()
    norms = [module for module in model.modules() if isinstance(module, GlobalBatchNorm1d)]
    set_learning_rates(optimizer, options, epoch, max(done - 1, 0), steps)  # of a run that has its last step behind it
    left = batches(share, epoch, world.device, options.num_workers, first=done)
    with log.progress(sum(counts), sum(counts[:done])) as bar:
        for b, batch in enumerate(log.timed(left), done):
            has_share = world.rank < counts[b]  # else its one clip is a filling, there to keep step with the others
            for norm in norms:
                norm.counted = has_share
            set_learning_rates(optimizer, options, epoch, b, steps)
            torch.manual_seed(step_seed(options.seed, epoch, b, world.rank))
            optimizer.zero_grad()
            loss = torch.zeros((), device=world.device)
            # Of a short last batch fewer parts, so that none gets too small for batch norm.
            parts = split(batch, max(1, counts[b] * options.accumulation_steps // clips.batch_size))
            for i, part in enumerate(parts):
                label = part.pop('label') if has_share else part.pop('label')[:0]
                synchronised = world.size == 1 or i == len(parts) - 1
                with contextlib.nullcontext() if synchronised else forward.no_sync():
                    if options.compile:
                        for tensor in part.values():
                            torch._dynamo.maybe_mark_dynamic(tensor, 0)  # a short batch needs no graph of its own
                    logits = forward(**part)[: len(label)]
                    sum_of_losses = F.cross_entropy(
                        logits, label, label_smoothing=options.label_smoothing, reduction='sum'
                    )
                    # DDP takes the mean of the processes' gradients; what is wanted is their sum.
                    (sum_of_losses * (world.size / counts[b])).backward()
                loss += sum_of_losses.detach() / counts[b]
                correct += (logits.detach().argmax(1) == label).sum()
            if options.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            optimizer.step()
            losses.append(loss)
            bar.update(counts[b])

            to_exit, to_save, to_report = vote(stop.requested), options.saves_after(b), log.is_due(b, steps)
            if to_report or to_save or to_exit:
                values = world.sum(torch.stack(losses)).tolist()
                check_losses(values, clips, epoch, run.step)
                run.add_steps(values, counts[run.step : b + 1], int(world.sum(correct)))
                losses, correct = [], torch.zeros_like(correct)
            if to_report:
                log.report(bar, **run.means(sum(counts[: b + 1])))
            if to_exit:
                run.save_and_exit(world)
            if to_save:
                run.save()
    return run.means(sum(counts))


def set_learning_rates(
    optimizer: torch.optim.Optimizer, options: TrainOptions, epoch: int, step: int, steps: int
) -> None:
    """Gives an optimizer the rates of a step (see Recipe.lr_factor)."""
    for group in optimizer.param_groups:
        group['lr'] = group['initial_lr'] * options.lr_factor(epoch, step, steps)


def split(batch: dict[str, Tensor], num_parts: int) -> list[dict[str, Tensor]]:
    """A batch in parts of as many clips each, as far as it goes."""
    parts = {name: tensor.tensor_split(num_parts) for name, tensor in batch.items()}
    return [{name: tensors[i] for name, tensors in parts.items()} for i in range(num_parts)]


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """The seed of a step's dropout in a process."""
    state = np.random.SeedSequence([seed % 2**64, epoch, step, rank]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@torch.inference_mode()
def predict(
    forward: nn.Module,
    model: nn.Module,
    clips: Clips,
    options: TrainOptions,
    world: World,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) float32 and labels (N,) of all clips of a split, in the order of the split, in every process.

    Each process predicts its share of each batch, filled up to one size. Of a clip with several views: the logarithm of
    the mean of their probabilities. Raises FloatingPointError, naming the clip, where a logit is not finite.
    """
    model.eval()
    share = clips.shared(world.rank, world.size)
    share_size = math.ceil(clips.batch_size / world.size)
    logits = []
    for batch in batches(share, 0, world.device, options.num_workers, at_least=share_size):
        del batch['label']
        if clips.num_views > 1:  # one after the other: no more memory than one view takes
            views = [
                forward(**{name: tensor[:, k] for name, tensor in batch.items()}).log_softmax(-1)
                for k in range(clips.num_views)
            ]
            logits.append(torch.stack(views).logsumexp(0) - math.log(clips.num_views))
        else:
            logits.append(forward(**batch))
        after_batch()
    # Clip i of a batch is clip i // size of process i % size.
    logits = rearrange(world.gather(torch.stack(logits)), 'rank b i k -> b (i rank) k')[:, : clips.batch_size]
    logits = logits.flatten(0, 1)[: clips.num_clips].cpu().numpy()
    check_logits(logits, clips)
    return logits, clips.store.label[clips.clips]


def validate(
    forward: nn.Module,
    model: nn.Module,
    clips: Clips,
    run: checkpoint.Run,
    options: TrainOptions,
    world: World,
    stop: StopSignal,
) -> dict[str, float]:
    """{'loss', 'top1', 'top5', 'mean_class'} of a split. Raises Stopped, with the run saved, on a stop signal."""

    def check_stop() -> None:
        if stop.requested and world.is_alone:  # several processes would have to agree: they finish the validation
            run.save_and_exit(world)

    logits, label = predict(forward, model, clips, options, world, check_stop)
    metrics = classification_metrics(logits, label)
    del metrics['per_class']
    return metrics


def start_log(
    log: Log,
    train_clips: Clips,
    val_clips: Clips,
    render: HeatmapRenderer | None,
    model: nn.Module,
    messages: list[str],
    world: World,
) -> None:
    """Logs what is about to run, and an image of a validation clip's heatmaps."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    described = f'{type(model).__name__}, {count_parameters(model):,} parameters, {trained:,} of them trained'
    log.start(train_clips, val_clips, described, world.description, messages)
    if render is not None:
        log.image(*draw_clip(val_clips, render.kind, partial(draw, render, world.device)))


def draw(render: HeatmapRenderer, device: torch.device, keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The volume (N,T,V,H,W) of a batch, all in NumPy."""
    return render(torch.from_numpy(keypoint).to(device), torch.from_numpy(score).to(device)).cpu().numpy()


def load_model(
    sections: Sections, config: EasyDict, num_joints: int, weights: Mapping[str, Tensor], path: Path, world: World
) -> tuple[HeatmapRenderer | None, nn.Module]:
    """Renderer and model as make_model has them, with the weights of the checkpoint `path`, for evaluation.

    Raises UserError where the device does not have the precision, or the model does not suit weights or joints.
    """
    TrainOptions(**config.train).check_device(world.device)
    render, model = make_model(sections['model'], config, num_joints, world.device)
    checkpoint.load_weights(model, weights, path)
    return render, model.eval()


def classify(
    render: HeatmapRenderer | None, model: nn.Module, config: EasyDict, clips: Clips, world: World
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) and labels (N,) of all clips of a split (see predict)."""
    options = TrainOptions(**config.train)
    return predict(make_forward(render, model, options, world), model, clips, options, world)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def evaluate(args: argparse.Namespace, kind: str, sections: Sections, default_config: str) -> None:
    """Evaluates the checkpoint `args.evaluate`, prints the metrics and writes what report_evaluation does.

    A checkpoint of this project brings its config along. To others' weights (MotionBERT's, the original project's)
    belongs the config that the command names.
    """
    path = Path(args.evaluate)
    saved = checkpoint.load(path, kind)
    named = args.config if saved['config'] else args.config or default_config
    config, world = evaluation_config(path, saved['config'], sections, args.set, named), distributed.init()
    clips = make_clips(config, 'val')
    render, model = load_model(sections, config, clips.num_joints, saved['model'], path, world)
    origin = f'epoch {saved["epoch"]}' if saved['config'] else f'not of this project; config {named}'
    say_facts({'data': clips.description, 'val': clips.split_description, 'checkpoint': f'{path}, {origin}'})
    logits, labels = classify(render, model, config, clips, world)
    if world.is_main:
        about = {'checkpoint': str(path), 'kind': kind, 'parameters': count_parameters(model), 'epoch': saved['epoch']}
        report_evaluation(args.checkpoint or path.parent, about, config, clips, logits, labels)
