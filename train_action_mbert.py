"""Train or evaluate MotionBERT on heatmap volumes.

    python train_action_mbert.py --config configs/action/MB_train.yaml --checkpoint checkpoint/action/mbert
    python train_action_mbert.py --evaluate checkpoint/action/mbert/best_epoch.bin

The same command again goes on from the last finished epoch. On a GPU where there is one, else on the CPU.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from lib import cli
from lib.config import load_config, plain, resolve_config
from lib.data.clips import Clips
from lib.metrics import classification_metrics
from lib.pytorch import checkpoint, engine
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.mbert import MotionBERT
from lib.runlog import RunLog, metrics_line, say, say_facts, write_text
from lib.tools.preview import draw_clip

KIND = 'mbert'
DEFAULT_CONFIG = 'configs/action/MB_train.yaml'
SECTIONS = {
    'data': Clips,
    'heatmap': HeatmapRenderer,
    'model': MotionBERT,
    'optimizer': engine.make_optimizer,
    'train': engine.TrainOptions,
}


def build(config, device: torch.device, *splits: str) -> tuple[HeatmapRenderer, MotionBERT, list[Clips]]:
    """The parts of a run, checked against each other, on the device."""
    clips = [Clips(split, config.heatmap.size, **config.data) for split in splits]
    render = HeatmapRenderer(**config.heatmap)
    torch.manual_seed(config.train.seed)
    model = MotionBERT(**config.model)
    channels = render.num_channels(clips[0].num_joints)
    model.check_input(clip_len=config.data.clip_len, channels=channels, size=config.heatmap.size)
    for part in clips:
        part.check_labels(config.model.num_classes)
    return render.to(device), model.to(device), clips


def train(args: argparse.Namespace) -> None:
    config = load_config(args.config, SECTIONS, args.set)
    options = engine.TrainOptions(**config.train)
    folder = Path(args.checkpoint)
    path, saved = checkpoint.find(folder, args.resume, KIND)
    changed = checkpoint.check_same_run(path, saved['config'], config) if saved else {}
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    render, model, (train_clips, val_clips) = build(config, device, 'train', 'val')
    optimizer = engine.make_optimizer(model, **config.optimizer)
    start, best, history = 0, {'top1': -1.0, 'epoch': 0}, []
    if saved:
        checkpoint.load_weights(model, saved['model'], path)
        checkpoint.load_optimizer(optimizer, saved['optimizer'])
        start, history = saved['epoch'], saved['history']
        if (folder / checkpoint.BEST).is_file():  # another folder, given a file to go on from, finds a best of its own
            best = saved['best']
    forward = engine.make_forward(render, model, options.compile)

    log = RunLog(folder, plain(config), history)
    say_facts(
        {
            'data': train_clips.description,
            'train': train_clips.split_description,
            'val': val_clips.split_description,
            'model': f'MotionBERT, {sum(p.numel() for p in model.parameters()):,} parameters',
            'run': f'{options.epochs} epochs, {start} of them done, {len(train_clips)} steps each, on {device}',
            'output': f'{folder}: checkpoints, metrics.jsonl, config.yaml; tensorboard --logdir {folder / "logs"}',
        }
    )
    if saved:
        say(f'goes on from {path}, after epoch {start}')
    for key, (before, now) in changed.items():
        say(f'changed since: {key} was {before}, is {now}')
    log.picture(*draw_clip(val_clips, render))

    for epoch in range(start, options.epochs):
        train_metrics = engine.train_one_epoch(
            forward, model, optimizer, train_clips, epoch, options, device, log, args.print_freq
        )
        val_metrics = classification_metrics(*engine.evaluate(forward, model, val_clips, device))
        del val_metrics['per_class']
        lr = optimizer.param_groups[0]['lr']
        history.append({'epoch': epoch + 1, 'lr': lr, 'train': train_metrics, 'val': val_metrics})
        is_best = val_metrics['top1'] > best['top1']
        if is_best:
            best = {'top1': val_metrics['top1'], 'epoch': epoch + 1}
        state = {
            'kind': KIND,
            'config': plain(config),
            'epoch': epoch + 1,
            'best': best,
            'history': history,
            'model': model.state_dict(),
            'optimizer': optimizer.state_dict(),
        }
        if is_best:  # before the latest: a run killed in between repeats this epoch, and finds the same best
            checkpoint.save(folder / checkpoint.BEST, state)
        checkpoint.save(folder / checkpoint.LATEST, state)
        log.epoch(history, epochs=options.epochs, best=best, num_clips=train_clips.clips_per_epoch)
    say(f'done: best top1 {best["top1"]:.2%} at epoch {best["epoch"]}, last {history[-1]["val"]["top1"]:.2%}')


def evaluate(args: argparse.Namespace) -> None:
    path = Path(args.evaluate)
    saved = checkpoint.load(path, KIND)
    config = resolve_config(saved['config'], SECTIONS, args.set, str(path))
    checkpoint.check_evaluation(path, saved['config'], config)
    if args.config:
        checkpoint.check_evaluation(path, saved['config'], load_config(args.config, SECTIONS, args.set))
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    render, model, (val_clips,) = build(config, device, 'val')
    checkpoint.load_weights(model, saved['model'], path)
    say_facts(
        {
            'data': val_clips.description,
            'val': val_clips.split_description,
            'checkpoint': f'{path}, epoch {saved["epoch"]}',
        }
    )
    forward = engine.make_forward(render, model, config.train.compile)
    metrics = classification_metrics(*engine.evaluate(forward, model, val_clips, device))
    say(metrics_line(metrics))
    folder = Path(args.checkpoint) if args.checkpoint else path.parent
    about = {
        'checkpoint': str(path),
        'epoch': saved['epoch'],
        'list': val_clips.list_name,
        'num_clips': val_clips.num_clips,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'evaluation.json', json.dumps(about | metrics, indent=2) + '\n')


if __name__ == '__main__':
    args = cli.parse_args(__doc__, DEFAULT_CONFIG)
    sys.exit(cli.run(evaluate if args.evaluate else train, args))
